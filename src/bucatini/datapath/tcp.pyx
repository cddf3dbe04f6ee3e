"""The TCP translation machine: connection, segment, now -> actions. No system call, no clock, no memory of its own.

Purpose. Towards the guest this is one end of a TCP connection (RFC 9293); the other end is a host socket that
`tcp_io` owns. The machine says what to do with the segment's payload and with that socket; `tcp_io` does it and
tells the machine what came of it.

What it does not do. Congestion control and retransmission towards the network belong to the host's kernel; the
guest's link loses next to nothing, so towards the guest there is no congestion window. Departure: no round-trip
estimation, the first timeout is `RTO_NS` (RFC 6298 asks for 1 s at first).

Loss towards the guest. With selective acknowledgements (RFC 2018, RFC 6675) a hole is sent again when what was sent
behind it arrived: `DUPACKS` segments of it, or all there is. `sacked` are the ranges that the guest has, `repaired`
is how far the holes of this pass went out again; when something sent after them arrives and they did not, a new pass
begins. Without, and after a second timeout, everything from `snd_una` on is sent again.

Loss from the guest. What comes out of order within the window is kept (`kept`, at most `RANGES` ranges) and told to
the guest in every acknowledgement until the hole is filled. With timestamps, segments from an earlier turn of the
sequence numbers are known by their age (PAWS, RFC 7323 §5).

Data. Bytes from the host stay in its socket until the guest has acknowledged them: `snd_una` is the head of the
socket's queue, `snd_nxt - snd_una` the peek offset. Bytes from the guest are accepted (`rcv_nxt` moves) when they
are handed to the host socket or to the overflow (`held`, at most `bound`). The advertised right edge `rcv_adv`
never moves left.

States and events.

    state           opened by    moves on
    TCP_CONNECTING  guest's SYN  `tcp_connected` -> TCP_SYN_RCVD; RST of the guest -> closed. Nothing is sent
    TCP_SYN_RCVD                 its ACK -> TCP_ESTABLISHED; SYN again: SYN-ACK again; timer: SYN-ACK again
    TCP_SYN_SENT    host         SYN-ACK -> TCP_ESTABLISHED; SYN -> TCP_SYN_RCVD; RST -> closed; timer: SYN again
    TCP_ESTABLISHED              half-closes are flags (TF_GUEST_FIN, TF_HOST_EOF, TF_FIN_SENT, TF_FIN_ACKED);
                                 both ways done: TA_CLOSE

Timers. One deadline at a time: SYN (`SYN_RTO_NS`, doubled, `SYN_RETRIES`), retransmission (`RTO_NS`, doubled up to
`RTO_MAX_NS`, `RETRIES`), zero window probe (the same pace, for as long as the guest answers), keep-alive (after
`KEEPALIVE_IDLE_NS` of silence, every `KEEPALIVE_NS`, `KEEPALIVE_PROBES`): a guest that is gone is noticed, an idle
one kept.

Failure. A guest that answers no more: TA_RST to it, TA_ABORT to the host. There is no other way to fail: whatever a
segment says, the answer is an action or nothing.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from bucatini.datapath.headers cimport TH_ACK, TH_FIN, TH_RST, TH_SYN
from bucatini.datapath.ranges cimport (
    ranges_add, ranges_before, ranges_behind, ranges_bytes, ranges_cut, ranges_fits,
)
from bucatini.datapath.tcp_options cimport (
    MSS_DEFAULT, TCP_OPTIONS_MAX, SegmentOptions, tcp_options, tcp_read_options, tcp_read_syn, tcp_syn_options,
)

cdef enum:
    SYN_RETRIES = 6
    RETRIES = 12
    KEEPALIVE_PROBES = 9
    DUPACKS = 3  # RFC 5681 §3.2

cdef uint64_t MS = 1000000
cdef uint64_t RTO_NS = 200 * MS
cdef uint64_t RTO_MAX_NS = 60000 * MS
cdef uint64_t SYN_RTO_NS = 1000 * MS  # RFC 6298 §2.1
cdef uint64_t KEEPALIVE_IDLE_NS = 300000 * MS
cdef uint64_t KEEPALIVE_NS = 75000 * MS
cdef uint64_t PAWS_IDLE_NS = 24 * 86400 * 1000 * MS  # RFC 7323 §5.5: older timestamps say nothing


cdef inline uint32_t minimum(uint32_t a, uint32_t b) noexcept nogil:
    return a if a < b else b


cdef inline uint64_t backoff(uint64_t first, uint8_t retries) noexcept nogil:
    cdef uint64_t value = first << (retries if retries < 16 else 16)
    return value if value < RTO_MAX_NS else RTO_MAX_NS


cdef inline void start(TcpConn *c, uint32_t iss, uint16_t our_mss, uint32_t bound, uint64_t now) noexcept nogil:
    memset(c, 0, sizeof(TcpConn))
    c.iss = iss
    c.snd_una = iss
    c.snd_nxt = iss
    c.snd_max = iss
    c.our_mss = our_mss
    c.mss = MSS_DEFAULT
    c.recover = iss
    c.bound = bound
    c.last_heard = now


cdef void tcp_from_guest(TcpConn *c, const TcpSegment *s, uint32_t iss, uint16_t our_mss, uint32_t bound,
                         uint64_t now) noexcept nogil:
    """Open by the guest's SYN `s`: TCP_CONNECTING. The caller starts connect() and reports by `tcp_connected`."""
    start(c, iss, our_mss, bound, now)
    c.state = TCP_CONNECTING
    c.irs = s.seq
    c.rcv_nxt = s.seq + 1
    c.rcv_adv = c.rcv_nxt
    c.snd_wnd = s.window
    c.snd_wnd_max = s.window
    c.snd_wl1 = s.seq
    c.snd_wl2 = iss
    tcp_read_syn(c, s.options, s.options_length)


cdef void tcp_to_guest(TcpConn *c, uint32_t iss, uint16_t our_mss, uint32_t bound, uint64_t now,
                       TcpActions *a) noexcept nogil:
    """Open towards the guest: TCP_SYN_SENT."""
    a.what = TA_SYN
    a.counted = 0
    start(c, iss, our_mss, bound, now)
    c.state = TCP_SYN_SENT
    c.snd_nxt = iss + 1
    c.snd_max = iss + 1
    c.deadline = now + SYN_RTO_NS


cdef void tcp_connected(TcpConn *c, uint64_t now, TcpActions *a) noexcept nogil:
    """The host's end is connected: answer the guest's SYN."""
    a.what = TA_SYNACK
    a.counted = 0
    c.state = TCP_SYN_RCVD
    c.snd_nxt = c.iss + 1
    c.snd_max = c.iss + 1
    c.deadline = now + SYN_RTO_NS


cdef inline void established(TcpConn *c, uint64_t now, TcpActions *a) noexcept nogil:
    c.state = TCP_ESTABLISHED
    c.retries = 0
    c.deadline = now + KEEPALIVE_IDLE_NS
    a.what |= TA_PUMP


cdef inline void rest(TcpConn *c, uint64_t now) noexcept nogil:
    """Choose the timer after progress."""
    c.retries = 0
    if c.snd_una != c.snd_max:
        c.deadline = now + RTO_NS
    elif c.flags & TF_PENDING and c.snd_wnd == 0:
        c.deadline = now + RTO_NS
    else:
        c.deadline = now + KEEPALIVE_IDLE_NS


cdef inline uint32_t data_max(const TcpConn *c) noexcept nogil:
    """The end of the data that was sent, without our FIN."""
    return c.snd_max - 1 if c.flags & TF_FIN_SENT else c.snd_max


cdef inline bint is_lost(const TcpConn *c) noexcept nogil:
    """Whether enough arrived behind the first hole (RFC 6675 §4, IsLost), or all there is (RFC 5827 §3)."""
    return c.sacked.count != 0 and (c.dupacks >= DUPACKS or ranges_bytes(&c.sacked) >= DUPACKS * c.mss
                                    or c.sacked.end[c.sacked.count - 1] == data_max(c))


cdef inline void repair(TcpConn *c, TcpActions *a) noexcept nogil:
    """Begin a pass over the holes."""
    c.repaired = c.snd_una
    c.repair_max = data_max(c)
    a.what |= TA_REPAIR


cdef void recovery(TcpConn *c, TcpActions *a) noexcept nogil:
    """Enter recovery, go on with it, leave it; after every acknowledgement of a guest that sends selective ones."""
    if c.flags & TF_RECOVERY:
        if seq_ge(c.snd_una, c.recover):
            c.flags &= ~TF_RECOVERY
        elif c.sacked.count and seq_gt(c.sacked.end[c.sacked.count - 1], c.repair_max):
            repair(c, a)  # what was sent after the holes has arrived, and they have not: lost again
        else:
            a.what |= TA_REPAIR
    if not c.flags & TF_RECOVERY and is_lost(c):
        c.flags |= TF_RECOVERY
        c.recover = c.snd_max
        a.counted |= TC_FAST_RETRANSMIT
        repair(c, a)


cdef void tcp_kept(TcpConn *c, uint32_t seq, uint32_t length) noexcept nogil:
    """What TA_KEEP was about is kept."""
    if length:
        ranges_add(&c.kept, seq, seq + length)


cdef uint32_t tcp_fetch(TcpConn *c) noexcept nogil:
    """After TA_FETCH, the payload in front being accepted: returns how many kept bytes follow; they are accepted."""
    cdef uint32_t length = 0
    ranges_cut(&c.kept, c.rcv_nxt)  # what came again with what is in front, of several of them perhaps
    if c.kept.count and c.kept.start[0] == c.rcv_nxt:
        length = c.kept.end[0] - c.rcv_nxt
        c.rcv_nxt += length
        ranges_cut(&c.kept, c.rcv_nxt)
    if c.flags & TF_FIN_KEPT and seq_ge(c.rcv_nxt, c.fin_at):
        c.flags &= ~TF_FIN_KEPT
        if c.rcv_nxt == c.fin_at:
            take_fin(c)
    return length


cdef inline void take_fin(TcpConn *c) noexcept nogil:
    """The guest's FIN is the next in sequence."""
    c.rcv_nxt += 1
    if seq_lt(c.rcv_adv, c.rcv_nxt):
        c.rcv_adv = c.rcv_nxt
    c.flags |= TF_GUEST_FIN
    c.kept.count = 0  # nothing follows a FIN


cdef uint32_t tcp_hole(TcpConn *c, uint32_t *seq) noexcept nogil:
    """Return the bytes of the next hole to be sent again, from `seq` on; 0: there is none in this pass."""
    cdef uint32_t start = c.repaired
    if not c.flags & TF_RECOVERY or c.sacked.count == 0:
        return 0
    if seq_lt(start, c.snd_una):
        start = c.snd_una
    start = ranges_behind(&c.sacked, start)
    if seq_ge(start, c.sacked.end[c.sacked.count - 1]):
        return 0
    seq[0] = start
    return ranges_before(&c.sacked, start, data_max(c)) - start


cdef void tcp_repaired(TcpConn *c, uint32_t seq, uint32_t length) noexcept nogil:
    """`length` bytes of a hole were sent again."""
    c.repaired = seq + length


cdef void take_blocks(TcpConn *c, const SegmentOptions *o) noexcept nogil:
    """Note what the guest says it has; what cannot be is passed over (RFC 2018 §4, RFC 2883)."""
    cdef int i
    cdef uint32_t flight = c.snd_max - c.snd_una, start, end
    if c.snd_una == c.snd_max:
        return
    for i in range(o.blocks):
        start = o.start[i] - c.snd_una  # as distances: compared two by two, three serial numbers can form a ring
        end = o.end[i] - c.snd_una
        if start == 0 or start >= end or end > flight:
            continue
        if end > data_max(c) - c.snd_una:
            end -= 1  # our FIN, which is no data
        if start < end:
            ranges_add(&c.sacked, o.start[i], c.snd_una + end)


cdef void take_ack(TcpConn *c, const TcpSegment *s, const SegmentOptions *o, uint64_t now,
                   TcpActions *a) noexcept nogil:
    """Process the acknowledgement and window of an acceptable (or nearly: keep-alive) segment."""
    cdef uint32_t acked, seq = s.seq, window = <uint32_t> s.window << c.snd_wscale
    cdef bint moved = False, opened
    if seq_gt(s.ack, c.snd_una):
        acked = s.ack - c.snd_una
        if c.flags & TF_FIN_SENT and s.ack == c.snd_max:
            c.flags |= TF_FIN_ACKED
            acked -= 1
        if acked:
            a.what |= TA_DISCARD
            a.discard = acked
        c.snd_una = s.ack
        if seq_lt(c.snd_nxt, c.snd_una):
            c.snd_nxt = c.snd_una
        if not c.flags & TF_RECOVERY and seq_lt(c.recover, c.snd_una):
            c.recover = c.snd_una  # else it would be ahead again after 2 GiB
        c.dupacks = 0
        moved = True
        a.what |= TA_PUMP
        ranges_cut(&c.sacked, c.snd_una)
    elif s.ack == c.snd_una and s.length == 0 and not s.flags & TH_FIN and c.snd_una != c.snd_max \
            and window == c.snd_wnd and window and s.seq == c.rcv_nxt:
        if c.dupacks < 255:
            c.dupacks += 1
        # RFC 5681 §3.2, and once for what is in flight (RFC 6582 §3.2): a storm of them must not be answered in kind
        if (c.dupacks == DUPACKS and seq_ge(c.snd_una, c.recover)
                and not (c.flags & TF_SACK and (o.blocks or c.flags & TF_RECOVERY))):
            a.counted |= TC_FAST_RETRANSMIT
            rewind(c, a)
    if c.flags & TF_SACK:
        if o.blocks:
            take_blocks(c, o)
        if c.sacked.count or c.flags & TF_RECOVERY:
            recovery(c, a)
    # RFC 9293 §3.10.7.4: only a segment not older than the last update moves the window
    if s.length <= 1 and seq == c.rcv_nxt - 1:  # a keep-alive is numbered low and still news (T16)
        seq += 1
    if seq_lt(c.snd_wl1, seq) or (c.snd_wl1 == seq and seq_le(c.snd_wl2, s.ack)):
        opened = window > c.snd_wnd
        # Open again: what is not acknowledged has a timer of its own again, and the probes were no retransmissions
        if opened and (c.snd_una == c.snd_max or c.snd_wnd == 0):
            moved = True
        c.snd_wnd = window
        c.snd_wl1 = seq
        c.snd_wl2 = s.ack
        if window > c.snd_wnd_max:
            c.snd_wnd_max = window
        if opened:
            a.what |= TA_PUMP
    if moved:
        rest(c, now)
    elif c.snd_una == c.snd_max and c.snd_wnd:
        c.deadline = now + KEEPALIVE_IDLE_NS


cdef inline void rewind(TcpConn *c, TcpActions *a) noexcept nogil:
    """Go back to the oldest byte that is not acknowledged."""
    c.flags &= ~TF_RECOVERY
    c.recover = c.snd_max
    c.sacked.count = 0
    if c.flags & TF_FIN_SENT and c.snd_una == tcp_fin_seq(c):
        a.what |= TA_FIN
    else:
        c.snd_nxt = c.snd_una
        a.what |= TA_REWIND | TA_PUMP


cdef void finish(TcpConn *c, TcpActions *a) noexcept nogil:
    """Shut and close what is done."""
    if not c.flags & TF_GUEST_FIN or c.held:
        return
    if c.flags & TF_FIN_ACKED:
        a.what |= TA_CLOSE
        c.state = TCP_CLOSED
        c.deadline = 0
    elif not c.flags & TF_SHUT_DONE:
        c.flags |= TF_SHUT_DONE
        a.what |= TA_SHUTDOWN


cdef bint opening(TcpConn *c, const TcpSegment *s, uint64_t now, TcpActions *a) noexcept nogil:
    """Process a segment before TCP_ESTABLISHED; returns whether the rest of it is to be processed too."""
    if c.state == TCP_CONNECTING:
        # T3: the guest's SYN again while connect() goes on is no news
        if s.flags & TH_RST and s.seq == c.rcv_nxt:
            a.what = TA_ABORT
            a.counted |= TC_RESET_BY_GUEST
            c.state = TCP_CLOSED
        elif s.flags & TH_SYN and s.seq != c.irs:
            a.what = TA_NEW
        return False
    if c.state == TCP_SYN_SENT:
        if s.flags & TH_ACK and s.ack != c.iss + 1:
            if not s.flags & TH_RST:
                a.what = TA_RST_REPLY
            return False
        if s.flags & TH_RST:
            if s.flags & TH_ACK:
                a.what = TA_ABORT
                a.counted |= TC_RESET_BY_GUEST
                c.state = TCP_CLOSED
            return False
        if not s.flags & TH_SYN:
            return False
        c.irs = s.seq
        c.rcv_nxt = s.seq + 1
        c.rcv_adv = c.rcv_nxt
        c.snd_wnd = s.window  # never scaled in a SYN, RFC 7323 §2.2
        c.snd_wnd_max = s.window
        c.snd_wl1 = s.seq
        c.snd_wl2 = s.ack
        tcp_read_syn(c, s.options, s.options_length)
        if not s.flags & TH_ACK:  # simultaneous open, RFC 9293 §3.5
            c.state = TCP_SYN_RCVD
            c.snd_wl2 = c.iss
            a.what = TA_SYNACK
            return False
        c.snd_una = s.ack
        established(c, now, a)
        a.what |= TA_ACK
        return False
    # TCP_SYN_RCVD
    if s.flags & TH_SYN and s.seq == c.irs:
        if s.flags & TH_ACK and s.ack == c.iss + 1:  # the other half of a simultaneous open
            c.snd_una = s.ack
            established(c, now, a)
            a.what |= TA_ACK
        else:
            a.what = TA_SYNACK
        return False
    if s.flags & (TH_RST | TH_SYN) or not s.flags & TH_ACK:
        return True  # the general rules hold
    if s.ack != c.iss + 1:
        a.what = TA_RST_REPLY
        return False
    c.snd_una = s.ack
    established(c, now, a)
    return True


cdef inline void keep(TcpConn *c, const TcpSegment *s, uint32_t end, TcpActions *a) noexcept nogil:
    """Of a segment that is too early, what is not there yet (the first piece of it)."""
    cdef uint32_t start = ranges_behind(&c.kept, s.seq)
    if seq_gt(end, c.rcv_adv):
        end = c.rcv_adv
    if seq_lt(start, end) and ranges_fits(&c.kept, start):
        a.what |= TA_KEEP
        a.offset = start - s.seq
        a.length = ranges_before(&c.kept, start, end) - start


cdef void tcp_segment(TcpConn *c, const TcpSegment *s, uint64_t now, TcpActions *a) noexcept nogil:
    """Process a segment of the guest (RFC 9293 §3.10.7)."""
    cdef uint32_t end, skip, take
    cdef uint64_t silence = now - c.last_heard
    cdef SegmentOptions o
    cdef bint fin = (s.flags & TH_FIN) != 0
    a.what = 0
    a.counted = 0
    a.discard = 0
    a.length = 0
    a.offset = 0
    c.last_heard = now
    c.probes = 0
    if c.state != TCP_ESTABLISHED:
        if not opening(c, s, now, a):
            return
    tcp_read_options(c, s.options, s.options_length, &o)
    # RFC 7323 §5.3: older than what was there before, and no reset
    if o.timestamp and not s.flags & TH_RST:
        if <int> (o.value - c.ts_recent) < 0 and silence < PAWS_IDLE_NS:
            a.what |= TA_ACK
            a.counted |= TC_PAWS
            return
        if seq_le(s.seq, c.ack_sent):  # RFC 7323 §4.3
            c.ts_recent = o.value
    # First: sequence number, reset, SYN
    if s.flags & TH_RST:
        if s.seq == c.rcv_nxt:
            a.what = TA_ABORT
            a.counted |= TC_RESET_BY_GUEST
            c.state = TCP_CLOSED
        elif seq_gt(s.seq, c.rcv_nxt) and seq_lt(s.seq, c.rcv_adv):  # RFC 5961 §3.2
            a.what = TA_ACK
            a.counted |= TC_CHALLENGE
        return
    if s.flags & TH_SYN:
        # T25: after its FIN the guest may use its port again at once; else RFC 5961 §4.2
        if c.flags & TF_GUEST_FIN and seq_gt(s.seq, c.rcv_nxt):
            if c.held == 0:
                a.what = TA_NEW
            else:  # what was acknowledged would be lost: the SYN comes again
                a.counted |= TC_DUPLICATE
        else:
            a.what = TA_ACK
            a.counted |= TC_CHALLENGE
        return
    if not s.flags & TH_ACK:
        return
    if seq_gt(s.ack, c.snd_max):
        a.what |= TA_ACK
        return
    # Numbers far outside the window say nothing about ours; a keep-alive or a repeated segment still does (T16)
    if seq_lt(s.seq + s.length, c.rcv_nxt - 1) or seq_gt(s.seq, c.rcv_adv):
        a.what |= TA_ACK
        a.counted |= TC_DUPLICATE
        return
    take_ack(c, s, &o, now, a)
    end = s.seq + s.length
    if s.length or fin:
        if c.flags & TF_GUEST_FIN:
            # Its FIN again, or data behind it (T32)
            a.what |= TA_ACK
            a.counted |= TC_AFTER_FIN if seq_gt(end, c.rcv_nxt) else TC_DUPLICATE
        elif seq_gt(s.seq, c.rcv_nxt):
            a.what |= TA_ACK
            a.counted |= TC_OUT_OF_ORDER
            keep(c, s, end, a)
            if fin and seq_le(end, c.rcv_adv):
                c.flags |= TF_FIN_KEPT
                c.fin_at = end
        else:
            skip = c.rcv_nxt - s.seq
            if skip > s.length or (skip == s.length and not fin):
                # All of it was there before; a keep-alive may carry one byte of it (RFC 9293 §3.8.4)
                a.what |= TA_ACK
                a.counted |= TC_DUPLICATE
                if s.length <= 1 and not fin and s.seq == c.rcv_nxt - 1:
                    a.what |= TA_KEEPALIVE
            else:
                take = minimum(s.length - skip, c.rcv_adv - c.rcv_nxt)
                if take:
                    a.what |= TA_ACCEPT | TA_ACK_BATCH
                    a.offset = skip
                    a.length = take
                    c.rcv_nxt += take
                    if (c.kept.count and seq_le(c.kept.start[0], c.rcv_nxt)
                            or c.flags & TF_FIN_KEPT and c.rcv_nxt == c.fin_at):
                        a.what |= TA_FETCH
                if skip + take < s.length:
                    a.what |= TA_ACK  # beyond the window: say where it ends
                elif fin:
                    take_fin(c)
                    a.what = (a.what | TA_ACK_BATCH) & ~TA_FETCH
    elif s.seq == c.rcv_nxt - 1:  # keep-alive without data
        a.what |= TA_ACK | TA_KEEPALIVE
    if a.what & TA_KEEPALIVE:
        if c.flags & TF_KEEPALIVE:
            a.what &= ~TA_KEEPALIVE
        c.flags |= TF_KEEPALIVE


cdef void tcp_refused(TcpConn *c, uint32_t length) noexcept nogil:
    """Take back `length` accepted bytes (and a FIN behind them) that found no room: they were not acknowledged yet."""
    if c.flags & TF_GUEST_FIN and not c.flags & TF_SHUT_DONE:
        c.flags &= ~TF_GUEST_FIN
        c.rcv_nxt -= 1
    c.rcv_nxt -= length


cdef void tcp_held(TcpConn *c, uint32_t held, TcpActions *a) noexcept nogil:
    """Learn how many accepted bytes the host socket has not taken: after each batch, and when it took some."""
    cdef uint32_t edge
    a.what = 0
    a.counted = 0
    c.held = held
    if c.state != TCP_ESTABLISHED:
        return
    finish(c, a)
    if not c.flags & TF_GUEST_FIN and held < c.bound:
        edge = c.rcv_nxt + c.bound - held
        # A window update only for a guest that may wait for it, and when it is worth one (RFC 9293 §3.8.6.2.2)
        if c.rcv_adv - c.rcv_nxt < c.our_mss and seq_gt(edge, c.rcv_adv) and edge - c.rcv_adv >= c.bound // 2:
            a.what |= TA_ACK


cdef uint16_t tcp_window(TcpConn *c) noexcept nogil:
    """Return the window field of the next segment and remember the right edge it promises."""
    cdef uint32_t window = 0, field
    cdef uint32_t edge
    if c.held < c.bound:
        window = c.bound - c.held
    edge = c.rcv_nxt + window
    # Never to the left; to the right by at least a segment or half of all (RFC 9293 §3.8.6.2.2)
    if seq_lt(edge, c.rcv_adv) or edge - c.rcv_adv < minimum(c.our_mss, c.bound // 2):
        window = c.rcv_adv - c.rcv_nxt
    # Rounded up: rounding down would move the edge to the left (RFC 7323 §2.4)
    field = (window + (1 << c.rcv_wscale) - 1) >> c.rcv_wscale
    if field > 65535:
        field = 65535
    c.rcv_adv = c.rcv_nxt + (field << c.rcv_wscale)
    c.ack_sent = c.rcv_nxt
    return <uint16_t> field


cdef uint32_t tcp_ack_seq(const TcpConn *c) noexcept nogil:
    """Return the number of a segment without data: the next one, or the end of a window that was withdrawn.

    A guest that has dropped what was in flight and closed its window takes no segment beyond it, and nothing of it: not
    the acknowledgement either (RFC 9293 §3.10.7.4).
    """
    return c.snd_una + minimum(c.snd_max - c.snd_una, c.snd_wnd)


cdef uint32_t tcp_room(const TcpConn *c) noexcept nogil:
    """Return how many bytes of the host's data may be sent to the guest now."""
    cdef uint32_t used = c.snd_nxt - c.snd_una
    cdef uint32_t room
    if c.state != TCP_ESTABLISHED or (c.flags & TF_FIN_SENT and c.snd_nxt == c.snd_max) or c.snd_wnd <= used:
        return 0
    room = c.snd_wnd - used
    if used and room < minimum(c.mss, c.snd_wnd_max // 2):  # RFC 9293 §3.8.6.2.1
        return 0
    return room


cdef void tcp_sent(TcpConn *c, uint32_t length, uint64_t now) noexcept nogil:
    """`length` bytes from `snd_nxt` on were sent."""
    if c.snd_una == c.snd_max:
        c.retries = 0
        c.deadline = now + RTO_NS
    c.snd_nxt += length
    if seq_gt(c.snd_nxt, c.snd_max):
        c.snd_max = c.snd_nxt
    c.flags &= ~TF_PENDING


cdef void tcp_blocked(TcpConn *c, uint64_t now) noexcept nogil:
    """The host socket may have data and the guest's window has no room: probe it from time to time."""
    cdef uint64_t at = now + backoff(RTO_NS, c.retries)
    if c.flags & TF_FIN_SENT:
        return  # all that it has is in flight
    c.flags |= TF_PENDING
    if c.snd_una == c.snd_max and c.snd_wnd == 0 and c.deadline > at:
        c.deadline = at  # never later: the host may go on sending


cdef void tcp_drained(TcpConn *c) noexcept nogil:
    """The host socket has nothing but what is in flight."""
    c.flags &= ~TF_PENDING


cdef void tcp_host_eof(TcpConn *c, uint64_t now, TcpActions *a) noexcept nogil:
    """All data of the host is sent as far as `snd_nxt`: a FIN follows."""
    a.what = TA_FIN
    a.counted = 0
    c.flags = (c.flags | TF_HOST_EOF) & ~TF_PENDING
    if not c.flags & TF_FIN_SENT:
        if c.snd_una == c.snd_max:
            c.retries = 0
            c.deadline = now + RTO_NS
        c.flags |= TF_FIN_SENT
        c.snd_max = c.snd_nxt + 1
    c.snd_nxt = c.snd_max


cdef void tcp_timeout(TcpConn *c, uint64_t now, TcpActions *a) noexcept nogil:
    """The deadline has passed."""
    a.what = 0
    a.counted = 0
    if c.state == TCP_CONNECTING:
        c.deadline = 0
        return
    if c.state == TCP_SYN_SENT or c.state == TCP_SYN_RCVD:
        if c.retries >= SYN_RETRIES:
            c.state = TCP_CLOSED
            a.what = TA_ABORT | (TA_RST if c.flags & TF_WINDOW_SCALING or c.rcv_nxt else 0)
            a.counted |= TC_TIMED_OUT
            return
        c.retries += 1
        c.deadline = now + backoff(SYN_RTO_NS, c.retries)
        a.counted |= TC_RETRANSMIT
        a.what = TA_SYN if c.state == TCP_SYN_SENT else TA_SYNACK
        return
    if c.snd_una != c.snd_max and (c.snd_wnd or c.flags & TF_FIN_SENT and c.snd_una == tcp_fin_seq(c)):
        if c.retries >= RETRIES:
            c.state = TCP_CLOSED
            a.what = TA_ABORT | TA_RST
            a.counted |= TC_TIMED_OUT
            return
        c.retries += 1
        c.deadline = now + backoff(RTO_NS, c.retries)
        c.dupacks = 0
        a.counted |= TC_RETRANSMIT
        if c.retries == 1 and c.sacked.count:
            c.flags |= TF_RECOVERY
            c.recover = c.snd_max
            repair(c, a)
        else:
            rewind(c, a)
        return
    if c.snd_una != c.snd_max or (c.flags & TF_PENDING and c.snd_wnd == 0):
        # Zero window: an empty segment just left of the window, answered by an ACK that says what it is now. A guest
        # that answers may keep it closed for ever (RFC 9293 §3.8.6.1); one that does not is gone.
        if now - c.last_heard > KEEPALIVE_IDLE_NS and c.retries >= KEEPALIVE_PROBES:
            c.state = TCP_CLOSED
            a.what = TA_ABORT | TA_RST
            a.counted |= TC_TIMED_OUT
            return
        if c.retries < 255:
            c.retries += 1
        c.deadline = now + backoff(RTO_NS, c.retries)
        a.what = TA_PROBE
        a.counted |= TC_PROBE
        return
    if now - c.last_heard < KEEPALIVE_IDLE_NS:
        c.deadline = c.last_heard + KEEPALIVE_IDLE_NS
        return
    if c.probes >= KEEPALIVE_PROBES:
        c.state = TCP_CLOSED
        a.what = TA_ABORT | TA_RST
        a.counted |= TC_TIMED_OUT
        return
    c.probes += 1
    c.deadline = now + KEEPALIVE_NS
    a.what = TA_PROBE
    a.counted |= TC_KEEPALIVE


# For tests: the machine with literal segments and literal times

_ACTIONS = (
    (TA_ACK, "ack"), (TA_ACK_BATCH, "ack_batch"), (TA_RST, "rst"), (TA_SYN, "syn"), (TA_SYNACK, "synack"),
    (TA_FIN, "fin"), (TA_PROBE, "probe"), (TA_ACCEPT, "accept"), (TA_DISCARD, "discard"), (TA_REWIND, "rewind"),
    (TA_PUMP, "pump"), (TA_SHUTDOWN, "shutdown"), (TA_CLOSE, "close"), (TA_ABORT, "abort"),
    (TA_KEEPALIVE, "keepalive"), (TA_NEW, "new"), (TA_RST_REPLY, "rst_reply"), (TA_KEEP, "keep"), (TA_FETCH, "fetch"),
    (TA_REPAIR, "repair"),
)


cdef class Machine:
    """One connection of the machine. Times in ns; every event returns the set of its actions' names."""

    cdef TcpConn c
    cdef TcpActions a

    cdef set done(self):
        return {name for bit, name in _ACTIONS if self.a.what & bit}

    cdef fill(self, TcpSegment *s, int flags, seq, ack, int length, int window, bytes options):
        s.flags = flags
        s.seq = seq & 0xFFFFFFFFU
        s.ack = ack & 0xFFFFFFFFU
        s.length = length
        s.window = window
        s.options = options
        s.options_length = len(options)

    def from_guest(self, *, seq, int window=65535, bytes options=b"", iss=0, int our_mss=65480, bound=1 << 20, now=0):
        """The guest's SYN."""
        cdef TcpSegment s
        self.fill(&s, TH_SYN, seq, 0, 0, window, options)
        tcp_from_guest(&self.c, &s, iss, our_mss, bound, now)

    def to_guest(self, *, iss=0, int our_mss=65480, bound=1 << 20, now=0):
        """A connection of the host's side."""
        tcp_to_guest(&self.c, iss, our_mss, bound, now, &self.a)
        return self.done()

    def connected(self, now=0):
        """connect() has succeeded; the SYN-ACK promises 65535 bytes as `tcp_io` does."""
        tcp_connected(&self.c, now, &self.a)
        self.c.rcv_adv = self.c.rcv_nxt + minimum(self.c.bound, 65535)
        self.c.ack_sent = self.c.rcv_nxt
        return self.done()

    def segment(self, int flags, *, seq, ack=0, int length=0, int window=65535, bytes options=b"", now=0):
        """A segment of the guest."""
        cdef TcpSegment s
        self.fill(&s, flags, seq, ack, length, window, options)
        tcp_segment(&self.c, &s, now, &self.a)
        return self.done()

    def refused(self, uint32_t length):
        """Take accepted bytes back."""
        tcp_refused(&self.c, length)

    def holds(self, uint32_t held):
        """The overflow holds so much, in the middle of a batch."""
        self.c.held = held

    def held(self, uint32_t held):
        """The overflow holds so much, and the batch is through."""
        tcp_held(&self.c, held, &self.a)
        return self.done()

    def room(self):
        """Bytes that may be sent now."""
        return tcp_room(&self.c)

    def sent(self, uint32_t length, now=0):
        """Bytes were sent to the guest."""
        tcp_sent(&self.c, length, now)

    def blocked(self, now=0):
        """The host has data, the guest no room."""
        tcp_blocked(&self.c, now)

    def drained(self):
        """The host has nothing but what is in flight."""
        tcp_drained(&self.c)

    def ack_seq(self):
        """The number of a segment without data."""
        return tcp_ack_seq(&self.c)

    def eof(self, now=0):
        """The host has no more data."""
        tcp_host_eof(&self.c, now, &self.a)
        return self.done()

    def timeout(self, now):
        """The deadline has passed."""
        tcp_timeout(&self.c, now, &self.a)
        return self.done()

    def window(self):
        """The window field of the next segment."""
        return tcp_window(&self.c)

    def syn_options(self, now=0):
        """The options of our SYN or SYN-ACK."""
        cdef uint8_t[TCP_OPTIONS_MAX] out
        cdef uint32_t size = tcp_syn_options(&self.c, now, out)
        return bytes(out[:size])

    def options(self, *, bint blocks=True, now=0):
        """The options of a segment; `blocks`: with what was kept."""
        cdef uint8_t[TCP_OPTIONS_MAX] out
        cdef uint32_t size = tcp_options(&self.c, blocks, now, out)
        return bytes(out[:size])

    def kept(self, uint32_t seq, uint32_t length):
        """What "keep" was about is kept."""
        tcp_kept(&self.c, seq, length)

    def fetch(self):
        """Bytes that follow what is accepted, out of what was kept."""
        return tcp_fetch(&self.c)

    def hole(self):
        """Start and length of the next hole to be sent again, None: there is none."""
        cdef uint32_t seq = 0
        cdef uint32_t length = tcp_hole(&self.c, &seq)
        return (seq, length) if length else None

    def repaired(self, uint32_t seq, uint32_t length):
        """So much of a hole was sent."""
        tcp_repaired(&self.c, seq, length)

    def accepted(self):
        """Offset and length of the payload that the last segment's "accept" is about."""
        return self.a.offset, self.a.length

    def discarded(self):
        """Bytes that its "discard" is about."""
        return self.a.discard

    def state(self):
        """The connection, as it is."""
        return dict(self.c)
