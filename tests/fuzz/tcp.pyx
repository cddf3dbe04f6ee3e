"""Fuzz target `tcp`: the TCP machine between a guest that is a TCP and a host, `tests/unit/datapath/test_tcp_model.py`
compiled.

The host is a pair of queues, and the link between loses, repeats and overtakes as the input says. The machine is driven
as `tcp_io` does it: segments in batches, what the socket did not take held, acknowledgements put off, reads that end at
an urgent mark, shares of a turn, a timer that is armed when something was done. The guest takes nothing, no
acknowledgement either, of a segment outside its window (RFC 9293 §3.10.7.4), and may withdraw that.

Bytes are numbers. No byte is lost, invented or out of order, no window is shrunk, nothing is acknowledged before it was
accepted, and when nothing is lost any more and both sides close, the connection ends.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from bucatini.datapath.headers cimport TH_ACK, TH_FIN, TH_SYN
from bucatini.datapath.tcp cimport (
    TA_ABORT, TA_ACCEPT, TA_ACK, TA_ACK_BATCH, TA_CLOSE, TA_DISCARD, TA_FETCH, TA_FIN, TA_KEEP, TA_NEW, TA_PROBE,
    TA_PUMP, TA_REPAIR, TA_REWIND, TA_SHUTDOWN, TF_GUEST_FIN, TF_HOST_EOF, TF_PENDING, TcpActions, TcpConn,
    TcpSegment, seq_gt, seq_lt, tcp_ack_seq, tcp_blocked, tcp_connected, tcp_drained, tcp_fetch, tcp_fin_seq,
    tcp_from_guest, tcp_held, tcp_hole, tcp_host_eof, tcp_kept, tcp_refused, tcp_repaired, tcp_room, tcp_segment,
    tcp_sent, tcp_timeout, tcp_to_guest, tcp_window,
)
from bucatini.datapath.tcp_options cimport tcp_options

cdef enum:
    QUEUE = 256  # segments on the way; what finds no room is lost
    BYTES = 16384  # that one side sends at most
    SPANS = 24
    MSS = 100
    SHIFT = 7  # of our window
    OVER = 256  # bytes that may be held beyond the bound: windows are rounded up
    BOUND = 1024
    PATIENCE = 8  # timeouts without progress; after some more of them it is right to give the guest up
    MORE = 3  # when nothing is lost any more
    EVENTS = 200
    SHARE = 3  # segments to the guest in one turn
    FROM_HOST = 1  # bits of the first byte: a forward opens the connection; there is no SO_PEEK_OFF
    REREAD = 2
    END = 0  # `peek`: no more comes, none is there now, there is more behind an urgent mark
    NONE = -1
    BEHIND_MARK = -2
    OPTIONS = 40

cdef uint32_t ISS = 0xFFFFF000U, IRS = 0xFFFFFE00U  # both wrap early
cdef uint64_t SILENCE = 300000000000  # ns, after which a probed one is
cdef uint64_t MINUTE = 60000000000  # ns, the longest between two probes of a window

cdef struct Sent:  # a segment between the two; `seq` and `ack` count from the first byte after SYN
    uint8_t flags
    uint32_t seq
    uint32_t ack
    uint32_t length
    uint32_t window
    uint32_t size  # of the options
    uint8_t options[OPTIONS]

cdef struct Queue:
    Sent segments[QUEUE]
    uint32_t head
    uint32_t count

cdef struct World:
    TcpConn c
    TcpActions a
    uint64_t now
    const char *wrong
    Queue to_machine
    Queue to_guest
    # The guest
    uint32_t una
    uint32_t nxt
    uint32_t queued
    bint closed
    uint32_t guest_edge
    uint32_t rcv_nxt
    uint32_t span_start[SPANS]
    uint32_t span_end[SPANS]
    uint32_t spans
    bint fin_seen
    uint32_t fin_at
    uint32_t room
    uint32_t unread
    uint32_t clock
    bint squeezed  # it has no room, and drops what comes
    # The host
    uint32_t takes
    uint32_t pool  # bytes that may be held
    uint32_t received
    uint32_t written
    uint32_t mark  # where its urgent byte is; beyond all it writes: nowhere
    uint32_t host_una
    bint shut
    bint finished
    uint32_t patience
    uint32_t edge
    # What `tcp_io` keeps of the flow
    bint readable
    bint hangup
    bint urgent
    bint waits  # for its next share
    bint late
    bint reread  # no SO_PEEK_OFF
    bint peeking
    uint32_t offset  # where the next read begins, if peeking
    bint blocked  # the link
    uint64_t armed  # its timer; 0: it is not
    # and in the batch
    bint batched
    uint32_t bytes
    uint32_t segments
    uint32_t discard
    bint rewind
    bint repair
    bint pump
    bint ack
    uint8_t kept[BYTES + 1024]

cdef World world


cdef check(const char *wrong):
    if wrong != NULL:
        raise AssertionError((<bytes> wrong).decode())


cdef inline void fail(World *w, const char *wrong) noexcept nogil:
    if w.wrong == NULL:
        w.wrong = wrong


cdef inline void put(Queue *q, const Sent *s) noexcept nogil:
    if q.count < QUEUE:
        q.segments[(q.head + q.count) % QUEUE] = s[0]
        q.count += 1


cdef inline Sent take(Queue *q) noexcept nogil:
    cdef Sent s = q.segments[q.head]
    q.head = (q.head + 1) % QUEUE
    q.count -= 1
    return s


cdef inline void word(uint8_t *p, uint32_t value) noexcept nogil:
    p[0] = value >> 24
    p[1] = value >> 16 & 0xFF
    p[2] = value >> 8 & 0xFF
    p[3] = value & 0xFF


# The guest


cdef inline uint32_t guest_window(World *w) noexcept nogil:
    return w.room - w.unread if w.room > w.unread and not w.squeezed else 0


cdef void guest_segment(World *w, uint8_t flags, uint32_t seq, uint32_t length) noexcept nogil:
    cdef Sent s
    cdef uint32_t i, n
    s.flags = flags | TH_ACK
    s.seq = seq
    s.ack = w.rcv_nxt + (w.fin_seen and w.fin_at == w.rcv_nxt)
    s.length = length
    s.window = guest_window(w)
    w.clock += 1
    memcpy(s.options, b"\1\1\x08\x0a", 4)
    word(s.options + 4, w.clock)
    word(s.options + 8, 0)
    s.size = 12
    if not length and w.spans:
        n = w.spans if w.spans < 3 else 3
        memcpy(s.options + 12, b"\1\1\5", 3)
        s.options[15] = <uint8_t> (2 + 8 * n)
        s.size = 16 + 8 * n
        for i in range(n):
            word(s.options + 16 + 8 * i, ISS + 1 + w.span_start[i])
            word(s.options + 20 + 8 * i, ISS + 1 + w.span_end[i])
    put(&w.to_machine, &s)


cdef inline void acknowledge(World *w) noexcept nogil:
    guest_segment(w, 0, w.nxt, 0)


cdef bint guest_data(World *w, bint again) noexcept nogil:
    """Send the next segment, or what is not acknowledged again, in a piece of some other size; whether there is one."""
    cdef uint32_t start = w.una if again else w.nxt, length
    cdef uint32_t most = 1 + (7 * w.una + 13 * w.nxt) % (5 * MSS) if again else MSS
    cdef bint fin
    if start > w.queued:
        if not w.closed:
            return False
        guest_segment(w, TH_FIN, w.queued, 0)
        w.nxt = w.queued + 1
        return True
    length = w.queued - start if w.queued - start < most else most
    if w.guest_edge <= start:
        length = 0
    elif length > w.guest_edge - start:
        length = w.guest_edge - start
    fin = w.closed and start + length >= w.queued and start + length <= w.guest_edge
    if length == 0 and not fin:
        return False
    if start + length + fin > w.nxt:
        w.nxt = start + length + fin
    guest_segment(w, TH_FIN if fin else 0, start, length)
    return True


cdef void guest_sends(World *w) noexcept nogil:
    while w.nxt < w.queued + w.closed and w.to_machine.count < QUEUE:
        if not guest_data(w, False):
            break


cdef bint is_acceptable(World *w, const Sent *s) noexcept nogil:
    """Whether any of it is in the window (RFC 9293 §3.10.7.4)."""
    cdef uint32_t window = guest_window(w), size = s.length + (s.flags & TH_FIN != 0)
    cdef uint32_t at = s.seq - w.rcv_nxt - (w.fin_seen and w.fin_at == w.rcv_nxt)  # large: before it
    if size == 0:
        return at < window or at == 0
    return at < window or at + size - 1 < window


cdef bint guest_takes(World *w, const Sent *s) noexcept nogil:
    """Process a segment of the machine; whether it is to be acknowledged."""
    cdef uint32_t end = s.seq + s.length, limit, start = s.seq, i, j
    if not is_acceptable(w, s):
        return True
    if s.flags & TH_ACK:
        if s.ack > w.una:
            w.una = s.ack
        if s.ack + s.window > w.guest_edge:
            w.guest_edge = s.ack + s.window
    if s.flags & TH_FIN:
        if w.fin_seen and w.fin_at != end:
            fail(w, b"a FIN at two places")
        w.fin_seen = True
        w.fin_at = end
    limit = w.rcv_nxt + guest_window(w)
    if end > limit:
        end = limit
    if start < w.rcv_nxt:
        start = w.rcv_nxt
    if end > start:
        # Insert and merge
        i = 0
        while i < w.spans and w.span_end[i] < start:
            i += 1
        if i == w.spans or w.span_start[i] > end:
            if w.spans < SPANS:
                for j in range(w.spans, i, -1):
                    w.span_start[j] = w.span_start[j - 1]
                    w.span_end[j] = w.span_end[j - 1]
                w.span_start[i] = start
                w.span_end[i] = end
                w.spans += 1
        else:
            if start < w.span_start[i]:
                w.span_start[i] = start
            if end > w.span_end[i]:
                w.span_end[i] = end
            while i + 1 < w.spans and w.span_start[i + 1] <= w.span_end[i]:
                if w.span_end[i + 1] > w.span_end[i]:
                    w.span_end[i] = w.span_end[i + 1]
                for j in range(i + 1, w.spans - 1):
                    w.span_start[j] = w.span_start[j + 1]
                    w.span_end[j] = w.span_end[j + 1]
                w.spans -= 1
        if w.spans and w.span_start[0] <= w.rcv_nxt:
            w.unread += w.span_end[0] - w.rcv_nxt
            w.rcv_nxt = w.span_end[0]
            for j in range(w.spans - 1):
                w.span_start[j] = w.span_start[j + 1]
                w.span_end[j] = w.span_end[j + 1]
            w.spans -= 1
    return s.length > 0 or (s.flags & TH_FIN) != 0


# The machine and its host


cdef inline uint32_t ours(uint32_t seq) noexcept nogil:
    """A number of the machine's, counted from its first byte."""
    return seq - ISS - 1


cdef void emit(World *w, uint8_t flags, uint32_t seq, uint32_t length) noexcept nogil:
    cdef Sent s
    cdef uint32_t field = tcp_window(&w.c), ack = w.c.rcv_nxt - IRS - 1, edge
    if ack > w.nxt:
        fail(w, b"acknowledged what was never sent")
    if w.bytes:
        fail(w, b"acknowledged what nobody has taken")
    edge = ack + (field << SHIFT)
    if edge < w.edge:
        fail(w, b"the window was shrunk")
    w.edge = edge
    s.flags = flags | TH_ACK
    s.seq = seq
    s.ack = ack
    s.length = length
    s.window = field << SHIFT
    s.size = tcp_options(&w.c, length == 0, w.now, s.options)
    if s.size > OPTIONS:
        fail(w, b"size of the options")
    w.late = False
    put(&w.to_guest, &s)


cdef inline void acknowledge_guest(World *w) noexcept nogil:
    emit(w, 0, ours(tcp_ack_seq(&w.c)), 0)


cdef inline void arm(World *w) noexcept nogil:
    """As `timer_arm`: to an earlier time it is moved, to a later one it moves itself."""
    if w.c.deadline and (w.armed == 0 or w.armed > w.c.deadline):
        w.armed = w.c.deadline


cdef int peek(World *w, uint32_t start, uint32_t size) noexcept nogil:
    """What the socket has from `start` on, without taking it: bytes, END, NONE or BEHIND_MARK."""
    cdef uint32_t head = w.host_una, n
    if not w.reread:
        if start != head and not w.peeking:
            w.peeking = True
            w.offset = start
        head = w.offset if w.peeking else head
        if head != start:
            fail(w, b"read from another place")
            return NONE
    n = w.written - start if w.written > start else 0
    if head < w.mark < start + n:
        if w.mark <= start:
            return BEHIND_MARK if w.mark == start else NONE
        n = w.mark - start
    n = n if n < size else size
    w.offset = start + n
    return <int> n if n else END if w.hangup else NONE


cdef bint send_data(World *w) noexcept nogil:
    """`pump`: send as far as the guest's window and the share of a turn go; whether a segment left."""
    cdef uint32_t room, start, used = 0
    cdef bint fin, sent = False
    cdef int n
    while w.readable and w.wrong == NULL:
        room = tcp_room(&w.c)
        if room > w.c.mss:
            room = w.c.mss
        if room == 0:
            tcp_blocked(&w.c, w.now)
            break
        if used == SHARE or w.blocked:
            w.waits = True
            break
        start = ours(w.c.snd_nxt)
        n = peek(w, start, room)
        if n > 0:
            fin = <uint32_t> n < room and w.hangup and start + n == w.written
            emit(w, TH_FIN if fin else 0, start, n)
            tcp_sent(&w.c, n, w.now)
            if fin:
                w.readable = False
                tcp_host_eof(&w.c, w.now, &w.a)
            sent = True
            used += 1
            if <uint32_t> n < room and not w.hangup and not w.urgent:
                w.readable = False
        elif n == END:
            w.readable = False
            tcp_host_eof(&w.c, w.now, &w.a)
            emit(w, TH_FIN, ours(tcp_fin_seq(&w.c)), 0)
            sent = True
        elif n == BEHIND_MARK:
            break
        else:
            w.readable = False
            tcp_drained(&w.c)
    return sent


cdef void fill_holes(World *w) noexcept nogil:
    """`repair`: as many as the share of this turn allows; the next acknowledgement goes on with it."""
    cdef uint32_t length, seq = 0, last = ours(w.c.snd_nxt)
    cdef int _i, n
    for _i in range(SHARE):
        length = tcp_hole(&w.c, &seq)
        if length == 0:
            break
        if w.peeking and ours(seq) != last:
            w.offset = ours(seq)
        if ours(seq) < w.host_una or ours(seq) + length > w.written:
            fail(w, b"sent again what is not there")
            return
        n = peek(w, ours(seq), length if length < w.c.mss else w.c.mss)
        if n <= 0:
            break
        last = ours(seq) + n
        emit(w, 0, ours(seq), n)
        tcp_repaired(&w.c, seq, n)
    if w.peeking:
        w.offset = ours(w.c.snd_nxt)


cdef void hand_over(World *w) noexcept nogil:
    """`deliver`: the socket takes what it does of the batch's payload, the overflow the rest, or it goes back."""
    cdef uint32_t taken = 0, added, most = BOUND + OVER if w.pool > BOUND + OVER else w.pool
    if not w.c.held:
        taken = w.bytes if w.bytes < w.takes else w.takes
    w.takes -= taken
    w.received += taken
    w.bytes -= taken
    added = most - w.c.held if w.c.held < most else 0
    added = added if added < w.bytes else w.bytes
    w.c.held += added
    w.bytes -= added
    if w.bytes:
        tcp_refused(&w.c, w.bytes)
        if w.c.kept.count == 0:
            memset(w.kept, 0, sizeof(w.kept))
    w.bytes = 0


cdef void drained(World *w) noexcept nogil:
    """`overflow_drain`: the socket takes what it does of what is held."""
    cdef uint32_t taken = w.c.held if w.c.held < w.takes else w.takes
    w.takes -= taken
    w.c.held -= taken
    w.received += taken


cdef void fetch(World *w) noexcept nogil:
    """A hole is filled."""
    cdef uint32_t start, length, i
    hand_over(w)
    start = w.received + w.c.held
    length = tcp_fetch(&w.c)
    if start + length > w.queued:
        fail(w, b"fetched what was never sent")
        return
    for i in range(length):
        if not w.kept[start + i]:
            fail(w, b"bytes that never came")
    w.c.held += length  # it has its place in the pool already
    if w.c.kept.count and not seq_gt(w.c.kept.start[0], w.c.rcv_nxt):
        fail(w, b"what is next is kept, and was not fetched")
    drained(w)


cdef void settle(World *w, bint ack) noexcept nogil:
    tcp_held(&w.c, w.c.held, &w.a)
    if w.a.what & TA_SHUTDOWN:
        if w.c.held:
            fail(w, b"shut before all was written")
        w.shut = True
    if ack or w.a.what & TA_ACK:
        acknowledge_guest(w)
    if w.a.what & TA_CLOSE:
        w.finished = True
    else:
        arm(w)


cdef bint later(World *w) noexcept nogil:
    """`acknowledge_later`: whether the acknowledgement waits for an answer."""
    if (w.segments != 1 or w.late or w.c.held or w.c.flags & (TF_GUEST_FIN | TF_HOST_EOF)
            or w.c.rcv_adv - w.c.rcv_nxt < w.c.our_mss):
        return False
    w.late = True
    return True


cdef void act(World *w, const Sent *s) noexcept nogil:
    """`tcp_frame`, behind the machine."""
    cdef TcpActions a = w.a
    cdef uint32_t what = a.what, i
    if what == 0:
        return
    if what & (TA_ABORT | TA_NEW):
        fail(w, b"the connection was given up")
        return
    if what & (TA_KEEP | TA_ACCEPT) and a.offset + a.length > s.length:
        fail(w, b"more than the segment has")
        return
    w.batched = True
    if what & TA_ACCEPT:
        if s.seq + a.offset != w.received + w.c.held + w.bytes:
            fail(w, b"a hole or a repetition")
        w.bytes += a.length
        w.segments += 1
    if what & TA_KEEP:
        if w.pool < BOUND:  # there is not room for all of it
            a.length //= 2
        for i in range(a.length):
            w.kept[s.seq + a.offset + i] = 1
        tcp_kept(&w.c, IRS + 1 + s.seq + a.offset, a.length)
    if what & TA_FETCH:
        fetch(w)
    if what & TA_DISCARD:
        w.discard += a.discard
    w.rewind = w.rewind or what & TA_REWIND != 0
    w.repair = w.repair or what & TA_REPAIR != 0
    w.pump = w.pump or what & TA_PUMP != 0
    w.ack = w.ack or what & TA_ACK_BATCH != 0
    if what & (TA_FIN | TA_ACK):
        hand_over(w)
    if what & TA_FIN:
        emit(w, TH_FIN, ours(tcp_fin_seq(&w.c)), 0)
    if what & TA_ACK:
        acknowledge_guest(w)
        w.ack = False


cdef void flush(World *w) noexcept nogil:
    """`flush_entry`: the batch is through."""
    cdef bint ack
    if not w.batched or w.finished or w.wrong != NULL:
        return
    w.batched = False
    hand_over(w)
    if w.discard:
        w.host_una += w.discard
        w.discard = 0
        if w.host_una > w.written:
            fail(w, b"discarded what is not there")
        if w.offset < w.host_una:
            w.offset = w.host_una
    if w.rewind:
        w.rewind = False
        w.readable = True
        w.offset = ours(w.c.snd_nxt)
    if w.repair:
        w.repair = False
        fill_holes(w)
    ack = w.ack
    w.ack = False
    if w.pump:
        w.pump = False
        if not w.waits and send_data(w):
            ack = False
    settle(w, ack and not later(w))
    w.segments = 0


cdef void feed(World *w, const Sent *s) noexcept nogil:
    """Give a segment to the machine, as one of a batch."""
    cdef TcpSegment t
    cdef uint8_t *options
    if w.finished or w.wrong != NULL:
        return
    options = <uint8_t *> malloc(s.size)
    memcpy(options, s.options, s.size)
    t.seq = IRS + 1 + s.seq
    t.ack = ISS + 1 + s.ack
    t.length = s.length
    t.window = <uint16_t> s.window
    t.flags = s.flags
    t.options = options
    t.options_length = s.size
    tcp_segment(&w.c, &t, w.now, &w.a)
    free(options)
    act(w, s)


cdef void host_event(World *w) noexcept nogil:
    """`tcp_event`: the socket has something, or takes something."""
    if w.finished:
        return
    drained(w)
    if w.readable and not w.waits:
        send_data(w)
    settle(w, False)


cdef void host_writes(World *w, uint32_t size) noexcept nogil:
    if not w.hangup and not w.finished and w.written + size <= BYTES:
        w.written += size
        w.readable = True
        host_event(w)


cdef void turn(World *w) noexcept nogil:
    """What used up its share goes on."""
    if w.waits and not w.blocked and not w.finished:
        w.waits = False
        send_data(w)
        settle(w, False)


cdef void timer(World *w) noexcept nogil:
    """`tcp_timer`."""
    w.now = w.armed if w.now < w.armed else w.now
    w.armed = 0
    if w.now >= w.c.deadline:
        tcp_timeout(&w.c, w.now, &w.a)
        if w.a.what & TA_ABORT:
            fail(w, b"the connection was given up")
            return
        if w.a.what & TA_FIN:
            emit(w, TH_FIN, ours(tcp_fin_seq(&w.c)), 0)
        if w.a.what & TA_PROBE:
            emit(w, 0, ours(w.c.snd_una) - 1, 0)
        if w.a.what & TA_REWIND:
            w.offset = ours(w.c.snd_nxt)
            w.readable = True
            send_data(w)
        elif w.a.what & TA_REPAIR:
            fill_holes(w)
    arm(w)


cdef void answer_late(World *w) noexcept nogil:
    """`tcp_acknowledge`: the acknowledgement that was put off."""
    if w.late and not w.finished:
        acknowledge_guest(w)


cdef void time_passes(World *w) noexcept nogil:
    """Both timers fire, if there is something to be sent again."""
    answer_late(w)
    if (not w.finished and w.c.retries < w.patience and w.c.probes < PATIENCE
            and (w.c.snd_una == w.c.snd_max and not w.c.flags & TF_PENDING
                 or w.c.deadline - w.c.last_heard <= SILENCE)):
        if w.armed < w.c.deadline:
            timer(w)
        timer(w)
    if w.una < w.nxt:
        guest_data(w, True)
    elif w.nxt < w.queued + w.closed:
        guest_segment(w, 0, w.nxt - 1, 0)  # its window is closed: a probe


cdef void deliver(World *w, bint machine, uint32_t fate) noexcept nogil:
    """The next segment arrives (fate 0 to 4), is lost, arrives twice, or is overtaken."""
    cdef Queue *q = &w.to_machine if machine else &w.to_guest
    cdef Sent s
    cdef uint32_t _i
    if q.count == 0:
        return
    s = take(q)
    if fate == 7:
        put(q, &s)
    elif fate != 5:
        for _i in range(2 if fate == 6 else 1):
            if machine:
                feed(w, &s)
            elif guest_takes(w, &s):
                acknowledge(w)
    guest_sends(w)


cdef void holds(World *w) noexcept nogil:
    """What is always true."""
    if w.received + w.c.held > w.queued or w.rcv_nxt > w.written:
        fail(w, b"invented")
    if w.c.rcv_nxt - IRS - 1 != w.received + w.c.held + (w.c.flags & TF_GUEST_FIN != 0):
        fail(w, b"acknowledged is not what was taken")
    if seq_gt(w.c.snd_una, w.c.snd_nxt) or seq_gt(w.c.snd_nxt, w.c.snd_max):
        fail(w, b"numbers out of order")
    if not w.finished and not w.readable and (w.c.flags & TF_PENDING or seq_lt(ours(w.c.snd_nxt), w.written)):
        fail(w, b"probes for nothing, or has forgotten data")
    if (not w.finished and w.readable and not w.waits and w.c.snd_wnd == 0 and w.c.snd_una == w.c.snd_max
            and not w.c.flags & TF_HOST_EOF and w.c.deadline > w.now + MINUTE):
        fail(w, b"does not ask for a window")
    if not w.finished and (w.c.deadline == 0 or w.armed == 0 or w.armed > w.c.deadline):
        fail(w, b"no timer")


cdef void open_world(World *w, bint from_host) noexcept nogil:
    """The handshake, of which nothing is lost."""
    cdef TcpSegment syn
    cdef uint8_t[20] options
    memcpy(options, b"\2\4\0\x70\4\2\x08\x0a\0\0\0\0\0\0\0\0\1\3\3\0", 20)  # 12 of the MSS are for timestamps
    memset(&syn, 0, sizeof(syn))
    syn.flags = TH_SYN
    syn.seq = IRS
    syn.window = 65535
    syn.options = options
    syn.options_length = 20
    if from_host:
        tcp_to_guest(&w.c, ISS, 200, BOUND, 0, &w.a)
        arm(w)
        syn.flags |= TH_ACK
        syn.ack = ISS + 1
        tcp_segment(&w.c, &syn, 0, &w.a)
        act(w, NULL)
        flush(w)
        take(&w.to_guest)
    else:
        tcp_from_guest(&w.c, &syn, ISS, 200, BOUND, 0)
        tcp_connected(&w.c, 0, &w.a)
        w.c.rcv_adv = w.c.rcv_nxt + BOUND  # as the SYN-ACK tells
        w.c.ack_sent = w.c.rcv_nxt
        arm(w)
        acknowledge(w)
        feed(w, &w.to_machine.segments[w.to_machine.head])
        flush(w)
        take(&w.to_machine)


cdef void everything_arrives(World *w) noexcept nogil:
    cdef uint32_t rounds = 0
    while (w.to_machine.count or w.to_guest.count) and rounds < 4000 and w.wrong == NULL:
        rounds += 1
        deliver(w, True, 0)
        flush(w)
        deliver(w, False, 0)
        turn(w)
    holds(w)


cdef void run_model(World *w, const uint8_t *p, uint32_t size) noexcept nogil:
    cdef uint32_t at = 1, kind, value, _i
    memset(w, 0, sizeof(World))
    w.guest_edge = BOUND
    w.room = 600
    w.takes = w.pool = w.mark = 1 << 30
    w.patience = PATIENCE
    w.reread = size and p[0] & REREAD
    open_world(w, size and p[0] & FROM_HOST)
    holds(w)
    while at < size and at < EVENTS and w.wrong == NULL:
        kind = p[at] >> 5
        value = p[at] & 31
        at += 1
        turn(w)
        if kind == 0:
            if not w.closed and w.queued + 6 * value < BYTES:
                w.queued += 1 + 6 * value
                guest_sends(w)
        elif kind == 1:
            host_writes(w, 1 + 6 * value)
        elif kind == 2:
            deliver(w, True, value & 7)
            if value & 8:
                deliver(w, True, 0)
            if value & 16:
                deliver(w, True, 0)
            flush(w)
        elif kind == 3:
            deliver(w, False, value & 7)
            if value & 8:
                deliver(w, False, 0)
            if value & 16:
                deliver(w, False, 0)
        elif kind == 4:
            value = 1 + 20 * value
            if w.unread:
                w.unread -= value if value < w.unread else w.unread
                acknowledge(w)
        elif kind == 5:
            w.takes = 1 << 30 if value == 31 else 4 * value
            host_event(w)
        elif kind == 6:
            time_passes(w)
        elif value == 31:
            w.pool = w.c.held  # the others have the rest
        elif value == 30:
            w.pool = 1 << 30
        elif value == 29:
            w.blocked = not w.blocked
        elif value == 28 and not w.hangup and w.written + 31 < BYTES:
            w.mark = w.written
            w.urgent = True
            host_writes(w, 31)
        elif value == 27:
            w.squeezed = not w.squeezed
            acknowledge(w)
        elif value == 26:
            answer_late(w)
        elif value & 7 == 0:
            if not w.closed:
                w.closed = True
                guest_sends(w)
        elif value & 7 == 1:
            if not w.hangup and not w.finished:
                w.hangup = w.readable = True
                host_event(w)
        else:
            # All that is on the way arrives
            for _i in range(value):
                deliver(w, True, 0)
                deliver(w, False, 0)
            flush(w)
        holds(w)
    # From every state what the guest sends arrives, when nothing is lost any more, and if it has no room itself
    w.closed = True
    w.blocked = False
    w.takes = w.pool = 1 << 30
    w.patience = PATIENCE + MORE
    turn(w)
    host_event(w)
    at = 0
    while w.una < w.queued + 1 and not w.finished and w.wrong == NULL and at < 400:
        at += 1
        guest_sends(w)
        everything_arrives(w)
        time_passes(w)
    if w.una < w.queued + 1 and not w.finished:
        fail(w, b"what the guest sent is not acknowledged")
    # and the connection ends, when both sides close
    w.squeezed = False
    w.hangup = w.readable = True
    host_event(w)
    at = 0
    while not w.finished and w.wrong == NULL and at < 400:
        at += 1
        w.unread = 0
        guest_sends(w)
        everything_arrives(w)
        w.unread = 0
        time_passes(w)
        if not w.to_machine.count:
            acknowledge(w)
    if w.wrong == NULL:
        if not w.finished:
            fail(w, b"the connection does not end")
        elif w.received != w.queued:
            fail(w, b"the host did not get all")
        elif w.rcv_nxt != w.written:
            fail(w, b"the guest did not get all")


def model(bytes data):
    """A byte for how it is opened and read, then a byte an event: which, in three bits, and how."""
    cdef const uint8_t *p = data
    cdef uint32_t size = len(data)
    with nogil:
        run_model(&world, p, size)
    check(world.wrong)
