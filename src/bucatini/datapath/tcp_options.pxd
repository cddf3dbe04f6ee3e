"""Interface of TCP's options (`tcp_options.pyx`)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from bucatini.datapath.tcp cimport TcpConn

cdef enum:
    MSS_DEFAULT = 536  # bytes, RFC 9293 §3.7.1
    TCP_OPTIONS_MAX = 40  # bytes, RFC 9293 §3.1
    TCP_TIMESTAMPS_SIZE = 12  # bytes, of the option with its padding
    BLOCKS_MAX = 4

cdef struct SegmentOptions:  # what a segment of an established connection says besides
    bint timestamp  # there is one, and timestamps were negotiated
    uint32_t value  # of it
    int blocks  # of a selective acknowledgement
    uint32_t start[BLOCKS_MAX]
    uint32_t end[BLOCKS_MAX]

# Takes the options of the guest's SYN or SYN-ACK and decides which are in use.
cdef void tcp_read_syn(TcpConn *c, const uint8_t *p, uint32_t size) noexcept nogil
cdef void tcp_read_options(const TcpConn *c, const uint8_t *p, uint32_t size, SegmentOptions *o) noexcept nogil
# Writes the options of our SYN or SYN-ACK; returns their size, a multiple of 4, at most TCP_OPTIONS_MAX.
cdef uint32_t tcp_syn_options(const TcpConn *c, uint64_t now, uint8_t *out) noexcept nogil
# Likewise of any other segment; `blocks`: also what was kept out of order, the latest first (RFC 2018 §4).
cdef uint32_t tcp_options(const TcpConn *c, bint blocks, uint64_t now, uint8_t *out) noexcept nogil
