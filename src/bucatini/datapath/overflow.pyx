"""What the host's sockets do not take at once: a pool of blocks, mapped once, and a chain of them for each flow.

A flow's blocks are chained from `head` to `tail`; `head_offset` bytes of the first are sent, `tail_used` of the last
in use. Pages are used only by what stalls. When the pool is empty `overflow_add` takes less than it was given.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from bucatini.datapath.flow cimport TcpFlow
from bucatini.datapath.syscalls cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, MSG_DONTWAIT, MSG_NOSIGNAL, PROT_READ, PROT_WRITE, iovec,
    mmap, msghdr, munmap, sendmsg, ssize_t,
)


cdef extern from "<errno.h>" nogil:
    int errno, EAGAIN, EINTR, ENOBUFS, ENOMEM


cdef enum:
    CHUNK_NONE = 0  # chains hold index + 1
    DRAIN_IOV = 64  # chunks handed to a socket at once


cdef int overflow_init(Chunks *c) noexcept nogil:
    c.memory = <uint8_t *> mmap(NULL, CHUNKS * CHUNK, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if c.memory == <uint8_t *> MAP_FAILED:
        return -ENOMEM
    c.free = CHUNK_NONE
    c.fresh = 0
    c.available = CHUNKS
    return 0


cdef void overflow_free(Chunks *c) noexcept nogil:
    munmap(c.memory, CHUNKS * CHUNK)


cdef uint32_t chunk_take(Chunks *c) noexcept nogil:
    """Return a chunk (index + 1), CHUNK_NONE when there is none."""
    cdef uint32_t link = c.free
    if link:
        c.free = c.next[link - 1]
    elif c.fresh < CHUNKS:
        c.fresh += 1
        link = c.fresh
    else:
        return CHUNK_NONE
    c.next[link - 1] = CHUNK_NONE
    c.available -= 1
    return link


cdef void chunk_return(Chunks *c, uint32_t link) noexcept nogil:
    c.next[link - 1] = c.free
    c.free = link
    c.available += 1


cdef void overflow_drop(Chunks *c, TcpFlow *t) noexcept nogil:
    """Give back all that a flow holds."""
    cdef uint32_t link = t.head, following
    while link:
        following = c.next[link - 1]
        chunk_return(c, link)
        link = following
    t.head = CHUNK_NONE
    t.tail = CHUNK_NONE
    t.conn.held = 0


cdef uint32_t overflow_add(Chunks *c, TcpFlow *t, const uint8_t *data, uint32_t size) noexcept nogil:
    """Append as much of `size` bytes as the pool takes; returns how many."""
    cdef uint32_t done = 0, room, link
    while done < size:
        if t.tail == CHUNK_NONE or t.tail_used == CHUNK:
            link = chunk_take(c)
            if link == CHUNK_NONE:
                break
            if t.tail == CHUNK_NONE:
                t.head = link
                t.head_offset = 0
            else:
                c.next[t.tail - 1] = link
            t.tail = link
            t.tail_used = 0
        room = CHUNK - t.tail_used
        if room > size - done:
            room = size - done
        memcpy(c.memory + <size_t> (t.tail - 1) * CHUNK + t.tail_used, data + done, room)
        t.tail_used += room
        done += room
    return done


cdef int overflow_drain(Chunks *c, Flow *flow) noexcept nogil:
    """Hand what is held to the socket. 0, or -errno of a socket that is done for."""
    cdef TcpFlow *t = &flow.u.tcp
    cdef iovec[DRAIN_IOV] iov
    cdef msghdr message
    cdef uint32_t link, end, used
    cdef ssize_t n
    cdef int pieces
    while t.head:
        pieces = 0
        link = t.head
        while link and pieces < DRAIN_IOV:
            used = t.head_offset if link == t.head else 0
            end = t.tail_used if link == t.tail else CHUNK
            iov[pieces].iov_base = c.memory + <size_t> (link - 1) * CHUNK + used
            iov[pieces].iov_len = end - used
            pieces += 1
            link = c.next[link - 1]
        memset(&message, 0, sizeof(message))
        message.msg_iov = iov
        message.msg_iovlen = pieces
        n = sendmsg(flow.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        if n < 0:
            if errno == EINTR:
                continue
            return 0 if errno == EAGAIN or errno == ENOBUFS else -errno
        t.conn.held -= <uint32_t> n
        while n:
            end = t.tail_used if t.head == t.tail else CHUNK
            if n < end - t.head_offset:
                t.head_offset += <uint32_t> n
                break
            n -= end - t.head_offset
            link = c.next[t.head - 1]
            chunk_return(c, t.head)
            t.head = link
            t.head_offset = 0
            if not link:
                t.tail = CHUNK_NONE
    return 0
