"""A link that wraps another and makes faults both ways: losses, duplicates, reordering, corruption, truncation.

What happens to a frame is drawn from a seeded generator of its direction (xorshift64*), a fixed number of draws for
each frame: the same seed and the same frames give the same faults. For tests and for debugging (`--fault`).

A frame that is to be overtaken is copied and waits; `wake_at` of the link says until when. Its place is one of
`PLACES`; when they are taken it is not delayed. A frame that is to be corrupted gets its checksum completed first, so
that the receiver has a chance to notice; the Ethernet header stays, as a card would have dropped the frame.
"""

# syscalls serve: clock_gettime

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from bucatini.datapath.checksum cimport checksum_add, checksum_fold
from bucatini.datapath.headers cimport ETH_HLEN, ETH_MIN, VNET_NEEDS_CSUM, vnet_hdr
from bucatini.datapath.link cimport LINK_BATCH, LINK_ROOM, Frame
from bucatini.datapath.syscalls cimport (
    CLOCK_MONOTONIC, MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, clock_gettime,
    iovec, mmap, munmap, timespec,
)


cdef extern from "<errno.h>" nogil:
    int ENOMEM


cdef enum:
    PLACES = 64  # frames that wait, each way

cdef struct Waiting:
    uint64_t due  # ns, 0: the place is free
    uint32_t length
    vnet_hdr vnet
    uint8_t data[LINK_ROOM]

cdef struct Direction:
    uint64_t random
    Waiting places[PLACES]

cdef struct FaultState:
    uint32_t chances[FAULTS]
    uint64_t late
    Direction inbound  # from the guest
    Direction outbound
    uint8_t spare[LINK_BATCH][LINK_ROOM]  # frames of the guest that waited, for the receiver to look at
    uint8_t buffer[LINK_ROOM]


cdef inline FaultState *state(Link *link) noexcept nogil:
    return <FaultState *> link.state


cdef inline uint64_t now() noexcept nogil:
    cdef timespec value
    clock_gettime(CLOCK_MONOTONIC, &value)
    return <uint64_t> value.tv_sec * 1000000000 + <uint64_t> value.tv_nsec


cdef inline uint32_t draw(Direction *d) noexcept nogil:
    cdef uint64_t x = d.random
    x ^= x >> 12
    x ^= x << 25
    x ^= x >> 27
    d.random = x
    return <uint32_t> ((x * <uint64_t> 0x2545F4914F6CDD1D) >> 32)


cdef void complete(uint8_t *data, uint32_t length, vnet_hdr *vnet) noexcept nogil:
    """Fill in a checksum that was left to offload."""
    cdef uint32_t start = vnet.csum_start, field = start + vnet.csum_offset
    cdef uint16_t sum
    if vnet.flags & VNET_NEEDS_CSUM and start <= length and field + 2 <= length:
        sum = ~checksum_fold(checksum_add(0, data + start, length - start))
        memcpy(data + field, &sum, 2)
    memset(vnet, 0, sizeof(vnet_hdr))


cdef struct Fate:
    bint lost
    bint twice
    bint late
    bint corrupt
    bint cut
    uint32_t where


cdef Fate decide(FaultState *s, Direction *d) noexcept nogil:
    cdef Fate fate
    fate.lost = draw(d) < s.chances[FAULT_LOSS]
    fate.twice = draw(d) < s.chances[FAULT_DUPLICATE]
    fate.late = draw(d) < s.chances[FAULT_REORDER]
    fate.corrupt = draw(d) < s.chances[FAULT_CORRUPT]
    fate.cut = draw(d) < s.chances[FAULT_TRUNCATE]
    fate.where = draw(d)
    return fate


cdef uint32_t damage(const Fate *fate, uint8_t *data, uint32_t length, vnet_hdr *vnet) noexcept nogil:
    """Corrupt and cut a frame as decided; returns its new length."""
    if (fate.corrupt or fate.cut) and length > ETH_HLEN:
        complete(data, length, vnet)
        if fate.corrupt:
            data[ETH_HLEN + fate.where % (length - ETH_HLEN)] ^= 1 << (fate.where >> 29)
        if fate.cut:
            length = ETH_HLEN + fate.where % (length - ETH_HLEN)
    return length


cdef bint wait(Link *link, Direction *d, const uint8_t *data, uint32_t length, const vnet_hdr *vnet) noexcept nogil:
    """Put a frame aside; returns whether there was a place."""
    cdef int i
    for i in range(PLACES):
        if d.places[i].due == 0 and length <= LINK_ROOM:
            d.places[i].due = now() + state(link).late
            d.places[i].length = length
            memcpy(&d.places[i].vnet, vnet, sizeof(vnet_hdr))
            memcpy(d.places[i].data, data, length)
            if link.wake_at == 0 or d.places[i].due < link.wake_at:
                link.wake_at = d.places[i].due
            return True
    return False


cdef Waiting *overdue(Direction *d, uint64_t at) noexcept nogil:
    """A frame whose time has come, NULL: none."""
    cdef int i
    for i in range(PLACES):
        if d.places[i].due and d.places[i].due <= at:
            return &d.places[i]
    return NULL


cdef void set_wake(Link *link) noexcept nogil:
    cdef FaultState *s = state(link)
    cdef int i
    link.wake_at = 0
    for i in range(PLACES):
        if s.inbound.places[i].due and (link.wake_at == 0 or s.inbound.places[i].due < link.wake_at):
            link.wake_at = s.inbound.places[i].due
        if s.outbound.places[i].due and (link.wake_at == 0 or s.outbound.places[i].due < link.wake_at):
            link.wake_at = s.outbound.places[i].due


cdef int give(Link *link, const uint8_t *data, uint32_t length, const vnet_hdr *vnet) noexcept nogil:
    """Send a frame by the inner link. Its buffer may be the inner link's own."""
    cdef uint8_t *out = link.inner.reserve(link.inner)
    if out != data:
        memcpy(out, data, length)
    return link.inner.commit(link.inner, length, vnet)


cdef int fault_receive(Link *link, Frame *frames, int limit) noexcept nogil:
    cdef FaultState *s = state(link)
    cdef uint64_t at = now()
    cdef Waiting *place
    cdef Fate fate
    cdef Frame frame
    cdef Frame[LINK_BATCH] taken
    cdef int n = 0, i, got
    if link.wake_at and at >= link.wake_at:
        while True:
            place = overdue(&s.outbound, at)
            if place == NULL:
                break
            give(link, place.data, place.length, &place.vnet)
            place.due = 0
        while n < limit // 2:
            place = overdue(&s.inbound, at)
            if place == NULL:
                break
            memcpy(s.spare[n], place.data, place.length)
            frames[n].data = s.spare[n]
            frames[n].length = place.length
            memcpy(&frames[n].vnet, &place.vnet, sizeof(vnet_hdr))
            place.due = 0
            n += 1
        set_wake(link)
    # A frame may come twice: half of the room stays free for that
    got = link.inner.receive(link.inner, taken, (limit - n + 1) // 2)
    if got < 0:
        return got if n == 0 else n
    for i in range(got):
        memcpy(&frame, &taken[i], sizeof(Frame))
        fate = decide(s, &s.inbound)
        if fate.lost:
            continue
        frame.length = damage(&fate, frame.data, frame.length, &frame.vnet)
        if fate.late and wait(link, &s.inbound, frame.data, frame.length, &frame.vnet):
            continue
        memcpy(&frames[n], &frame, sizeof(Frame))
        n += 1
        if fate.twice and n < limit:
            memcpy(&frames[n], &frame, sizeof(Frame))
            n += 1
    return n


cdef uint8_t *fault_reserve(Link *link) noexcept nogil:
    return link.inner.reserve(link.inner)


cdef int fault_commit(Link *link, uint32_t length, const vnet_hdr *vnet) noexcept nogil:
    cdef FaultState *s = state(link)
    cdef uint8_t *data = link.inner.reserve(link.inner)
    cdef Fate fate = decide(s, &s.outbound)
    cdef vnet_hdr header
    memcpy(&header, vnet, sizeof(vnet_hdr))
    if fate.lost:
        return 0
    if length < ETH_MIN:
        memset(data + length, 0, ETH_MIN - length)
        length = ETH_MIN
    length = damage(&fate, data, length, &header)
    if fate.late and wait(link, &s.outbound, data, length, &header):
        return 0
    if fate.twice:
        # The inner link's buffer is used again by the first of them
        memcpy(s.buffer, data, length)
        give(link, s.buffer, length, &header)
        return give(link, s.buffer, length, &header)
    return give(link, data, length, &header)


cdef int fault_send(Link *link, iovec *iov, int count, const vnet_hdr *vnet) noexcept nogil:
    cdef uint8_t *out = link.inner.reserve(link.inner)
    cdef uint32_t length = 0
    cdef int i
    for i in range(1, count):
        if length + iov[i].iov_len > LINK_ROOM:
            break
        memcpy(out + length, iov[i].iov_base, iov[i].iov_len)
        length += <uint32_t> iov[i].iov_len
    return fault_commit(link, length, vnet)


cdef int fault_open(Link *link, Link *inner, const uint32_t *chances, uint64_t late, uint64_t seed) noexcept nogil:
    cdef FaultState *s = <FaultState *> mmap(NULL, sizeof(FaultState), PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if s == <FaultState *> MAP_FAILED:
        return -ENOMEM
    memcpy(link, inner, sizeof(Link))
    memcpy(s.chances, chances, sizeof(s.chances))
    s.late = late
    s.inbound.random = seed * <uint64_t> 0x9E3779B97F4A7C15 + 1
    s.outbound.random = s.inbound.random ^ <uint64_t> 0xD1B54A32D192ED03
    link.inner = inner
    link.state = s
    link.wake_at = 0
    link.receive = fault_receive
    link.reserve = fault_reserve
    link.commit = fault_commit
    link.send = fault_send
    return 0


cdef void fault_close(Link *link) noexcept nogil:
    munmap(link.state, sizeof(FaultState))
