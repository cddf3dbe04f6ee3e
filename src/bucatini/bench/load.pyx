"""Load generators: loops of system calls without the GIL.

Each function runs for a stated time or until its peer stops, and returns what it counted. Sockets are blocking,
connected where that is said; those of UDP have a receive timeout.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from bucatini.datapath.syscalls cimport (
    CLOCK_MONOTONIC, IPPROTO_TCP, MSG_NOSIGNAL, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET, TCP_NODELAY, accept4,
    clock_gettime, close, connect, iovec, mmsghdr, recv, recvmmsg, send, sendmmsg, setsockopt, sockaddr, socket,
    socklen_t, ssize_t, timespec,
)


cdef extern from "<sys/socket.h>" nogil:
    ssize_t recvfrom(int fd, void *data, size_t size, int flags, sockaddr *address, socklen_t *length)
    ssize_t sendto(int fd, const void *data, size_t size, int flags, const sockaddr *address, socklen_t length)
    int MSG_WAITFORONE, SO_RCVTIMEO

cdef extern from "<time.h>" nogil:
    int clock_nanosleep(int clock, int flags, const timespec *at, timespec *left)
    int TIMER_ABSTIME

cdef extern from "<sys/time.h>" nogil:
    cdef struct timeval:
        long tv_sec
        long tv_usec


cdef enum:
    BATCH = 32  # datagrams of one sendmmsg or recvmmsg
    SIZE = 65536
    LATE = 1000000  # ns behind its schedule from which a paced sender begins a new one


cdef inline uint64_t now() noexcept nogil:
    cdef timespec value
    clock_gettime(CLOCK_MONOTONIC, &value)
    return <uint64_t> value.tv_sec * 1000000000 + <uint64_t> value.tv_nsec


def tcp_ping_pong(int fd, int size, double seconds, unsigned int[::1] samples not None):
    """Send `size` bytes and wait for as many, over a connected socket; returns the number of round trips.

    Args:
        samples: filled with the time of each, ns, as far as it goes.
    """
    cdef uint8_t[SIZE] data
    cdef uint64_t count = 0, room = samples.shape[0]
    cdef uint64_t begin = now(), then = begin, at
    cdef uint64_t end = begin + <uint64_t> (seconds * 1e9)
    cdef ssize_t n = 0, got
    memset(data, 0, SIZE)
    with nogil:
        while then < end:
            if send(fd, data, size, MSG_NOSIGNAL) != size:
                break
            got = 0
            while got < size:
                n = recv(fd, data, size - got, 0)
                if n <= 0:
                    break
                got += n
            if n <= 0:
                break
            at = now()
            if count < room:
                samples[count] = <unsigned int> (at - then)
            then = at
            count += 1
    return count


def tcp_echo(int fd):
    """Send everything back that comes over a connected socket, until its end; returns bytes."""
    cdef uint8_t[SIZE] data
    cdef uint64_t count = 0
    cdef ssize_t n
    with nogil:
        while True:
            n = recv(fd, data, SIZE, 0)
            if n <= 0 or send(fd, data, n, MSG_NOSIGNAL) != n:
                break
            count += n
    return count


def udp_ping_pong(int fd, int size, double seconds, unsigned int[::1] samples not None):
    """Like `tcp_ping_pong` over a connected UDP socket; after a timeout the next datagram is sent."""
    cdef uint8_t[SIZE] data
    cdef uint64_t count = 0, room = samples.shape[0]
    cdef uint64_t begin = now(), then = begin, at
    cdef uint64_t end = begin + <uint64_t> (seconds * 1e9)
    memset(data, 0, SIZE)
    with nogil:
        while then < end:
            send(fd, data, size, MSG_NOSIGNAL)
            if recv(fd, data, SIZE, 0) >= 0:
                at = now()
                if count < room:
                    samples[count] = <unsigned int> (at - then)
                count += 1
            then = now()
    return count


def udp_echo(int fd):
    """Send every datagram back to where it came from, until the receive fails; returns how many."""
    cdef uint8_t[SIZE] data
    cdef uint8_t[128] address
    cdef socklen_t length
    cdef uint64_t count = 0
    cdef ssize_t n
    with nogil:
        while True:
            length = 128
            n = recvfrom(fd, data, SIZE, 0, <sockaddr *> address, &length)
            if n < 0:
                break
            sendto(fd, data, n, 0, <sockaddr *> address, length)
            count += 1
    return count


def udp_queries(bytes address, int family, int size, double seconds):
    """Ask as a resolver's client does: a socket for each query, one datagram, one answer. Returns answered, failed.

    Args:
        address: a struct sockaddr_in or sockaddr_in6.
        size: bytes of a query.
    """
    cdef const uint8_t *raw = address
    cdef socklen_t length = len(address)
    cdef uint64_t count = 0, failed = 0
    cdef uint8_t[2048] data
    cdef uint64_t end = now() + <uint64_t> (seconds * 1e9)
    cdef timeval patience
    cdef int fd
    memset(data, 0, sizeof(data))
    patience.tv_sec = 1
    patience.tv_usec = 0
    with nogil:
        while now() < end:
            fd = socket(family, SOCK_DGRAM, 0)
            setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience))
            if (connect(fd, <const sockaddr *> raw, length) == 0 and send(fd, data, size, MSG_NOSIGNAL) == size
                    and recv(fd, data, sizeof(data), 0) > 0):
                count += 1
            else:
                failed += 1
            close(fd)
    return count, failed


def connect_request_response(bytes address, int family, double seconds):
    """Connect, send one byte, receive one, read the end, close; again and again. Returns connections, failures.

    Args:
        address: a struct sockaddr_in or sockaddr_in6.
    """
    cdef const uint8_t *raw = address
    cdef socklen_t length = len(address)
    cdef uint64_t count = 0, failed = 0
    cdef uint8_t[8] data
    cdef uint64_t end = now() + <uint64_t> (seconds * 1e9)
    cdef int fd, one = 1
    memset(data, 0, 8)
    with nogil:
        while now() < end:
            fd = socket(family, SOCK_STREAM, 0)
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
            if (connect(fd, <const sockaddr *> raw, length) == 0 and send(fd, data, 1, MSG_NOSIGNAL) == 1
                    and recv(fd, data, 8, 0) == 1 and recv(fd, data, 8, 0) == 0):
                count += 1
            else:
                failed += 1
            close(fd)
    return count, failed


def serve_requests(int fd):
    """The other end: accept, receive one byte, send one, close first. Until accept fails."""
    cdef uint8_t[8] data
    cdef uint64_t count = 0
    cdef int peer, one = 1
    with nogil:
        while True:
            peer = accept4(fd, NULL, NULL, 0)
            if peer < 0:
                break
            setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
            if recv(peer, data, 8, 0) > 0:
                send(peer, data, 1, MSG_NOSIGNAL)
            close(peer)
            count += 1
    return count


cdef void equal_datagrams(mmsghdr *messages, iovec *iov, uint8_t *data, size_t size) noexcept nogil:
    """Make `BATCH` messages of `size` zeros each; `data` has SIZE bytes."""
    cdef int i
    memset(data, 0, SIZE)
    memset(messages, 0, BATCH * sizeof(mmsghdr))
    for i in range(BATCH):
        iov[i].iov_base = data
        iov[i].iov_len = size
        messages[i].msg_hdr.msg_iov = &iov[i]
        messages[i].msg_hdr.msg_iovlen = 1


def udp_blast(int fd, int size, double seconds):
    """Send datagrams of `size` bytes over a connected socket as fast as it takes them; returns how many."""
    cdef uint8_t[SIZE] data
    cdef mmsghdr[BATCH] messages
    cdef iovec[BATCH] iov
    cdef uint64_t count = 0
    cdef uint64_t end = now() + <uint64_t> (seconds * 1e9)
    cdef int n
    equal_datagrams(messages, iov, data, size)
    with nogil:
        while now() < end:
            n = sendmmsg(fd, messages, BATCH, 0)
            if n > 0:
                count += n
    return count


def udp_paced(int fd, int size, double seconds, double rate):
    """Send datagrams of `size` bytes over a connected socket at `rate` bits per second; returns how many.

    They go 32 at a time, and between that it sleeps: the other end may be on the same processor. What it could not send
    in time for that reason it does not send later all at once, which would be no pace, so it may send fewer.
    """
    cdef uint8_t[SIZE] data
    cdef mmsghdr[BATCH] messages
    cdef iovec[BATCH] iov
    cdef uint64_t count = 0, at = now(), then
    cdef uint64_t end = at + <uint64_t> (seconds * 1e9)
    cdef uint64_t pause = <uint64_t> (BATCH * size * 8e9 / rate)
    cdef timespec until
    cdef int n
    equal_datagrams(messages, iov, data, size)
    with nogil:
        while at < end:
            n = sendmmsg(fd, messages, BATCH, 0)
            if n > 0:
                count += n
            at += pause
            then = now()
            if then > at + LATE:
                at = then
            until.tv_sec = <long> (at // 1000000000)
            until.tv_nsec = <long> (at % 1000000000)
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL)
    return count


def udp_sink(int fd, double seconds):
    """Receive datagrams for `seconds` after the first one. Returns count, bytes, and the seconds that it took."""
    cdef uint8_t[BATCH * 2048] data
    cdef mmsghdr[BATCH] messages
    cdef iovec[BATCH] iov
    cdef uint64_t count = 0, bytes_ = 0
    cdef uint64_t begin = 0, last = 0
    cdef uint64_t lasting = <uint64_t> (seconds * 1e9)
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
            last = now()
            if begin == 0:
                begin = last
            for i in range(n):
                bytes_ += messages[i].msg_len
            count += n
            if last - begin >= lasting:
                break
    return count, bytes_, max(seconds, (last - begin) / 1e9)
