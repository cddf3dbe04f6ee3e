# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Load generators of the benchmark: loops of system calls without the GIL, so that Python's own time is not measured.

Each function runs for a stated time or until its peer stops, and returns what it counted. IPv4 and IPv6 addresses.
"""


from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset


cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/socket.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <poll.h>
    #include <time.h>
    #include <unistd.h>
    #include <errno.h>
    """
    ctypedef long ssize_t
    cdef struct sockaddr:
        pass
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    cdef struct msghdr:
        void *msg_name
        unsigned int msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
    cdef struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *value)
    int CLOCK_MONOTONIC
    int c_socket "socket"(int family, int type, int protocol)
    int c_connect "connect"(int fd, const sockaddr *address, unsigned int size)
    int c_accept "accept"(int fd, sockaddr *address, unsigned int *size)
    int c_close "close"(int fd)
    ssize_t c_send "send"(int fd, const void *data, size_t size, int flags)
    ssize_t c_recv "recv"(int fd, void *data, size_t size, int flags)
    ssize_t c_recvfrom "recvfrom"(int fd, void *data, size_t size, int flags, sockaddr *address, unsigned int *length)
    ssize_t c_sendto "sendto"(int fd, const void *data, size_t size, int flags, const sockaddr *address,
                              unsigned int length)
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, timespec *timeout)
    int c_setsockopt "setsockopt"(int fd, int level, int name, const void *value, unsigned int size)
    int IPPROTO_TCP, TCP_NODELAY, SOCK_STREAM, MSG_NOSIGNAL, MSG_WAITFORONE, EINTR
    int errno


cdef enum:
    BATCH = 32  # datagrams of one sendmmsg or recvmmsg
    SIZE = 65536


cdef inline double now() noexcept nogil:
    cdef timespec value
    clock_gettime(CLOCK_MONOTONIC, &value)
    return value.tv_sec + value.tv_nsec * 1e-9


def tcp_ping_pong(int fd, int size, double seconds):
    """Send `size` bytes and wait for as many, over a connected socket; returns round trips."""
    cdef uint8_t[SIZE] data
    cdef uint64_t count = 0
    cdef double end = now() + seconds
    cdef ssize_t n = 0, got
    memset(data, 0, SIZE)
    with nogil:
        while now() < end:
            if c_send(fd, data, size, MSG_NOSIGNAL) != size:
                break
            got = 0
            while got < size:
                n = c_recv(fd, data, size - got, 0)
                if n <= 0:
                    break
                got += n
            if n <= 0:
                break
            count += 1
    return count


def tcp_echo(int fd):
    """Send everything back that comes over a connected socket, until its end; returns bytes."""
    cdef uint8_t[SIZE] data
    cdef uint64_t count = 0
    cdef ssize_t n
    with nogil:
        while True:
            n = c_recv(fd, data, SIZE, 0)
            if n <= 0 or c_send(fd, data, n, MSG_NOSIGNAL) != n:
                break
            count += n
    return count


def udp_ping_pong(int fd, int size, double seconds):
    """Like `tcp_ping_pong` over a connected UDP socket with a receive timeout; a lost datagram is sent again."""
    cdef uint8_t[SIZE] data
    cdef uint64_t count = 0
    cdef double end = now() + seconds
    memset(data, 0, SIZE)
    with nogil:
        while now() < end:
            c_send(fd, data, size, MSG_NOSIGNAL)
            if c_recv(fd, data, SIZE, 0) >= 0:
                count += 1
    return count


def udp_echo(int fd):
    """Send every datagram back to where it came from, until the receive timeout; returns how many."""
    cdef uint8_t[SIZE] data
    cdef uint8_t[128] address
    cdef unsigned int length
    cdef uint64_t count = 0
    cdef ssize_t n
    with nogil:
        while True:
            length = 128
            n = c_recvfrom(fd, data, SIZE, 0, <sockaddr *> address, &length)
            if n < 0:
                break
            c_sendto(fd, data, n, 0, <sockaddr *> address, length)
            count += 1
    return count


def connect_request_response(bytes address, int family, double seconds):
    """Connect, send one byte, receive one, read the end, close; again and again. Returns connections, failures.

    Args:
        address: a struct sockaddr_in or sockaddr_in6.
    """
    cdef const uint8_t *raw = address
    cdef unsigned int length = len(address)
    cdef uint64_t count = 0, failed = 0
    cdef uint8_t[8] data
    cdef double end = now() + seconds
    cdef int fd, one = 1
    memset(data, 0, 8)
    with nogil:
        while now() < end:
            fd = c_socket(family, SOCK_STREAM, 0)
            c_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
            if (c_connect(fd, <const sockaddr *> raw, length) == 0 and c_send(fd, data, 1, MSG_NOSIGNAL) == 1
                    and c_recv(fd, data, 8, 0) == 1 and c_recv(fd, data, 8, 0) == 0):
                count += 1
            else:
                failed += 1
            c_close(fd)
    return count, failed


def serve_requests(int fd):
    """The other end: accept, receive one byte, send one, close first. Until accept fails."""
    cdef uint8_t[8] data
    cdef uint64_t count = 0
    cdef int peer, one = 1
    with nogil:
        while True:
            peer = c_accept(fd, NULL, NULL)
            if peer < 0:
                break
            c_setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
            if c_recv(peer, data, 8, 0) > 0:
                c_send(peer, data, 1, MSG_NOSIGNAL)
            c_close(peer)
            count += 1
    return count


def udp_blast(int fd, int size, double seconds):
    """Send datagrams of `size` bytes over a connected socket as fast as it takes them; returns how many."""
    cdef uint8_t[SIZE] data
    cdef mmsghdr[BATCH] messages
    cdef iovec[BATCH] iov
    cdef uint64_t count = 0
    cdef double end = now() + seconds
    cdef int i, n
    memset(data, 0, SIZE)
    memset(messages, 0, sizeof(messages))
    for i in range(BATCH):
        iov[i].iov_base = data
        iov[i].iov_len = size
        messages[i].msg_hdr.msg_iov = &iov[i]
        messages[i].msg_hdr.msg_iovlen = 1
    with nogil:
        while now() < end:
            n = sendmmsg(fd, messages, BATCH, 0)
            if n > 0:
                count += n
    return count


def udp_sink(int fd, double seconds):
    """Receive datagrams for `seconds` after the first one; the socket has a receive timeout. Returns count, bytes."""
    cdef uint8_t[BATCH * 2048] data
    cdef mmsghdr[BATCH] messages
    cdef iovec[BATCH] iov
    cdef uint64_t count = 0, bytes_ = 0
    cdef double end = 0
    cdef int i, n
    memset(messages, 0, sizeof(messages))
    for i in range(BATCH):
        iov[i].iov_base = data + i * 2048
        iov[i].iov_len = 2048
        messages[i].msg_hdr.msg_iov = &iov[i]
        messages[i].msg_hdr.msg_iovlen = 1
    with nogil:
        while True:
            n = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL)
            if n <= 0:
                break
            if end == 0:
                end = now() + seconds
            for i in range(n):
                bytes_ += messages[i].msg_len
            count += n
            if now() >= end:
                break
    return count, bytes_
