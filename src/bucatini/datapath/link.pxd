"""The guest's link as the packet path sees it: a few calls that every kind of link answers.

Frames begin with the Ethernet header. What offload says about a frame travels as a `vnet_hdr`: the tap knows it
natively, a stream link completes checksums and segments itself. Buffers belong to the link; those of received frames
are valid until the next `receive`. Capture, tracing and fault injection are links that wrap another (`inner`); `flush`,
`more`, `waiting` and `blocked` are the innermost one's (`Worker.wire`).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from bucatini.datapath.counters cimport Counters
from bucatini.datapath.headers cimport vnet_hdr
from bucatini.datapath.syscalls cimport iovec

cdef enum:
    LINK_BATCH = 32  # frames taken per call of `receive`
    LINK_IOV_MAX = 72  # iovecs of one `send`
    LINK_ROOM = 65589  # bytes that `reserve` gives room for: Ethernet, IPv6 and 65535 bytes behind it

cdef enum LinkFeature:
    LINK_TSO = 1  # takes TCP superframes
    LINK_USO = 2  # takes runs of UDP datagrams as one superframe

cdef struct Frame:  # a received frame
    uint8_t *data
    uint32_t length  # bytes, >= 0, not yet checked against anything
    vnet_hdr vnet

cdef struct Link

# Takes up to `limit` (<= LINK_BATCH) frames; returns how many, 0 when there is none now, -errno when the link failed.
ctypedef int (*receive_fn)(Link *link, Frame *frames, int limit) noexcept nogil
# Returns room for one frame of up to LINK_ROOM bytes; valid until the next call on the link.
ctypedef uint8_t *(*reserve_fn)(Link *link) noexcept nogil
# Sends `length` bytes of the reserved room (short frames are padded); returns 0 or -errno: then the frame is lost.
ctypedef int (*commit_fn)(Link *link, uint32_t length, const vnet_hdr *vnet) noexcept nogil
# Sends a frame gathered from iov[1..count-1]; iov[0] is the link's own to fill; 0 or -errno.
ctypedef int (*send_fn)(Link *link, iovec *iov, int count, const vnet_hdr *vnet) noexcept nogil

# Gives the kernel what `commit` and `send` have gathered; called at the end of a turn.
ctypedef void (*flush_fn)(Link *link) noexcept nogil

cdef struct Link:
    int fd  # to poll for input, -1: nobody is there
    uint32_t features  # LINK_*
    receive_fn receive
    reserve_fn reserve
    commit_fn commit
    send_fn send
    flush_fn flush  # NULL: every frame leaves at once
    bint more  # `receive` has frames for which the kernel need not be asked
    bint waiting  # what was gathered waits for the descriptor to take it
    bint blocked  # so much waits that data should stay where it is
    Link *inner  # the wrapped link, or NULL
    uint64_t wake_at  # ns, when `receive` wants to be called although nothing came; 0: never
    Counters *counters  # frames and bytes both ways, and what is lost towards the guest, count here
    void *state  # the link's own
