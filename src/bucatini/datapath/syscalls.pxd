"""The system calls and kernel constants that the packet path uses, declared once."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "<sys/types.h>" nogil:
    ctypedef long ssize_t
    ctypedef unsigned int socklen_t

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t readv(int fd, const iovec *iov, int count)
    ssize_t writev(int fd, const iovec *iov, int count)

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buf, size_t count)
    ssize_t write(int fd, const void *buf, size_t count)
    int close(int fd)
    int dup(int fd)

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout_ms)
    int POLLIN, POLLERR, POLLHUP

cdef extern from "<sys/socket.h>" nogil:
    cdef struct sockaddr:
        unsigned short sa_family
    cdef struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    cdef struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cdef struct linger:
        int l_onoff
        int l_linger
    int socket(int domain, int type, int protocol)
    int bind(int fd, const sockaddr *addr, socklen_t size)
    int connect(int fd, const sockaddr *addr, socklen_t size)
    int listen(int fd, int backlog)
    int accept4(int fd, sockaddr *addr, socklen_t *size, int flags)
    int shutdown(int fd, int how)
    int getsockname(int fd, sockaddr *addr, socklen_t *size)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *size)
    ssize_t send(int fd, const void *buf, size_t size, int flags)
    ssize_t recv(int fd, void *buf, size_t size, int flags)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    ssize_t recvmsg(int fd, msghdr *message, int flags)
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    cmsghdr *CMSG_NXTHDR(msghdr *message, cmsghdr *cmsg)
    uint8_t *CMSG_DATA(cmsghdr *cmsg)
    size_t CMSG_LEN(size_t size)
    size_t CMSG_SPACE(size_t size)
    int AF_INET, AF_INET6, AF_NETLINK, SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_NONBLOCK, SOCK_CLOEXEC, SCM_RIGHTS
    int SOL_SOCKET, SO_ERROR, SO_REUSEADDR, SO_KEEPALIVE, SO_LINGER, SO_OOBINLINE, SO_PEEK_OFF, SO_BINDTODEVICE
    int SO_RCVBUF, SO_REUSEPORT
    int MSG_PEEK, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC, MSG_ERRQUEUE, MSG_MORE, MSG_CMSG_CLOEXEC
    int SHUT_WR, SHUT_RDWR

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/socket.h>
    #include <fcntl.h>
    #include <unistd.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <netinet/udp.h>
    #include <linux/errqueue.h>
    #include <arpa/inet.h>
    #ifndef SO_PEEK_OFF
    #define SO_PEEK_OFF 42
    #endif
    #ifndef UDP_SEGMENT
    #define UDP_SEGMENT 103
    #endif
    #ifndef UDP_GRO
    #define UDP_GRO 104
    #endif
    """
    cdef struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    ssize_t splice(int from_, void *from_offset, int to, void *to_offset, size_t size, unsigned int flags)
    int pipe2(int *fds, int flags)
    int fcntl(int fd, int command, ...)
    int SPLICE_F_MOVE, SPLICE_F_NONBLOCK, F_SETPIPE_SZ, O_NONBLOCK, O_CLOEXEC
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, void *timeout)
    cdef struct in_addr:
        uint32_t s_addr
    cdef struct in6_addr:
        uint8_t s6_addr[16]
    cdef struct sockaddr_in:
        unsigned short sin_family
        uint16_t sin_port
        in_addr sin_addr
    cdef struct sockaddr_in6:
        unsigned short sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    cdef struct sock_extended_err:
        uint32_t ee_errno
        uint8_t ee_origin
        uint8_t ee_type
        uint8_t ee_code
        uint32_t ee_info
        uint32_t ee_data
    sockaddr *SO_EE_OFFENDER(sock_extended_err *err)
    int SO_EE_ORIGIN_LOCAL, SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6
    int IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMP, IPPROTO_ICMPV6, SOL_UDP, SOL_IP, SOL_IPV6
    int TCP_NODELAY, TCP_INFO, TCP_CLOSE
    int IP_RECVERR, IPV6_RECVERR, IP_TTL, IP_TOS, IPV6_UNICAST_HOPS, IPV6_TCLASS, IPV6_V6ONLY, IP_FREEBIND
    int IPV6_HOPLIMIT, IP_MULTICAST_TTL, IPV6_MULTICAST_HOPS, IP_PKTINFO, IPV6_RECVPKTINFO, IPV6_PKTINFO
    int IP_MTU_DISCOVER, IPV6_MTU_DISCOVER
    int UDP_SEGMENT, UDP_GRO
    cdef struct in_pktinfo:
        int ipi_ifindex
        in_addr ipi_spec_dst
        in_addr ipi_addr
    cdef struct in6_pktinfo:
        in6_addr ipi6_addr
        unsigned int ipi6_ifindex
    uint16_t htons(uint16_t value)
    uint16_t ntohs(uint16_t value)
    uint32_t htonl(uint32_t value)
    uint32_t ntohl(uint32_t value)

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <sys/epoll.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>
    // The C library has it from 2.35 on only. Where the headers do not have its number (before Linux 5.11), the filter
    // of system calls does not let it through, and calling it would be the end of the process.
    static inline int bucatini_epoll_pwait2(int epfd, struct epoll_event *events, int limit,
                                            const struct timespec *most)
    {
    #ifdef SYS_epoll_pwait2
        return (int) syscall(SYS_epoll_pwait2, epfd, events, limit, most, NULL, 0);
    #else
        errno = ENOSYS;
        return -1;
    #endif
    }
    """
    int epoll_pwait2 "bucatini_epoll_pwait2"(int epfd, epoll_event *events, int limit, const timespec *most)

cdef extern from "<sys/epoll.h>" nogil:
    cdef union epoll_data:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int limit, int timeout_ms)
    int EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLL_CLOEXEC
    enum: EPOLLIN, EPOLLPRI, EPOLLOUT, EPOLLRDHUP, EPOLLERR, EPOLLHUP, EPOLLET

cdef extern from "<sys/eventfd.h>" nogil:
    int EFD_CLOEXEC
    int eventfd(unsigned int initval, int flags)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *addr, size_t size, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t size)
    int madvise(void *addr, size_t size, int advice)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MADV_DONTNEED
    void *MAP_FAILED

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *value)
    int CLOCK_MONOTONIC
