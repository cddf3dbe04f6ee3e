"""Sockets of the guest's namespace, for a process that is not in it.

A socket belongs for ever to the network namespace of whoever made it. Those on the guest's side of the bypass are made
by a process that stays there, the maker, and come to the packet path over a UNIX socket (SCM_RIGHTS, unix(7)). Why a
process: a thread can be in another network namespace than its process, but to get there the process would have to join
the guest's user namespace first and stay in it for good, where the guest's root is the same user with all capabilities;
so would the code that reads the guest's frames, and it could not shut itself into namespaces of its own any more
(unshare(2) refuses CLONE_NEWUSER to a process with threads). The maker reads nothing from the guest. It cannot be
traced from the guest's namespace (PR_SET_DUMPABLE); a guest that shares our PID namespace can kill it, and then has no
bypass.

Passing descriptors one by one would cost a switch of process per connection. So they are made in advance, `REFILL` at a
time, and kept in a pool for each protocol and IP version; the next ones are asked for while there still are some. The
first time, and if connections come faster than the maker runs, the packet path waits for it, for `PATIENCE_MS` at most,
and not again until it has answered. Near the limit of open files, where the kernel drops what does not fit, fewer are
asked for.

Requests and replies are structs of one layout for the pool and for Python, which has a socket of its own to the maker:
bound listeners (BIND); netlink sockets (DIAG), or files of /proc/net (TABLE), to look at those of the namespace. The
maker ends with either socket. One that stays on the host, for its right to bind low ports, makes nothing else: whoever
took over the process that asks gets no more of it.
"""

# The packet path's side, and the maker's
# syscalls pasta: poll ppoll sendto recvmsg epoll_ctl close
# syscalls maker,binder: poll ppoll recvfrom sendmsg socket setsockopt bind listen close
# syscalls maker: openat

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from bucatini.datapath.counters cimport C_SOCKETS_MADE, C_SOCKETS_STALLED
from bucatini.datapath.headers cimport PROTO_TCP, addr_is_unspecified, addr_t
from bucatini.datapath.sockaddr cimport sockaddr_any, sockaddr_fill
from bucatini.datapath.syscalls cimport (
    AF_INET, AF_INET6, AF_NETLINK, CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_NXTHDR, CMSG_SPACE, EPOLL_CTL_ADD,
    EPOLL_CTL_DEL, EPOLLIN, IP_PKTINFO, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPV6_RECVPKTINFO, IPV6_V6ONLY,
    MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_NOSIGNAL, POLLIN, SCM_RIGHTS, SO_BINDTODEVICE, SO_OOBINLINE, SO_RCVBUF,
    SO_REUSEADDR, SO_REUSEPORT, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_RAW, SOCK_STREAM, SOL_SOCKET, TCP_NODELAY,
    bind, close, cmsghdr, epoll_ctl, epoll_event, iovec, listen, msghdr, poll, pollfd, recv, recvmsg, send, sendmsg,
    setsockopt, socket,
)
from bucatini.datapath.worker cimport REF_SOCKETS, count, count_n


cdef extern from "<errno.h>" nogil:
    int errno, EAFNOSUPPORT, EAGAIN, EINTR, EMFILE, EINVAL, ENOMEM, EPERM


cdef extern from "<fcntl.h>" nogil:
    int open_ "open"(const char *path, int flags, ...)
    int O_RDONLY, O_CLOEXEC


cdef extern from "<linux/netlink.h>" nogil:
    int NETLINK_SOCK_DIAG


cdef enum What:  # of a request
    MAKE = 1  # `count` unbound sockets
    BIND_ = 2  # a listener
    DIAG_ = 3  # a netlink socket to ask for listeners
    TABLE_ = 4  # an open file of /proc/net that lists sockets

cdef enum:
    KINDS = 4  # TCP and UDP, each over IPv4 and IPv6
    SIZE = 256
    LOW = 64  # ask for more when fewer are there or on their way
    REFILL = 64
    PATIENCE_MS = 250  # more than a process waits for a CPU of a busy machine
    BACKLOG = 4096  # net.core.somaxconn cuts it
    RECEIVE_BUFFER = 1 << 22  # bytes; net.core.rmem_max cuts it
    CONTROL = 512  # bytes, CMSG_SPACE of REFILL descriptors and more

BIND = BIND_
DIAG = DIAG_
TABLE = TABLE_
REQUEST = "=IBBBBHHI16s16s"  # struct.pack: `Request`
REPLY = "=Ii"

cdef struct Request:  # without holes
    uint32_t id
    uint8_t what
    uint8_t protocol
    uint8_t version  # 4, 6; BIND: 0 for dual stack
    uint8_t count
    uint16_t port  # host order
    uint16_t zero
    uint32_t scope_id
    addr_t address  # unspecified: any
    char interface[16]  # empty: any

cdef struct Reply:  # and the descriptors
    uint32_t id
    int32_t error  # errno, 0: made

cdef struct Pool:
    int control  # to the maker, -1: it is gone
    bint stalled  # it let us wait in vain
    int fds[KINDS][SIZE]
    uint32_t count[KINDS]
    uint32_t asked[KINDS]  # are on their way
    uint32_t batch[KINDS]  # to be asked for at once, REFILL at most


# The packet path's side


cdef inline Pool *pool(Worker *w) noexcept nogil:
    return <Pool *> w.sockets


cdef inline uint32_t kind_of(uint8_t protocol, bint v4) noexcept nogil:
    return (0 if protocol == PROTO_TCP else 2) + (0 if v4 else 1)


cdef int sockets_open(Worker *w, int fd) noexcept nogil:
    cdef epoll_event event
    cdef uint32_t kind
    w.sockets = calloc(1, sizeof(Pool))
    if w.sockets == NULL:
        return -ENOMEM
    pool(w).control = fd
    for kind in range(KINDS):
        pool(w).batch[kind] = REFILL
    event.events = EPOLLIN
    event.data.u64 = <unsigned long long> REF_SOCKETS << 56
    return -errno if epoll_ctl(w.epoll, EPOLL_CTL_ADD, fd, &event) < 0 else 0


cdef void sockets_free(Worker *w) noexcept nogil:
    cdef uint32_t kind, i
    for kind in range(KINDS):
        for i in range(pool(w).count[kind]):
            close(pool(w).fds[kind][i])
    if pool(w).control >= 0:
        close(pool(w).control)
    free(w.sockets)


cdef void ask(Pool *p, uint32_t kind) noexcept nogil:
    """Have the maker make more."""
    cdef Request request
    if p.control < 0:
        return
    memset(&request, 0, sizeof(request))
    request.id = kind << 16 | p.batch[kind]
    request.what = MAKE
    request.protocol = 6 if kind < 2 else 17
    request.version = 6 if kind & 1 else 4
    request.count = <uint8_t> p.batch[kind]
    if send(p.control, &request, sizeof(request), MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(request):
        p.asked[kind] += p.batch[kind]


cdef int received(const msghdr *message, int *out, int limit) noexcept nogil:
    """Take the descriptors out of a message; returns how many."""
    cdef cmsghdr *cmsg = CMSG_FIRSTHDR(<msghdr *> message)
    cdef int n = 0, i, found
    cdef int fd
    while cmsg != NULL:
        if cmsg.cmsg_level == SOL_SOCKET and cmsg.cmsg_type == SCM_RIGHTS:
            found = <int> ((cmsg.cmsg_len - CMSG_LEN(0)) // sizeof(int))
            for i in range(found):
                memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(int), sizeof(int))
                if n < limit:
                    out[n] = fd
                    n += 1
                else:
                    close(fd)
        cmsg = CMSG_NXTHDR(<msghdr *> message, cmsg)
    return n


cdef void sockets_event(Worker *w) noexcept nogil:
    cdef Pool *p = pool(w)
    cdef Reply reply
    cdef msghdr message
    cdef iovec iov
    cdef uint8_t[CONTROL] control
    cdef epoll_event event
    cdef ssize_t n
    cdef uint32_t kind, asked
    cdef int made
    while p.control >= 0:
        memset(&message, 0, sizeof(message))
        iov.iov_base = &reply
        iov.iov_len = sizeof(reply)
        message.msg_iov = &iov
        message.msg_iovlen = 1
        message.msg_control = control
        message.msg_controllen = CONTROL
        n = recvmsg(p.control, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
        if n < 0 and errno == EINTR:
            continue
        if n < 0 and errno == EAGAIN:
            return
        if n <= 0:
            epoll_ctl(w.epoll, EPOLL_CTL_DEL, p.control, &event)
            close(p.control)
            p.control = -1
            return
        p.stalled = False
        kind = reply.id >> 16
        asked = reply.id & 0xFFFF
        if n == sizeof(reply) and kind < KINDS:
            p.asked[kind] -= asked if asked < p.asked[kind] else p.asked[kind]
            made = received(&message, &p.fds[kind][p.count[kind]], SIZE - <int> p.count[kind])
            p.count[kind] += made
            if made < <int> asked:
                p.batch[kind] = made if made else 1
            elif p.batch[kind] < REFILL:
                p.batch[kind] = p.batch[kind] * 2 if p.batch[kind] * 2 < REFILL else REFILL
            count_n(w, C_SOCKETS_MADE, made)
        else:
            received(&message, NULL, 0)


cdef int sockets_take(Worker *w, uint8_t protocol, bint v4) noexcept nogil:
    cdef Pool *p = pool(w)
    cdef uint32_t kind = kind_of(protocol, v4)
    cdef pollfd wait
    if p == NULL:
        return -EAGAIN
    if p.count[kind] == 0:
        sockets_event(w)
    if p.count[kind] + p.asked[kind] < (LOW if p.batch[kind] == REFILL else 1):
        ask(p, kind)
    while p.count[kind] == 0 and p.asked[kind] and p.control >= 0 and not p.stalled:
        wait.fd = p.control
        wait.events = <short> POLLIN
        if poll(&wait, 1, PATIENCE_MS) <= 0:
            count(w, C_SOCKETS_STALLED)
            p.stalled = True
        else:
            sockets_event(w)
    if p.count[kind] == 0:
        return -EAGAIN if p.control < 0 or p.stalled else -EMFILE
    p.count[kind] -= 1
    return p.fds[kind][p.count[kind]]


# The maker's side


cdef int new_socket(const Request *request) noexcept nogil:
    """A socket of the protocol and version asked for, or -errno."""
    cdef int one = 1
    cdef bint tcp = request.protocol == PROTO_TCP
    cdef int kind = (SOCK_STREAM if tcp else SOCK_DGRAM) | SOCK_NONBLOCK | SOCK_CLOEXEC
    cdef int fd = socket(AF_INET if request.version == 4 else AF_INET6, kind, 0)
    if fd < 0:
        return -errno
    if tcp:  # accepted sockets inherit both
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))  # T28
        setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &one, sizeof(one))  # T31
    return fd


cdef bint is_nobodys(const Request *request) noexcept nogil:
    """Whether nobody but our user has a port, at any address: as `_is_nobodys` of `runtime/forwards`."""
    cdef Request anywhere = request[0]
    cdef sockaddr_any sa
    cdef int one = 1
    cdef bint alone
    cdef int fd = new_socket(request)
    if fd < 0:
        return False
    memset(&anywhere.address, 0, sizeof(addr_t))
    if request.version == 4:
        anywhere.address.b[10] = anywhere.address.b[11] = 0xFF
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one))
    alone = ((request.version != 6 or setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one)) == 0)
             and bind(fd, &sa.sa, sockaddr_fill(&sa, &anywhere.address, request.port, 0)) == 0)
    close(fd)
    return alone


cdef int bind_listener(Request *request) noexcept nogil:
    """A bound socket, listening if it is one of TCP, or -errno."""
    cdef sockaddr_any sa
    cdef int one = 1, error
    cdef int only = request.version == 6
    cdef int buffer = RECEIVE_BUFFER
    cdef bint tcp = request.protocol == PROTO_TCP
    cdef int share
    cdef int fd = new_socket(request)
    if fd == -EAFNOSUPPORT and request.version == 0:
        request.version = 4
        fd = new_socket(request)
    if fd < 0:
        return fd
    if request.version == 4 and addr_is_unspecified(&request.address):
        request.address.b[10] = request.address.b[11] = 0xFF
    request.interface[15] = 0
    share = tcp or is_nobodys(request)
    if ((request.version == 4 or setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof(only)) == 0)
            and (request.interface[0] == 0
                 or setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, request.interface, 16) == 0)
            and (not tcp or setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) == 0)
            and bind(fd, &sa.sa, sockaddr_fill(&sa, &request.address, request.port, request.scope_id)) == 0
            and (not tcp or listen(fd, BACKLOG) == 0)
            and (tcp or setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &share, sizeof(share)) == 0)
            and (tcp or setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof(buffer)) == 0)
            and (tcp or setsockopt(fd, IPPROTO_IP if request.version == 4 else IPPROTO_IPV6,
                                   IP_PKTINFO if request.version == 4 else IPV6_RECVPKTINFO, &one, sizeof(one)) == 0)):
        return fd
    error = errno
    close(fd)
    return -error


cdef int open_table(const Request *request) noexcept nogil:
    """The kernel's list of sockets of a protocol and version (proc(5)), or -errno."""
    cdef const char *path
    if request.protocol == PROTO_TCP:
        path = "/proc/self/net/tcp" if request.version == 4 else "/proc/self/net/tcp6"
    else:
        path = "/proc/self/net/udp" if request.version == 4 else "/proc/self/net/udp6"
    cdef int fd = open_(path, O_RDONLY | O_CLOEXEC)
    return fd if fd >= 0 else -errno


cdef bint serve(int sock, uint32_t below) noexcept nogil:
    """Do what one request says; whether there may be more. `below`: as for `make_sockets`."""
    cdef Request request
    cdef Reply reply
    cdef int[REFILL] made
    cdef msghdr message
    cdef iovec iov
    cdef uint8_t[CONTROL] control
    cdef cmsghdr *cmsg
    cdef int n = 0, wanted = 1, fd, i
    cdef ssize_t size = recv(sock, &request, sizeof(request), 0)
    if size <= 0:
        return size < 0 and errno == EINTR
    reply.id = request.id
    reply.error = EINVAL
    if size == sizeof(request):
        if request.what == MAKE:
            wanted = request.count if request.count < REFILL else REFILL
        while n < wanted:
            if below and (request.what != BIND_ or request.port == 0 or request.port >= below):
                fd = -EPERM
            elif request.what == MAKE:
                fd = new_socket(&request)
            elif request.what == BIND_:
                fd = bind_listener(&request)
            elif request.what == DIAG_:
                fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
                fd = -errno if fd < 0 else fd
            elif request.what == TABLE_:
                fd = open_table(&request)
            else:
                fd = -EINVAL
            reply.error = -fd if fd < 0 else 0
            if fd < 0:
                break
            made[n] = fd
            n += 1
    memset(&message, 0, sizeof(message))
    iov.iov_base = &reply
    iov.iov_len = sizeof(reply)
    message.msg_iov = &iov
    message.msg_iovlen = 1
    if n:
        memset(control, 0, CONTROL)
        message.msg_control = control
        message.msg_controllen = CMSG_SPACE(n * sizeof(int))
        cmsg = CMSG_FIRSTHDR(&message)
        cmsg.cmsg_level = SOL_SOCKET
        cmsg.cmsg_type = SCM_RIGHTS
        cmsg.cmsg_len = CMSG_LEN(n * sizeof(int))
        memcpy(CMSG_DATA(cmsg), made, n * sizeof(int))
    size = sendmsg(sock, &message, MSG_NOSIGNAL)
    for i in range(n):
        close(made[i])
    return size > 0


def make_sockets(int pool, int requests, uint32_t below=0):
    """Be the maker: make what is asked for on either socket (SOCK_SEQPACKET, blocking) until one of them ends.

    Args:
        below: only bind, and only ports below this one; 0: make whatever is asked for.
    """
    cdef pollfd[2] wait
    cdef bint more = True
    cdef int i
    wait[0].fd = pool
    wait[1].fd = requests
    wait[0].events = wait[1].events = <short> POLLIN
    with nogil:
        while more:
            if poll(wait, 2, -1) < 0:
                more = errno == EINTR
                continue
            for i in range(2):
                if more and wait[i].revents:
                    more = serve(wait[i].fd, below)
