"""Interface of the TCP translation machine (`tcp.pyx`): state, segment in, actions out. No system call, no clock."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from bucatini.datapath.ranges cimport Ranges

cdef enum TcpState:
    TCP_CLOSED
    TCP_CONNECTING
    TCP_SYN_RCVD
    TCP_SYN_SENT
    TCP_ESTABLISHED

cdef enum TcpFlag:
    TF_GUEST_FIN = 0x01  # the guest's FIN was accepted, in sequence
    TF_HOST_EOF = 0x02  # the host socket has no more data: our FIN follows snd_max
    TF_FIN_SENT = 0x04  # our FIN has been sent at least once; its number is snd_max - 1
    TF_FIN_ACKED = 0x08
    TF_WINDOW_SCALING = 0x10  # both ends sent the option
    TF_KEEPALIVE = 0x20  # the guest probes: the host socket does so too
    TF_PENDING = 0x40  # the host socket has data that the guest's window did not take
    TF_SHUT_DONE = 0x80  # the host socket was shut for writing
    TF_TIMESTAMPS = 0x100  # both ends sent the option (RFC 7323 §3.2)
    TF_SACK = 0x200  # the guest takes selective acknowledgements, and sends them (RFC 2018)
    TF_RECOVERY = 0x400  # holes below `recover` are being filled
    TF_FIN_KEPT = 0x800  # the guest's FIN came out of order: it is at `fin_at`

cdef enum TcpAction:
    TA_ACK = 0x0001  # a pure ACK, at once
    TA_ACK_BATCH = 0x0002  # one ACK when the batch is through
    TA_RST = 0x0004  # RST to the guest
    TA_SYN = 0x0008  # SYN to the guest
    TA_SYNACK = 0x0010
    TA_FIN = 0x0020  # FIN to the guest, at `tcp_fin_seq`
    TA_PROBE = 0x0040  # an empty segment numbered snd_una - 1: window probe or keep-alive
    TA_ACCEPT = 0x0080  # payload[offset : offset + length] goes to the host socket
    TA_DISCARD = 0x0100  # `discard` bytes at the head of the host socket are acknowledged
    TA_REWIND = 0x0200  # send again from snd_una on
    TA_PUMP = 0x0400  # there may be room: try to send
    TA_SHUTDOWN = 0x0800  # shut the host socket for writing
    TA_CLOSE = 0x1000  # all is said in both directions: close in peace
    TA_ABORT = 0x2000  # reset the host's end and forget the flow
    TA_KEEPALIVE = 0x4000  # switch SO_KEEPALIVE on
    TA_NEW = 0x8000  # the segment opens a new connection of the same addresses and ports
    TA_RST_REPLY = 0x10000  # RST answering this segment, RFC 9293 §3.5.2
    TA_KEEP = 0x20000  # payload[offset : offset + length] is out of order: keep it if there is room, then `tcp_kept`
    TA_FETCH = 0x40000  # the hole in front of what is kept is filled: `tcp_fetch`
    TA_REPAIR = 0x80000  # send the holes again that `tcp_hole` names

cdef enum TcpDefer:  # counters that the machine wants moved, one bit each
    TC_OUT_OF_ORDER = 1
    TC_DUPLICATE = 2
    TC_AFTER_FIN = 4
    TC_CHALLENGE = 8
    TC_FAST_RETRANSMIT = 16
    TC_RETRANSMIT = 32
    TC_PROBE = 64
    TC_KEEPALIVE = 128
    TC_RESET_BY_GUEST = 256
    TC_TIMED_OUT = 512
    TC_PAWS = 1024

cdef struct TcpSegment:  # what the machine sees of a segment; host order
    uint32_t seq
    uint32_t ack
    uint32_t length  # bytes of payload
    uint16_t window  # unscaled
    uint8_t flags  # TH_*
    const uint8_t *options
    uint32_t options_length

cdef struct TcpActions:
    uint32_t what  # TA_*
    uint32_t offset  # TA_ACCEPT, TA_KEEP: first byte of the payload that is new
    uint32_t length  # bytes
    uint32_t discard  # TA_DISCARD: bytes
    uint32_t counted  # TC_*

cdef struct TcpConn:
    uint32_t iss  # our initial sequence number towards the guest
    uint32_t irs  # the guest's
    uint32_t snd_una  # oldest byte the guest has not acknowledged
    uint32_t snd_nxt  # next byte to send; falls back to snd_una when sending again
    uint32_t snd_max  # highest number sent + 1, with SYN and FIN
    uint32_t snd_wnd  # bytes the guest takes from snd_una on
    uint32_t snd_wnd_max  # largest seen
    uint32_t snd_wl1  # number of the segment of the last window update
    uint32_t snd_wl2  # its acknowledgement
    uint32_t rcv_nxt  # next byte expected
    uint32_t rcv_adv  # right edge of the window we advertised; never moves left
    uint32_t held  # bytes accepted that the host socket did not take yet
    uint32_t bound  # most of `held`
    uint32_t ack_sent  # acknowledgement in the last segment of ours
    uint32_t ts_recent  # the guest's timestamp that we echo
    uint32_t recover  # the end of what was sent when sending again began
    uint32_t repaired  # holes below it were sent again in this pass
    uint32_t repair_max  # `snd_max` when this pass began
    uint32_t fin_at  # TF_FIN_KEPT
    Ranges kept  # data of the guest that came out of order
    Ranges sacked  # ours that the guest has, behind holes
    uint64_t deadline  # ns, of the running timer; 0: none
    uint64_t last_heard  # ns, last segment of the guest
    uint16_t mss  # largest payload towards the guest, bytes
    uint16_t our_mss  # announced to the guest, bytes
    uint8_t snd_wscale  # shift of the guest's window field
    uint8_t rcv_wscale  # shift of ours
    uint16_t flags  # TF_*
    uint8_t state  # TcpState
    uint8_t dupacks
    uint8_t retries  # timeouts in a row
    uint8_t probes  # keep-alives unanswered

cdef enum:
    TCP_WSCALE = 7  # ours: windows up to 8 MiB

# Serial number arithmetic, RFC 9293 §3.4
cdef inline bint seq_lt(uint32_t a, uint32_t b) noexcept nogil:
    return <int> (a - b) < 0

cdef inline bint seq_le(uint32_t a, uint32_t b) noexcept nogil:
    return <int> (a - b) <= 0

cdef inline bint seq_gt(uint32_t a, uint32_t b) noexcept nogil:
    return <int> (a - b) > 0

cdef inline bint seq_ge(uint32_t a, uint32_t b) noexcept nogil:
    return <int> (a - b) >= 0

cdef inline uint32_t tcp_fin_seq(const TcpConn *c) noexcept nogil:
    """Number of our FIN (TF_FIN_SENT)."""
    return c.snd_max - 1

cdef void tcp_from_guest(TcpConn *c, const TcpSegment *s, uint32_t iss, uint16_t our_mss, uint32_t bound,
                         uint64_t now) noexcept nogil
cdef void tcp_to_guest(TcpConn *c, uint32_t iss, uint16_t our_mss, uint32_t bound, uint64_t now,
                       TcpActions *a) noexcept nogil
cdef void tcp_connected(TcpConn *c, uint64_t now, TcpActions *a) noexcept nogil
cdef void tcp_segment(TcpConn *c, const TcpSegment *s, uint64_t now, TcpActions *a) noexcept nogil
cdef void tcp_refused(TcpConn *c, uint32_t length) noexcept nogil
cdef void tcp_held(TcpConn *c, uint32_t held, TcpActions *a) noexcept nogil
cdef void tcp_kept(TcpConn *c, uint32_t seq, uint32_t length) noexcept nogil
cdef uint32_t tcp_fetch(TcpConn *c) noexcept nogil
cdef uint32_t tcp_hole(TcpConn *c, uint32_t *seq) noexcept nogil
cdef void tcp_repaired(TcpConn *c, uint32_t seq, uint32_t length) noexcept nogil
cdef uint32_t tcp_room(const TcpConn *c) noexcept nogil
cdef void tcp_sent(TcpConn *c, uint32_t length, uint64_t now) noexcept nogil
cdef void tcp_blocked(TcpConn *c, uint64_t now) noexcept nogil
cdef void tcp_drained(TcpConn *c) noexcept nogil
cdef uint32_t tcp_ack_seq(const TcpConn *c) noexcept nogil
cdef void tcp_host_eof(TcpConn *c, uint64_t now, TcpActions *a) noexcept nogil
cdef void tcp_timeout(TcpConn *c, uint64_t now, TcpActions *a) noexcept nogil
cdef uint16_t tcp_window(TcpConn *c) noexcept nogil
