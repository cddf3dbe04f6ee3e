"""Fuzz target `segments`: the TCP machine and a guest that says anything.

It is driven as `tcp_io` does it, one segment a batch. Whatever the guest sends, what is accepted is in the segment and
next in sequence, numbers stay in order, the window never moves left, what is acknowledged was taken, nothing of ours is
numbered beyond the guest's window, and once the guest is silent it is given up.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from bucatini.datapath.headers cimport TH_ACK, TH_SYN
from bucatini.datapath.tcp cimport (
    TA_ABORT, TA_ACCEPT, TA_ACK, TA_ACK_BATCH, TA_CLOSE, TA_DISCARD, TA_FETCH, TA_FIN, TA_KEEP, TA_NEW, TA_PROBE,
    TA_REPAIR, TA_SHUTDOWN, TCP_CONNECTING, TCP_ESTABLISHED, TF_FIN_SENT, TF_GUEST_FIN, TF_HOST_EOF, TcpActions,
    TcpConn, TcpSegment, seq_ge, seq_gt, seq_le, seq_lt, tcp_ack_seq, tcp_blocked, tcp_connected, tcp_drained,
    tcp_fetch, tcp_from_guest, tcp_held, tcp_hole, tcp_host_eof, tcp_kept, tcp_refused, tcp_repaired, tcp_room,
    tcp_segment, tcp_sent, tcp_timeout, tcp_to_guest, tcp_window,
)
from bucatini.datapath.tcp_options cimport TCP_OPTIONS_MAX, tcp_options


cdef check(const char *wrong):
    if wrong != NULL:
        raise AssertionError((<bytes> wrong).decode())


cdef inline void word(uint8_t *p, uint32_t value) noexcept nogil:
    p[0] = value >> 24
    p[1] = value >> 16 & 0xFF
    p[2] = value >> 8 & 0xFF
    p[3] = value & 0xFF


cdef struct Hostile:
    TcpConn c
    TcpActions a
    uint64_t now
    const char *wrong
    uint32_t held
    uint32_t edge  # right edge that was told
    bint told
    bint over
    bint short_  # the pool has no room for all that is accepted
    const uint8_t *p  # input that is left
    const uint8_t *end


cdef inline void blame(Hostile *h, const char *wrong) noexcept nogil:
    if h.wrong == NULL:
        h.wrong = wrong


cdef inline uint32_t byte(Hostile *h) noexcept nogil:
    cdef uint32_t value = 0
    if h.p < h.end:
        value = h.p[0]
        h.p += 1
    return value


cdef inline uint32_t near(Hostile *h, uint32_t base) noexcept nogil:
    """A number about `base`: close to it, or anywhere."""
    cdef uint32_t value = byte(h)
    if value < 0xC0:
        return base + value - 0x60 if value & 1 else base
    value = value << 24 | byte(h) << 16 | byte(h) << 8
    return base + (value << 2)


cdef void tell(Hostile *h) noexcept nogil:
    """A segment leaves: its number, window and options."""
    cdef uint8_t[TCP_OPTIONS_MAX] out
    cdef uint32_t ahead = tcp_ack_seq(&h.c) - h.c.snd_una
    cdef uint32_t field = tcp_window(&h.c), edge = h.c.rcv_nxt + (field << h.c.rcv_wscale), size
    if h.told and seq_lt(edge, h.edge):
        blame(h, b"the window was shrunk")
    if ahead > h.c.snd_max - h.c.snd_una or ahead > h.c.snd_wnd:
        blame(h, b"numbered beyond what was sent, or the window")
    h.told = True
    h.edge = edge
    size = tcp_options(&h.c, True, h.now, out)
    if size > TCP_OPTIONS_MAX or size & 3:
        blame(h, b"size of the options")


cdef void learn(Hostile *h) noexcept nogil:
    """After a batch: how much is held; what comes of it."""
    cdef TcpActions a
    if h.over:
        return
    tcp_held(&h.c, h.held, &a)
    if a.what & TA_SHUTDOWN and h.held:
        blame(h, b"shut before all was written")
    if a.what & TA_ACK:
        tell(h)
    if a.what & TA_CLOSE:
        h.over = True


cdef void carry_out(Hostile *h, const TcpConn *before, const TcpSegment *s, bint settles) noexcept nogil:
    """Do what the machine says, and see whether it may say so; `settles`: it was not the timer."""
    cdef TcpActions a = h.a
    cdef TcpConn *c = &h.c
    cdef uint32_t taken = 0, refused = 0, length, seq = 0, rounds = 0, kept, i, acked
    cdef bint fin
    if a.what & (TA_ABORT | TA_NEW):
        h.over = True
        return
    if a.what & (TA_ACCEPT | TA_KEEP):
        if s == NULL or a.length == 0 or a.offset > s.length or a.length > s.length - a.offset:
            blame(h, b"more than the segment has")
            return
    if a.what & TA_ACCEPT:
        if s.seq + a.offset != before.rcv_nxt:
            blame(h, b"a hole or a repetition")
        if seq_gt(before.rcv_nxt + a.length, before.rcv_adv):
            blame(h, b"accepted beyond the window")
        taken = a.length
        if h.short_:  # the guest has it back, before anything is acknowledged
            refused = a.length - a.length // 2
            tcp_refused(c, refused)
            taken -= refused
    if a.what & TA_KEEP:
        if seq_le(s.seq + a.offset, c.rcv_nxt) or seq_gt(s.seq + a.offset + a.length, c.rcv_adv):
            blame(h, b"kept outside of the window")
        kept = byte(h)  # the pool may have room for less
        tcp_kept(c, s.seq + a.offset, a.length if kept & 3 else a.length * (kept >> 2) // 64)
    if a.what & TA_FETCH:
        taken += tcp_fetch(c)
    fin = c.flags & TF_GUEST_FIN and not before.flags & TF_GUEST_FIN
    if c.state == TCP_ESTABLISHED and before.state == TCP_ESTABLISHED and c.rcv_nxt != before.rcv_nxt + taken + fin:
        blame(h, b"moved by another number than was accepted")
    if taken and before.flags & TF_GUEST_FIN:
        blame(h, b"accepted behind the FIN")
    h.held += taken
    if before.state == TCP_ESTABLISHED:
        acked = c.snd_una - before.snd_una
        if seq_lt(c.snd_una, before.snd_una) or seq_gt(c.snd_una, before.snd_max):
            blame(h, b"acknowledged what was not sent")
        if a.what & TA_DISCARD and a.discard != acked and not (a.discard + 1 == acked and c.flags & TF_FIN_SENT):
            blame(h, b"discarded another number than was acknowledged")
        if not a.what & TA_DISCARD and acked > 1:
            blame(h, b"not discarded")
    if a.what & TA_REPAIR:
        while h.wrong == NULL:
            length = tcp_hole(c, &seq)
            if length == 0:
                break
            length = length if length < c.mss else c.mss
            if seq_lt(seq, c.snd_una) or seq_gt(seq + length, c.snd_max - (c.flags & TF_FIN_SENT != 0)):
                blame(h, b"sent again what is not there")
            tcp_repaired(c, seq, length)
            tell(h)
            rounds += 1
            if rounds > 20000:
                blame(h, b"holes without end")
    for i in range(c.kept.count):
        if seq_ge(c.kept.start[i], c.kept.end[i]) or (i and seq_le(c.kept.start[i], c.kept.end[i - 1])):
            blame(h, b"what is kept is out of order")
        if seq_le(c.kept.end[i], c.rcv_nxt) or seq_gt(c.kept.end[i], c.rcv_adv):
            blame(h, b"what is kept is outside of the window")
    for i in range(c.sacked.count):
        if seq_ge(c.sacked.start[i], c.sacked.end[i]) or (i and seq_le(c.sacked.start[i], c.sacked.end[i - 1])):
            blame(h, b"what the guest has is out of order")
        if seq_le(c.sacked.end[i], c.snd_una) or seq_gt(c.sacked.end[i], c.snd_max):
            blame(h, b"the guest has what was never sent")
    if seq_gt(c.snd_una, c.snd_nxt) or seq_gt(c.snd_nxt, c.snd_max):
        blame(h, b"numbers out of order")
    if a.what & (TA_ACK | TA_ACK_BATCH | TA_PROBE | TA_FIN):
        tell(h)
    if settles:
        learn(h)
    if not h.over and c.deadline == 0 and c.state != TCP_CONNECTING:
        blame(h, b"no timer")


cdef void say(Hostile *h) noexcept nogil:
    """The guest says something: eight bytes or so of the input are a segment."""
    cdef TcpConn before = h.c
    cdef TcpSegment s
    cdef uint8_t *options
    cdef uint32_t how = byte(h), size = 0, blocks, _i
    cdef uint8_t[40] block
    s.flags = <uint8_t> (TH_ACK if how & 1 else byte(h))
    s.seq = near(h, h.c.irs if how & 6 == 6 else h.c.rcv_adv if how & 2 else h.c.rcv_nxt)
    s.ack = near(h, h.c.snd_max if how & 8 else h.c.snd_una)
    s.length = byte(h)
    if how & 16:
        s.length *= 256
    s.window = <uint16_t> (byte(h) << (8 if how & 32 else 0))
    if how & 64:  # its timestamps
        memcpy(block, b"\1\1\x08\x0a", 4)
        word(block + 4, near(h, h.c.ts_recent))
        word(block + 8, 0)
        size = 12
    if how & 128:  # what it says it has
        blocks = 1 + (byte(h) & 1)
        block[size] = 5
        block[size + 1] = <uint8_t> (2 + 8 * blocks)
        size += 2
        for _i in range(2 * blocks):
            word(block + size, near(h, h.c.snd_una))
            size += 4
    options = <uint8_t *> malloc(size)
    if size:
        memcpy(options, block, size)
    s.options = options
    s.options_length = size
    tcp_segment(&h.c, &s, h.now, &h.a)
    carry_out(h, &before, &s, True)
    free(options)


cdef inline void promise(Hostile *h) noexcept nogil:
    """What the SYN-ACK says of the window."""
    h.c.rcv_adv = h.c.rcv_nxt + (h.c.bound if h.c.bound < 65535 else 65535)
    h.c.ack_sent = h.c.rcv_nxt


cdef void run_segments(Hostile *h, const uint8_t *p, uint32_t size) noexcept nogil:
    cdef TcpSegment syn
    cdef TcpConn before
    cdef uint32_t kind, value, rounds = 0, room
    cdef uint64_t deadline
    cdef uint8_t *options
    memset(h, 0, sizeof(Hostile))
    h.p = p
    h.end = p + size
    h.now = 1000000
    value = byte(h)
    memset(&syn, 0, sizeof(syn))
    syn.flags = TH_SYN
    syn.seq = byte(h) << 24 | 0xFFFF00
    syn.window = <uint16_t> (byte(h) << 8)
    room = byte(h) & 31
    if room > h.end - h.p:
        room = <uint32_t> (h.end - h.p)
    options = <uint8_t *> malloc(room)
    memcpy(options, h.p, room)
    h.p += room
    syn.options = options
    syn.options_length = room
    if value & 1:
        tcp_to_guest(&h.c, value << 24, 1460, 1 << (10 + (value >> 4)), h.now, &h.a)
        syn.flags |= TH_ACK
        syn.ack = h.c.snd_max
        if value & 2:
            tcp_segment(&h.c, &syn, h.now, &h.a)
    else:
        tcp_from_guest(&h.c, &syn, value << 24, 1460, 1 << (10 + (value >> 4)), h.now)
        if value & 2:
            tcp_connected(&h.c, h.now, &h.a)
            promise(h)
    free(options)
    while h.p < h.end and not h.over and h.wrong == NULL:
        kind = byte(h)
        value = kind >> 3
        kind &= 7
        before = h.c
        if kind < 4:
            h.now += <uint64_t> value << 20
            say(h)
        elif kind == 4:
            if h.c.deadline:
                h.now = h.c.deadline if h.c.deadline > h.now else h.now
                tcp_timeout(&h.c, h.now, &h.a)
                carry_out(h, &before, NULL, False)
        elif kind == 5:
            if h.c.state == TCP_CONNECTING:
                tcp_connected(&h.c, h.now, &h.a)
                promise(h)
            elif not h.c.flags & TF_HOST_EOF:
                # The host has data; a short read tells that there is no more, or that its end is next
                room = tcp_room(&h.c)
                room = room if room < h.c.mss else h.c.mss
                if room and h.c.flags & TF_FIN_SENT == 0:
                    tell(h)
                    tcp_sent(&h.c, room if value & 1 else 1 + room // 2, h.now)
                    if value & 6 == 6 and h.c.snd_nxt == h.c.snd_max:
                        tcp_host_eof(&h.c, h.now, &h.a)
                    elif value & 2:
                        tcp_drained(&h.c)
                elif room == 0:
                    tcp_blocked(&h.c, h.now)
                else:
                    tcp_drained(&h.c)
                learn(h)
        elif kind == 6:
            # It has no more, and everything is sent
            if h.c.state == TCP_ESTABLISHED and h.c.snd_nxt == h.c.snd_max and not h.c.flags & TF_FIN_SENT:
                tcp_host_eof(&h.c, h.now, &h.a)
                carry_out(h, &before, NULL, True)
        elif value == 31:
            h.short_ = not h.short_
        else:
            # It takes some of what is held
            h.held = h.held * value // 32
            learn(h)
    # A guest that is silent is given up, in a number of timeouts and not in one spin
    while not h.over and h.wrong == NULL and h.c.state != TCP_CONNECTING:
        before = h.c
        deadline = h.c.deadline
        if deadline == 0:
            blame(h, b"no timer")
            break
        h.now = deadline if deadline > h.now else h.now
        tcp_timeout(&h.c, h.now, &h.a)
        carry_out(h, &before, NULL, False)
        if not h.over and h.c.deadline <= h.now:
            blame(h, b"a timer that fires at once")
        rounds += 1
        if rounds > 300:
            blame(h, b"a silent guest is kept for ever")


cdef Hostile hostile


def segments(bytes data):
    """Four bytes and options for the opening, then events: segments about the numbers in use, timers, the host."""
    cdef const uint8_t *p = data
    cdef uint32_t size = len(data)
    with nogil:
        run_segments(&hostile, p, size)
    check(hostile.wrong)
