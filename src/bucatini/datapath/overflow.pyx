"""The guest's data that the host's socket has not got yet: a pool of blocks (`CHUNK`), mapped once, two chains a flow.

`head` to `tail` is what was accepted and the socket did not take: in order, appended to at the tail. `kept` is what
came out of order, sorted by sequence number; when the hole in front is filled its blocks move over to the first chain
as they are. Pages are used only by what stalls. When the pool is empty less is taken than was given; what is out of
order may not have its last quarter (`KEEP_LEAST`), and of one flow not more than `KEEP_MOST` blocks.
"""

# syscalls serve: sendmsg

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from bucatini.datapath.flow cimport TcpFlow
from bucatini.datapath.syscalls cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, MSG_DONTWAIT, MSG_NOSIGNAL, PROT_READ, PROT_WRITE, iovec,
    mmap, msghdr, munmap, sendmsg, ssize_t,
)
from bucatini.datapath.tcp cimport seq_lt


cdef extern from "<errno.h>" nogil:
    int errno, EAGAIN, EINTR, ENOBUFS, ENOMEM


cdef enum:
    CHUNK_NONE = 0  # chains hold index + 1
    KEEP_LEAST = CHUNKS // 4  # chunks that what is out of order leaves to what was accepted: only the first comes again
    KEEP_MOST = 64  # chunks of one flow: pieces that come in descending order take one each, however small they are
    DRAIN_IOV = 64  # blocks handed to a socket at once


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


cdef inline uint8_t *block(Chunks *c, uint32_t link) noexcept nogil:
    return c.memory + <size_t> (link - 1) * CHUNK


cdef uint32_t chunk_take(Chunks *c) noexcept nogil:
    """Return an empty chunk (index + 1), CHUNK_NONE when there is none."""
    cdef uint32_t link = c.free
    if link:
        c.free = c.chunks[link - 1].next
    elif c.fresh < CHUNKS:
        c.fresh += 1
        link = c.fresh
    else:
        return CHUNK_NONE
    memset(&c.chunks[link - 1], 0, sizeof(Chunk))
    c.available -= 1
    return link


cdef uint32_t chunk_return(Chunks *c, uint32_t link) noexcept nogil:
    """Give a chunk back; returns the one that followed it."""
    cdef uint32_t following = c.chunks[link - 1].next
    c.chunks[link - 1].next = c.free
    c.free = link
    c.available += 1
    return following


cdef uint32_t chunk_fill(Chunks *c, uint32_t link, const uint8_t *data, uint32_t size) noexcept nogil:
    """Append to a chunk what it has room for; returns how many bytes."""
    cdef Chunk *chunk = &c.chunks[link - 1]
    cdef uint32_t room = CHUNK - chunk.end
    if room > size:
        room = size
    memcpy(block(c, link) + chunk.end, data, room)
    chunk.end += room
    return room


cdef void overflow_forget(Chunks *c, TcpFlow *t) noexcept nogil:
    while t.kept:
        t.kept = chunk_return(c, t.kept)
    t.kept_chunks = 0


cdef void overflow_drop(Chunks *c, TcpFlow *t) noexcept nogil:
    while t.head:
        t.head = chunk_return(c, t.head)
    overflow_forget(c, t)
    t.tail = CHUNK_NONE
    t.conn.held = 0


cdef inline void append(Chunks *c, TcpFlow *t, uint32_t link) noexcept nogil:
    """Put a chunk behind those that are held."""
    c.chunks[link - 1].next = CHUNK_NONE
    if t.tail == CHUNK_NONE:
        t.head = link
    else:
        c.chunks[t.tail - 1].next = link
    t.tail = link


cdef uint32_t overflow_add(Chunks *c, TcpFlow *t, const uint8_t *data, uint32_t size) noexcept nogil:
    cdef uint32_t done = 0, link
    while done < size:
        if t.tail == CHUNK_NONE or c.chunks[t.tail - 1].end == CHUNK:
            link = chunk_take(c)
            if link == CHUNK_NONE:
                break
            append(c, t, link)
        done += chunk_fill(c, t.tail, data + done, size - done)
    return done


cdef int overflow_drain(Chunks *c, Flow *flow) noexcept nogil:
    cdef TcpFlow *t = &flow.u.tcp
    cdef iovec[DRAIN_IOV] iov
    cdef msghdr message
    cdef Chunk *chunk
    cdef uint32_t link
    cdef ssize_t n
    cdef int pieces
    while t.head:
        pieces = 0
        link = t.head
        while link and pieces < DRAIN_IOV:
            chunk = &c.chunks[link - 1]
            iov[pieces].iov_base = block(c, link) + chunk.first
            iov[pieces].iov_len = chunk.end - chunk.first
            pieces += 1
            link = chunk.next
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
            chunk = &c.chunks[t.head - 1]
            if n < chunk.end - chunk.first:
                chunk.first += <uint16_t> n
                break
            n -= chunk.end - chunk.first
            t.head = chunk_return(c, t.head)
            if not t.head:
                t.tail = CHUNK_NONE
    return 0


cdef uint32_t overflow_keep(Chunks *c, TcpFlow *t, uint32_t seq, const uint8_t *data, uint32_t size) noexcept nogil:
    cdef uint32_t done = 0, previous = CHUNK_NONE, link = t.kept, fresh
    while link and seq_lt(c.chunks[link - 1].seq, seq):
        previous = link
        link = c.chunks[link - 1].next
    if previous and c.chunks[previous - 1].seq + c.chunks[previous - 1].end == seq:
        done = chunk_fill(c, previous, data, size)
    while done < size and c.available > KEEP_LEAST and t.kept_chunks < KEEP_MOST:
        fresh = chunk_take(c)
        t.kept_chunks += 1
        c.chunks[fresh - 1].seq = seq + done
        c.chunks[fresh - 1].next = link
        if previous:
            c.chunks[previous - 1].next = fresh
        else:
            t.kept = fresh
        previous = fresh
        done += chunk_fill(c, fresh, data + done, size - done)
    return done


cdef void overflow_fetch(Chunks *c, TcpFlow *t, uint32_t start, uint32_t end) noexcept nogil:
    cdef Chunk *chunk
    cdef uint32_t link, following, skip
    while t.kept and seq_lt(c.chunks[t.kept - 1].seq, end):
        link = t.kept
        t.kept_chunks -= 1
        chunk = &c.chunks[link - 1]
        skip = start - chunk.seq if seq_lt(chunk.seq, start) else 0
        following = chunk.next
        if skip >= chunk.end:
            t.kept = chunk_return(c, link)
            continue
        chunk.first = <uint16_t> skip
        t.conn.held += chunk.end - skip
        append(c, t, link)
        t.kept = following
