"""The tap in the guest's namespace as a link: one read or write per frame, with a virtio-net header in front.

Data. `LINK_BATCH` receive buffers and one to send from, mapped once. The header (10 bytes) and the Ethernet, IPv4 and
TCP headers are 64 bytes together: buffers are aligned to 64, so payload is too.

Failure. A tap that is down answers EIO to writes: the frame is lost and counted as `link_down`, no more (L13). A tap
that is gone (EBADFD) fails `receive`, which ends the worker.
"""

# syscalls pasta: read write writev

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from bucatini.datapath.counters cimport (
    C_BYTES_IN, C_BYTES_OUT, C_DROP_LINK_ERROR, C_DROP_LINK_FULL, C_FRAMES_IN, C_FRAMES_OUT, C_LINK_DOWN,
)
from bucatini.datapath.headers cimport ETH_MIN, vnet_hdr
from bucatini.datapath.link cimport LINK_BATCH, Frame
from bucatini.datapath.syscalls cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, iovec, mmap, munmap, read,
    write, writev,
)


cdef extern from "<errno.h>" nogil:
    int errno, EAGAIN, EINTR, EIO, ENOBUFS, ENOMEM


cdef enum:
    VNET = 10  # sizeof(vnet_hdr)
    SLOT = 65664  # VNET + LINK_ROOM, rounded up to a multiple of 64

cdef struct TapState:
    uint8_t *receive  # LINK_BATCH slots
    uint8_t *send  # one slot


cdef int tap_receive(Link *link, Frame *frames, int limit) noexcept nogil:
    cdef TapState *state = <TapState *> link.state
    cdef uint8_t *slot
    cdef ssize_t n
    cdef int i = 0, error
    while i < limit:
        slot = state.receive + i * SLOT
        n = read(link.fd, slot, SLOT)
        if n < VNET:
            if n >= 0:
                continue
            error = errno
            if error == EINTR:
                continue
            if error != EAGAIN and i == 0:
                return -error
            break
        frames[i].data = slot + VNET
        frames[i].length = <uint32_t> n - VNET
        memcpy(&frames[i].vnet, slot, VNET)
        link.counters[0][C_BYTES_IN] += frames[i].length
        i += 1
    link.counters[0][C_FRAMES_IN] += i
    return i


cdef uint8_t *tap_reserve(Link *link) noexcept nogil:
    return (<TapState *> link.state).send + VNET


cdef inline int sent(Link *link, ssize_t n) noexcept nogil:
    """Count what a write returned; 0 or -errno."""
    cdef int error
    if n >= 0:
        link.counters[0][C_FRAMES_OUT] += 1
        link.counters[0][C_BYTES_OUT] += n - VNET
        return 0
    error = errno
    if error == EIO:
        link.counters[0][C_LINK_DOWN] += 1
    elif error == EAGAIN or error == ENOBUFS:
        link.counters[0][C_DROP_LINK_FULL] += 1
    else:
        link.counters[0][C_DROP_LINK_ERROR] += 1
    return -error


cdef int tap_commit(Link *link, uint32_t length, const vnet_hdr *vnet) noexcept nogil:
    cdef uint8_t *slot = (<TapState *> link.state).send
    memcpy(slot, vnet, VNET)
    if length < ETH_MIN:
        memset(slot + VNET + length, 0, ETH_MIN - length)
        length = ETH_MIN
    return sent(link, write(link.fd, slot, VNET + length))


cdef int tap_send(Link *link, iovec *iov, int count, const vnet_hdr *vnet) noexcept nogil:
    iov[0].iov_base = <void *> vnet
    iov[0].iov_len = VNET
    return sent(link, writev(link.fd, iov, count))


cdef int tap_open(Link *link, int fd, uint32_t features, Counters *counters) noexcept nogil:
    cdef uint8_t *memory = <uint8_t *> mmap(NULL, (LINK_BATCH + 1) * SLOT + sizeof(TapState), PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    cdef TapState *state
    if memory == <uint8_t *> MAP_FAILED:
        return -ENOMEM
    state = <TapState *> (memory + (LINK_BATCH + 1) * SLOT)
    state.receive = memory
    state.send = memory + LINK_BATCH * SLOT
    memset(link, 0, sizeof(Link))
    link.fd = fd
    link.features = features
    link.receive = tap_receive
    link.reserve = tap_reserve
    link.commit = tap_commit
    link.send = tap_send
    link.counters = counters
    link.state = state
    return 0


cdef void tap_close(Link *link) noexcept nogil:
    munmap((<TapState *> link.state).receive, (LINK_BATCH + 1) * SLOT + sizeof(TapState))
