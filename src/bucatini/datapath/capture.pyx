"""Links that wrap another link: what `--pcap` and `--trace` see is what passed, in the order it passed.

Capture writes the classic pcap format (draft-ietf-opsawg-pcap) with nanoseconds, link type Ethernet, one record per
frame; a superframe is one record. A checksum that was left to offload is completed in the copy, so that a reader finds
nothing to complain about. A capture that cannot be written ends; the traffic goes on.

The trace takes the GIL for each frame: it is for looking, not for speed.
"""

# syscalls serve: write clock_gettime

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from bucatini.datapath.checksum cimport checksum_add, checksum_fold
from bucatini.datapath.headers cimport ETH_MIN, VNET_NEEDS_CSUM, vnet_hdr
from bucatini.datapath.link cimport LINK_ROOM, Frame
from bucatini.datapath.syscalls cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, iovec, mmap, munmap, timespec,
    write,
)


cdef extern from "<errno.h>" nogil:
    int errno, ENOMEM


cdef extern from "<time.h>" nogil:
    int clock_gettime(int clock, timespec *value)
    int CLOCK_REALTIME


cdef struct PcapHeader:
    uint32_t magic
    uint16_t major
    uint16_t minor
    uint32_t zone
    uint32_t accuracy
    uint32_t snap_length
    uint32_t link_type

cdef struct PcapRecord:
    uint32_t seconds
    uint32_t nanoseconds
    uint32_t captured
    uint32_t length

cdef struct WrapState:
    int fd  # of the capture, -1: ended
    void *trace  # Python callable, borrowed
    uint8_t buffer[LINK_ROOM + 16]  # a record


cdef WrapState *wrap(Link *link, Link *inner) noexcept nogil:
    """Make `link` look like `inner`; the caller sets what differs. NULL: no memory."""
    cdef WrapState *state = <WrapState *> mmap(NULL, sizeof(WrapState), PROT_READ | PROT_WRITE,
                                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if state == <WrapState *> MAP_FAILED:
        return NULL
    memcpy(link, inner, sizeof(Link))
    link.inner = inner
    link.state = state
    return state


cdef uint32_t gather(uint8_t *out, const iovec *iov, int count, const vnet_hdr *vnet) noexcept nogil:
    """Copy a frame and complete its checksum; returns its length."""
    cdef uint32_t length = 0, start = vnet.csum_start, field
    cdef uint16_t sum
    cdef int i
    for i in range(count):
        if length + iov[i].iov_len > LINK_ROOM:
            break
        memcpy(out + length, iov[i].iov_base, iov[i].iov_len)
        length += <uint32_t> iov[i].iov_len
    field = start + vnet.csum_offset
    if vnet.flags & VNET_NEEDS_CSUM and field + 2 <= length:
        # The field holds the pseudo-header's sum: adding everything gives the checksum
        sum = ~checksum_fold(checksum_add(0, out + start, length - start))
        memcpy(out + field, &sum, 2)
    return length


cdef void record(WrapState *state, const iovec *iov, int count, const vnet_hdr *vnet) noexcept nogil:
    cdef PcapRecord *header = <PcapRecord *> state.buffer
    cdef timespec now
    cdef uint32_t length
    if state.fd < 0:
        return
    length = gather(state.buffer + sizeof(PcapRecord), iov, count, vnet)
    clock_gettime(CLOCK_REALTIME, &now)
    header.seconds = <uint32_t> now.tv_sec
    header.nanoseconds = <uint32_t> now.tv_nsec
    header.captured = length
    header.length = length
    if write(state.fd, state.buffer, sizeof(PcapRecord) + length) != <ssize_t> (sizeof(PcapRecord) + length):
        state.fd = -1


cdef int capture_receive(Link *link, Frame *frames, int limit) noexcept nogil:
    cdef int n = link.inner.receive(link.inner, frames, limit)
    cdef iovec iov
    cdef int i
    for i in range(n):
        iov.iov_base = frames[i].data
        iov.iov_len = frames[i].length
        record(<WrapState *> link.state, &iov, 1, &frames[i].vnet)
    return n


cdef uint8_t *wrapped_reserve(Link *link) noexcept nogil:
    return link.inner.reserve(link.inner)


cdef int capture_commit(Link *link, uint32_t length, const vnet_hdr *vnet) noexcept nogil:
    cdef iovec iov
    cdef uint8_t *frame = link.inner.reserve(link.inner)
    if length < ETH_MIN:  # as it will be on the wire
        memset(frame + length, 0, ETH_MIN - length)
        length = ETH_MIN
    iov.iov_base = frame
    iov.iov_len = length
    record(<WrapState *> link.state, &iov, 1, vnet)
    return link.inner.commit(link.inner, length, vnet)


cdef int capture_send(Link *link, iovec *iov, int count, const vnet_hdr *vnet) noexcept nogil:
    record(<WrapState *> link.state, iov + 1, count - 1, vnet)
    return link.inner.send(link.inner, iov, count, vnet)


cdef int capture_open(Link *link, Link *inner, int fd) noexcept nogil:
    cdef WrapState *state = wrap(link, inner)
    cdef PcapHeader header
    if state == NULL:
        return -ENOMEM
    state.fd = fd
    header.magic = 0xA1B23C4DU  # nanoseconds
    header.major = 2
    header.minor = 4
    header.zone = 0
    header.accuracy = 0
    header.snap_length = 262144
    header.link_type = 1  # LINKTYPE_ETHERNET
    link.receive = capture_receive
    link.reserve = wrapped_reserve
    link.commit = capture_commit
    link.send = capture_send
    return 0 if write(fd, &header, sizeof(header)) == <ssize_t> sizeof(header) else -errno


cdef void capture_close(Link *link) noexcept nogil:
    munmap(link.state, sizeof(WrapState))


cdef void tell(WrapState *state, str direction, const iovec *iov, int count, const vnet_hdr *vnet) noexcept with gil:
    """Hand a copy of a frame to the callable; what it raises is its own affair."""
    cdef uint32_t length = gather(state.buffer, iov, count, vnet)
    try:
        (<object> state.trace)(direction, <bytes> state.buffer[:length])
    except BaseException:
        pass


cdef void tell_in(WrapState *state, const iovec *iov, const vnet_hdr *vnet) noexcept with gil:
    tell(state, "guest", iov, 1, vnet)


cdef void tell_out(WrapState *state, const iovec *iov, int count, const vnet_hdr *vnet) noexcept with gil:
    tell(state, "host", iov, count, vnet)


cdef int trace_receive(Link *link, Frame *frames, int limit) noexcept nogil:
    cdef int n = link.inner.receive(link.inner, frames, limit)
    cdef iovec iov
    cdef int i
    for i in range(n):
        iov.iov_base = frames[i].data
        iov.iov_len = frames[i].length
        tell_in(<WrapState *> link.state, &iov, &frames[i].vnet)
    return n


cdef int trace_commit(Link *link, uint32_t length, const vnet_hdr *vnet) noexcept nogil:
    cdef iovec iov
    iov.iov_base = link.inner.reserve(link.inner)
    iov.iov_len = length
    tell_out(<WrapState *> link.state, &iov, 1, vnet)
    return link.inner.commit(link.inner, length, vnet)


cdef int trace_send(Link *link, iovec *iov, int count, const vnet_hdr *vnet) noexcept nogil:
    tell_out(<WrapState *> link.state, iov + 1, count - 1, vnet)
    return link.inner.send(link.inner, iov, count, vnet)


cdef int trace_open(Link *link, Link *inner, void *trace) noexcept nogil:
    cdef WrapState *state = wrap(link, inner)
    if state == NULL:
        return -ENOMEM
    state.trace = trace
    link.receive = trace_receive
    link.reserve = wrapped_reserve
    link.commit = trace_commit
    link.send = trace_send
    return 0


cdef void trace_close(Link *link) noexcept nogil:
    munmap(link.state, sizeof(WrapState))
