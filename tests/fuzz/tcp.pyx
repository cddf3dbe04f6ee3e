"""Fuzz targets of the TCP machine: `model`, with a guest that is a TCP, and `segments`, with one that says anything.

`model` is `tests/unit/datapath/test_tcp_model.py` compiled: a guest, a host that is a pair of queues, and a link
between that loses, repeats and overtakes as the input says. Bytes are numbers. No byte is lost, invented or out of
order, no window is shrunk, nothing is acknowledged before it was accepted, and when nothing is lost any more and both
sides close, the connection ends.

`segments` holds the machine alone to what must be true whatever the guest sends: what it accepts is in the segment and
next in sequence, its numbers stay in order, its window never moves left, and once the guest is silent it gives up.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from bucatini.datapath.headers cimport TH_ACK, TH_FIN, TH_SYN
from bucatini.datapath.tcp cimport (
    TA_ABORT, TA_ACCEPT, TA_ACK, TA_ACK_BATCH, TA_CLOSE, TA_DISCARD, TA_FETCH, TA_FIN, TA_KEEP, TA_NEW, TA_PROBE,
    TA_PUMP, TA_REPAIR, TA_REWIND, TA_SHUTDOWN, TCP_CONNECTING, TCP_ESTABLISHED, TF_FIN_SENT, TF_GUEST_FIN,
    TF_HOST_EOF, TF_PENDING, TcpActions, TcpConn, TcpSegment, seq_ge, seq_gt, seq_le, seq_lt, tcp_blocked,
    tcp_connected, tcp_fetch, tcp_fin_seq, tcp_from_guest, tcp_held, tcp_hole, tcp_host_eof, tcp_kept, tcp_refused,
    tcp_repaired, tcp_room, tcp_segment, tcp_sent, tcp_timeout, tcp_to_guest, tcp_window,
)
from bucatini.datapath.tcp_options cimport TCP_OPTIONS_MAX, tcp_options

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
    OPTIONS = 40

cdef uint32_t ISS = 0xFFFFF000U, IRS = 0xFFFFFE00U  # both wrap early
cdef uint64_t SILENCE = 300000000000  # ns, after which a probed one is

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
    # The host
    uint32_t takes
    uint32_t pool  # bytes that may be held
    uint32_t received
    uint32_t held
    uint32_t written
    uint32_t host_una
    bint host_closed
    bint shut
    bint finished
    bint readable
    uint32_t patience
    uint32_t edge
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


cdef void guest_segment(World *w, uint8_t flags, uint32_t seq, uint32_t length) noexcept nogil:
    cdef Sent s
    cdef uint32_t i, n
    s.flags = flags | TH_ACK
    s.seq = seq
    s.ack = w.rcv_nxt + (w.fin_seen and w.fin_at == w.rcv_nxt)
    s.length = length
    s.window = w.room - w.unread if w.room > w.unread else 0
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
    """Send the next segment, or the oldest one again; whether there is one."""
    cdef uint32_t start = w.una if again else w.nxt, length
    cdef bint fin
    if start > w.queued:
        if not w.closed:
            return False
        guest_segment(w, TH_FIN, w.queued, 0)
        w.nxt = w.queued + 1
        return True
    length = w.queued - start if w.queued - start < MSS else MSS
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


cdef bint guest_takes(World *w, const Sent *s) noexcept nogil:
    """Process a segment of the machine; whether it is to be acknowledged."""
    cdef uint32_t end = s.seq + s.length, limit, start = s.seq, i, j
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
    limit = w.rcv_nxt + w.room - w.unread if w.room > w.unread else w.rcv_nxt
    if <int> s.seq < 0:  # a probe is numbered one below the first byte
        start = 0
        end = 0
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
    put(&w.to_guest, &s)


cdef void pump(World *w) noexcept nogil:
    """What `tcp_io` does when there may be room."""
    cdef uint32_t room, start
    while w.readable and w.wrong == NULL:
        room = tcp_room(&w.c)
        if room > w.c.mss:
            room = w.c.mss
        if room == 0:
            tcp_blocked(&w.c, w.now)
            return
        start = ours(w.c.snd_nxt)
        if start < w.written:
            if room > w.written - start:
                room = w.written - start
            tcp_sent(&w.c, room, w.now)
            emit(w, 0, start, room)
        elif w.host_closed:
            w.readable = False
            tcp_host_eof(&w.c, w.now, &w.a)
            if w.a.what & TA_FIN:
                emit(w, TH_FIN, ours(tcp_fin_seq(&w.c)), 0)
        else:
            w.readable = False


cdef uint32_t host_gets(World *w, uint32_t length) noexcept nogil:
    """The socket takes what it does, the overflow the rest; returns how much found no room."""
    cdef uint32_t taken = 0, refused = 0, most = BOUND + OVER if w.pool > BOUND + OVER else w.pool
    if not w.held:
        taken = length if length < w.takes else w.takes
    w.takes -= taken
    w.received += taken
    length -= taken
    if w.held + length > most:
        refused = w.held + length - most if w.held < most else length
    w.held += length - refused
    return refused


cdef void drained(World *w) noexcept nogil:
    """The socket takes what it does of what is held."""
    cdef uint32_t taken = w.held if w.held < w.takes else w.takes
    w.takes -= taken
    w.held -= taken
    w.received += taken


cdef void settle(World *w, bint ack) noexcept nogil:
    tcp_held(&w.c, w.held, &w.a)
    if w.a.what & TA_SHUTDOWN:
        if w.held:
            fail(w, b"shut before all was written")
        w.shut = True
    if ack or w.a.what & TA_ACK:
        emit(w, 0, ours(w.c.snd_max), 0)
    if w.a.what & TA_CLOSE:
        w.finished = True


cdef void act(World *w, const Sent *s) noexcept nogil:
    """Carry the machine's actions out."""
    cdef TcpActions a = w.a  # what is carried out makes new ones
    cdef uint32_t what = a.what, start, length, i, seq = 0, rounds = 0, refused
    if what & (TA_ABORT | TA_NEW):
        fail(w, b"the connection was given up")
        return
    if what & (TA_KEEP | TA_ACCEPT) and (s == NULL or a.offset + a.length > s.length):
        fail(w, b"more than the segment has")
        return
    if what & TA_KEEP:
        for i in range(a.length):
            w.kept[s.seq + a.offset + i] = 1
        tcp_kept(&w.c, IRS + 1 + s.seq + a.offset, a.length)
    if what & TA_ACCEPT:
        if s.seq + a.offset != w.received + w.held:
            fail(w, b"a hole or a repetition")
        refused = host_gets(w, a.length)
        if refused:
            tcp_refused(&w.c, refused)
    if what & TA_FETCH:
        start = w.received + w.held
        length = tcp_fetch(&w.c)
        if start + length > w.queued:
            fail(w, b"fetched what was never sent")
            return
        for i in range(length):
            if not w.kept[start + i]:
                fail(w, b"bytes that never came")
        w.held += length  # it has its place in the pool already
        drained(w)
    if what & TA_DISCARD:
        w.host_una += a.discard
        if w.host_una > w.written:
            fail(w, b"discarded what is not there")
    if what & TA_REWIND:
        w.readable = True
    if what & TA_REPAIR:
        while w.wrong == NULL:
            length = tcp_hole(&w.c, &seq)
            if length == 0:
                break
            if length > w.c.mss:
                length = w.c.mss
            if ours(seq) < w.host_una or ours(seq) + length > w.written:
                fail(w, b"sent again what is not there")
            tcp_repaired(&w.c, seq, length)
            emit(w, 0, ours(seq), length)
            rounds += 1
            if rounds > 1000:
                fail(w, b"holes without end")
    if what & TA_FIN:
        emit(w, TH_FIN, ours(tcp_fin_seq(&w.c)), 0)
    if what & TA_PROBE:
        emit(w, 0, ours(w.c.snd_una) - 1, 0)
    if what & (TA_PUMP | TA_REWIND):
        w.readable = w.readable or ours(w.c.snd_nxt) < w.written
        pump(w)
    settle(w, (what & (TA_ACK | TA_ACK_BATCH)) != 0)


cdef void feed(World *w, const Sent *s) noexcept nogil:
    """Give a segment to the machine."""
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


cdef void drain(World *w) noexcept nogil:
    if w.held and w.takes and not w.finished:
        drained(w)
        settle(w, False)


cdef void time_passes(World *w) noexcept nogil:
    """Both timers fire, if there is something to be sent again."""
    if (w.c.deadline and not w.finished and w.c.retries < w.patience and w.c.probes < PATIENCE
            and (w.c.snd_una == w.c.snd_max and not w.c.flags & TF_PENDING
                 or w.c.deadline - w.c.last_heard <= SILENCE)):
        if w.now < w.c.deadline:
            w.now = w.c.deadline
        tcp_timeout(&w.c, w.now, &w.a)
        act(w, NULL)
    if w.una < w.nxt:
        guest_data(w, True)


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
    if w.received + w.held > w.queued or w.rcv_nxt > w.written:
        fail(w, b"invented")
    if w.c.rcv_nxt - IRS - 1 != w.received + w.held + (w.c.flags & TF_GUEST_FIN != 0):
        fail(w, b"acknowledged is not what was taken")
    if seq_gt(w.c.snd_una, w.c.snd_nxt) or seq_gt(w.c.snd_nxt, w.c.snd_max):
        fail(w, b"numbers out of order")
    if not w.finished and w.c.deadline == 0:
        fail(w, b"no timer")


cdef void run_model(World *w, const uint8_t *p, uint32_t size) noexcept nogil:
    cdef TcpSegment syn
    cdef uint32_t at = 0, kind, value, _i
    cdef uint8_t[20] options
    memset(w, 0, sizeof(World) - sizeof(w.kept))
    memset(w.kept, 0, sizeof(w.kept))
    memcpy(options, b"\2\4\0\x70\4\2\x08\x0a\0\0\0\0\0\0\0\0\1\3\3\0", 20)  # 12 of the MSS are for timestamps
    memset(&syn, 0, sizeof(syn))
    syn.flags = TH_SYN
    syn.seq = IRS
    syn.window = 65535
    syn.options = options
    syn.options_length = 20
    tcp_from_guest(&w.c, &syn, ISS, 200, BOUND, 0)
    tcp_connected(&w.c, 0, &w.a)
    w.c.rcv_adv = w.c.rcv_nxt + BOUND
    w.guest_edge = BOUND
    w.room = 600
    w.takes = w.pool = 1 << 30
    w.patience = PATIENCE
    acknowledge(w)
    feed(w, &w.to_machine.segments[w.to_machine.head])
    take(&w.to_machine)
    holds(w)
    while at < size and at < EVENTS and w.wrong == NULL:
        kind = p[at] >> 5
        value = p[at] & 31
        at += 1
        if kind == 0:
            if not w.closed and w.queued + 6 * value < BYTES:
                w.queued += 1 + 6 * value
                guest_sends(w)
        elif kind == 1:
            if not w.host_closed and not w.finished and w.written + 6 * value < BYTES:
                w.written += 1 + 6 * value
                w.readable = True
                pump(w)
        elif kind == 2:
            deliver(w, True, value & 7)
            if value & 8:
                deliver(w, True, 0)
            if value & 16:
                deliver(w, True, 0)
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
            drain(w)
        elif kind == 6:
            time_passes(w)
        elif value == 31:
            w.pool = w.held  # the others have the rest
        elif value == 30:
            w.pool = 1 << 30
        elif value & 7 == 0:
            if not w.closed:
                w.closed = True
                guest_sends(w)
        elif value & 7 == 1:
            if not w.host_closed and not w.finished:
                w.host_closed = True
                w.readable = True
                pump(w)
        else:
            # All that is on the way arrives
            for _i in range(value):
                deliver(w, True, 0)
                deliver(w, False, 0)
        holds(w)
    # From every state the connection ends, when nothing is lost any more and both sides close
    w.closed = True
    if not w.finished:
        w.host_closed = w.readable = True
    w.takes = w.pool = 1 << 30
    w.patience = PATIENCE + MORE
    drain(w)
    if not w.finished:
        pump(w)
    at = 0
    while not w.finished and w.wrong == NULL and at < 400:
        at += 1
        w.unread = 0
        guest_sends(w)
        kind = 0
        while (w.to_machine.count or w.to_guest.count) and kind < 4000 and w.wrong == NULL:
            kind += 1
            deliver(w, True, 0)
            deliver(w, False, 0)
            w.unread = 0
        holds(w)
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
    """A byte an event: which, in three bits, and how."""
    cdef const uint8_t *p = data
    cdef uint32_t size = len(data)
    with nogil:
        run_model(&world, p, size)
    check(world.wrong)


# A guest that says anything


cdef struct Hostile:
    TcpConn c
    TcpActions a
    uint64_t now
    const char *wrong
    uint32_t held
    uint32_t edge  # right edge that was told
    bint told
    bint over
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
    """A segment leaves: its window and options."""
    cdef uint8_t[TCP_OPTIONS_MAX] out
    cdef uint32_t field = tcp_window(&h.c), edge = h.c.rcv_nxt + (field << h.c.rcv_wscale), size
    if h.told and seq_lt(edge, h.edge):
        blame(h, b"the window was shrunk")
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


cdef void carry_out(Hostile *h, const TcpConn *before, const TcpSegment *s) noexcept nogil:
    """Do what the machine says, and see whether it may say so."""
    cdef TcpActions a = h.a
    cdef TcpConn *c = &h.c
    cdef uint32_t taken = 0, length, seq = 0, rounds = 0, kept, i, acked
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
    carry_out(h, &before, &s)
    free(options)


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
            h.c.rcv_adv = h.c.rcv_nxt + (h.c.bound if h.c.bound < 65535 else 65535)  # as `tcp_io` does
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
                carry_out(h, &before, NULL)
        elif kind == 5:
            if h.c.state == TCP_CONNECTING:
                tcp_connected(&h.c, h.now, &h.a)
                h.c.rcv_adv = h.c.rcv_nxt + (h.c.bound if h.c.bound < 65535 else 65535)
            elif not h.c.flags & TF_HOST_EOF:
                # The host has data
                room = tcp_room(&h.c)
                room = room if room < h.c.mss else h.c.mss
                if room and h.c.flags & TF_FIN_SENT == 0:
                    tcp_sent(&h.c, room if value & 1 else 1 + room // 2, h.now)
                    tell(h)
                elif h.c.state == TCP_ESTABLISHED:
                    tcp_blocked(&h.c, h.now)
        elif kind == 6:
            # It has no more, and everything is sent
            if h.c.state == TCP_ESTABLISHED and h.c.snd_nxt == h.c.snd_max and not h.c.flags & TF_FIN_SENT:
                tcp_host_eof(&h.c, h.now, &h.a)
                carry_out(h, &before, NULL)
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
        carry_out(h, &before, NULL)
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
