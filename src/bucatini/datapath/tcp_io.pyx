"""The sockets behind the TCP machine: carries out what `tcp` decides, batch by batch.

Purpose. A batch of frames (one `receive` of the link) is run through the machine segment by segment; payload of one
flow is gathered into an iovec and handed to its socket with one sendmsg at the end of the batch, followed by one
acknowledgement. Host data is received (peeked) directly behind the headers of the frame that carries it to the
guest.

Data. `TcpBatch`: the flows touched by this batch. What a socket does not take goes to the overflow
(`overflow.pyx`) and drains on EPOLLOUT. The window towards the guest is `BOUND` less what is held; when the pool runs
short new flows get less, and when it is empty, or a flow holds `BOUND_OVER` more than its bound, the rest of the
payload is taken back unacknowledged (`tcp_overflow_exhausted`): the guest sends it again.

Sockets are added to epoll once, edge triggered. `readable` remembers an edge until a read came back short; `hangup`
(EPOLLRDHUP) makes reading go on until the end of the stream. A flow that has used up its share of a turn (`SHARE`
bytes) continues in the next one.

Urgent data (T31) stays where it is in the stream; that it is urgent is not passed on. A read ends at its mark, so a
flow that had any (EPOLLPRI) is read until there is nothing, and what is discarded is counted.

Failure. Refused: RST. Unreachable: ICMP, and the guest's connect() fails at once. Out of descriptors or flows:
something that is not in use gives way (`room`), else RST, and `flow_refused` counts. A reset on either side is a reset
on the other.
"""

# syscalls serve: socket setsockopt getsockopt bind connect shutdown recvfrom sendmsg recvmsg close ioctl

from libc.stdint cimport INT32_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from bucatini.datapath.build cimport build_icmp_error, build_tcp, icmp_error_of
from bucatini.datapath.by_age cimport AGED_GUEST, by_age_add, by_age_remove
from bucatini.datapath.counters cimport (
    C_DROP_DISABLED, C_DROP_TCP_UNKNOWN, C_FLOW_REFUSED, C_TCP_CHALLENGE_ACK, C_TCP_CLOSED, C_TCP_DATA_AFTER_FIN,
    C_TCP_DUPLICATE, C_TCP_FAST_RETRANSMIT, C_TCP_KEEPALIVE_SENT, C_TCP_OPENED_GUEST, C_TCP_OUT_OF_ORDER,
    C_TCP_OVERFLOW, C_TCP_OVERFLOW_EXHAUSTED, C_TCP_PAWS, C_TCP_RESET_BY_GUEST, C_TCP_RESET_BY_HOST, C_TCP_RETRANSMIT,
    C_TCP_RST_SENT, C_TCP_TIMED_OUT, C_TCP_ZERO_WINDOW_PROBE,
)
from bucatini.datapath.flow cimport FLOW_TCP, FlowKey, TcpFlow, flow_new
from bucatini.datapath.headers cimport (
    ETH_HLEN, IP_LEN_MAX, IPV4_HLEN, IPV6_HLEN, PROTO_TCP, TCP_HLEN, TH_ACK, TH_FIN, TH_PSH, TH_RST, TH_SYN,
    addr_is_unspecified, addr_is_v4, addr_t, htonl, htons, tcp_hdr, vnet_hdr,
)
from bucatini.datapath.link cimport LINK_BATCH, LINK_TSO, Link
from bucatini.datapath.overflow cimport (
    CHUNK, Chunks, overflow_add, overflow_drain, overflow_drop, overflow_fetch, overflow_forget, overflow_free,
    overflow_init, overflow_keep,
)
from bucatini.datapath.room cimport room_for_connection, room_is_short
from bucatini.datapath.siphash cimport siphash24
from bucatini.datapath.sockaddr cimport sockaddr_any, sockaddr_fill
from bucatini.datapath.syscalls cimport (
    AF_INET, AF_INET6, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, IPPROTO_IP, IPPROTO_TCP,
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_PEEK, MSG_TRUNC, PROT_READ,
    PROT_WRITE, SHUT_WR, SO_ERROR, SO_KEEPALIVE, SO_LINGER, SO_OOBINLINE, SO_PEEK_OFF, SOCK_CLOEXEC, SOCK_NONBLOCK,
    SOCK_STREAM, SOL_SOCKET, TCP_NODELAY, bind, close, connect, getsockopt, iovec, linger, mmap, msghdr, munmap, recv,
    recvmsg, sendmsg, setsockopt, shutdown, socket, socklen_t,
)
from bucatini.datapath.tcp cimport (
    TA_ABORT, TA_ACCEPT, TA_ACK, TA_ACK_BATCH, TA_CLOSE, TA_DISCARD, TA_FETCH, TA_FIN, TA_KEEP, TA_KEEPALIVE, TA_NEW,
    TA_PROBE, TA_PUMP, TA_REPAIR, TA_REWIND, TA_RST, TA_RST_REPLY, TA_SHUTDOWN, TA_SYN, TA_SYNACK, TCP_CLOSED,
    TCP_ESTABLISHED, TCP_SYN_SENT, TC_AFTER_FIN, TC_CHALLENGE, TC_DUPLICATE, TC_FAST_RETRANSMIT, TC_KEEPALIVE,
    TC_OUT_OF_ORDER, TC_PAWS, TC_PROBE, TC_RESET_BY_GUEST, TC_RETRANSMIT, TC_TIMED_OUT, TF_GUEST_FIN, TF_HOST_EOF,
    TF_SHUT_DONE, TF_TIMESTAMPS, TcpActions, TcpConn, TcpSegment, tcp_ack_seq, tcp_blocked, tcp_connected, tcp_drained,
    tcp_fetch, tcp_fin_seq, tcp_from_guest, tcp_held, tcp_hole, tcp_host_eof, tcp_kept, tcp_refused, tcp_repaired,
    tcp_room, tcp_segment, tcp_sent, tcp_timeout, tcp_window,
)
from bucatini.datapath.tcp_options cimport TCP_OPTIONS_MAX, TCP_TIMESTAMPS_SIZE, tcp_options, tcp_syn_options
from bucatini.datapath.timers cimport timer_arm
from bucatini.datapath.translate cimport Target, translate_outbound
from bucatini.datapath.worker cimport (
    NOTICE_AFTER_FIN, count, worker_continue, worker_drop_flow, worker_find, worker_has_opened, worker_key,
    worker_leave_by, worker_may_open, worker_watch,
)


cdef extern from "<errno.h>" nogil:
    int errno, EAGAIN, EINPROGRESS, EINTR, ECONNABORTED, ECONNREFUSED, ECONNRESET, EMFILE, ENFILE, ENOBUFS, ENOMEM
    int ETIMEDOUT


cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, void *argument)


cdef extern from "<linux/sockios.h>" nogil:
    unsigned long SIOCINQ


cdef extern from *:
    """
    #ifndef IP_BIND_ADDRESS_NO_PORT
    #define IP_BIND_ADDRESS_NO_PORT 24
    #endif
    """
    int IP_BIND_ADDRESS_NO_PORT


cdef enum:
    BOUND = 262144  # bytes, overflow of one flow, and so the largest window towards the guest
    BOUND_MIN = 65536
    BOUND_OVER = 65536  # bytes beyond: windows are rounded up, so small segments find one that never closes
    SHARE = 131072  # bytes to the guest in one turn of a flow, and the frame that crosses it: three superframes
    FRAME_COST = 1024  # a frame counts as so many of them at least: small ones are the guest's choice (MSS, window)
    SCRATCH = 1048576  # bytes re-read at most without SO_PEEK_OFF
    BEHIND_MARK = -2  # `peek`
    LATE = 64  # flows whose acknowledgement is put off at a time
    LATE_NS = 10000000  # by this much at most
    LATE_BYTES = 1400  # of a segment that may be a question
    LATE_PENALTY = 16  # segments of the host until a flow whose answer was late is trusted again

cdef struct Entry:  # a flow in the batch
    Flow *flow
    iovec iov[LINK_BATCH]
    int count  # iovecs
    uint32_t bytes  # in them
    uint32_t discard  # bytes acknowledged
    uint32_t owed  # bytes accepted in this batch
    uint32_t segments  # that carried them
    bint rewind
    bint repair
    bint pump
    bint ack

cdef struct TcpBatch:
    Entry entries[LINK_BATCH]
    uint32_t count
    uint8_t *scratch  # SCRATCH bytes, for what is read again
    uint32_t late[LATE]  # flows that may owe an acknowledgement (`acknowledge_later`)
    uint32_t late_count
    Chunks chunks


cdef inline TcpBatch *batch(Worker *w) noexcept nogil:
    return <TcpBatch *> w.tcp


cdef inline Chunks *chunks(Worker *w) noexcept nogil:
    return &(<TcpBatch *> w.tcp).chunks


cdef int tcp_init(Worker *w) noexcept nogil:
    cdef uint8_t *memory = <uint8_t *> mmap(NULL, SCRATCH + sizeof(TcpBatch), PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if memory == <uint8_t *> MAP_FAILED:
        return -ENOMEM
    w.tcp = memory + SCRATCH
    batch(w).scratch = memory
    if overflow_init(chunks(w)) < 0:
        munmap(memory, SCRATCH + sizeof(TcpBatch))
        w.tcp = NULL
        return -ENOMEM
    return 0


cdef void tcp_free(Worker *w) noexcept nogil:
    overflow_free(chunks(w))
    munmap(batch(w).scratch, SCRATCH + sizeof(TcpBatch))


# Segments to the guest


cdef void emit(Worker *w, Flow *flow, uint32_t seq, uint8_t flags) noexcept nogil:
    """Send a segment without payload; it acknowledges what is owed, and tells what is kept."""
    cdef Link *link = w.link
    cdef uint8_t *out = link.reserve(link)
    cdef uint8_t[TCP_OPTIONS_MAX] options
    cdef vnet_hdr vnet
    cdef TcpConn *c = &flow.u.tcp.conn
    cdef uint32_t size = tcp_options(c, True, w.now, options)
    cdef uint32_t length = build_tcp(w, out, &flow.key, seq, c.rcv_nxt, tcp_window(c), flags, size, 0, c.mss, &vnet)
    memcpy(out + length - size, options, size)
    flow.u.tcp.late = 0
    link.commit(link, length, &vnet)


cdef void tcp_emit_syn(Worker *w, Flow *flow, uint8_t flags) noexcept nogil:
    """Send our SYN or SYN-ACK: window unscaled, options behind the header (RFC 7323 §2.2)."""
    cdef Link *link = w.link
    cdef uint8_t *out = link.reserve(link)
    cdef uint8_t[TCP_OPTIONS_MAX] options
    cdef vnet_hdr vnet
    cdef TcpConn *c = &flow.u.tcp.conn
    cdef uint32_t size = tcp_syn_options(c, w.now, options)
    cdef uint32_t window = c.bound if c.bound < 65535 else 65535
    cdef uint32_t length = build_tcp(w, out, &flow.key, c.iss, c.rcv_nxt if flags & TH_ACK else 0, <uint16_t> window,
                                     flags, size, 0, 65535, &vnet)
    memcpy(out + length - size, options, size)
    if flags & TH_ACK:
        c.rcv_adv = c.rcv_nxt + window
        c.ack_sent = c.rcv_nxt
    link.commit(link, length, &vnet)


cdef void tcp_emit_reset(Worker *w, Flow *flow) noexcept nogil:
    """Send RST for a flow (T23: with ACK, but for a connection the guest never answered)."""
    cdef TcpConn *c = &flow.u.tcp.conn
    count(w, C_TCP_RST_SENT)
    if c.state == TCP_SYN_SENT:
        emit(w, flow, c.snd_max, TH_RST)
        return
    emit(w, flow, tcp_ack_seq(c), TH_RST | TH_ACK)


cdef void answer_reset(Worker *w, const FrameRef *ref) noexcept nogil:
    """Answer a segment that belongs to nothing (RFC 9293 §3.5.2)."""
    cdef Link *link = w.link
    cdef FlowKey key
    cdef vnet_hdr vnet
    cdef uint32_t length, ack
    if ref.flags & TH_RST:
        return
    worker_key(&key, ref)
    count(w, C_TCP_RST_SENT)
    if ref.flags & TH_ACK:
        length = build_tcp(w, link.reserve(link), &key, ref.ack, 0, 0, TH_RST, 0, 0, 536, &vnet)
    else:
        ack = ref.seq + ref.payload_length + (1 if ref.flags & TH_SYN else 0) + (1 if ref.flags & TH_FIN else 0)
        length = build_tcp(w, link.reserve(link), &key, 0, ack, 0, TH_RST | TH_ACK, 0, 0, 536, &vnet)
    link.commit(link, length, &vnet)


# The end of a flow


cdef void tcp_forget(Worker *w, Flow *flow) noexcept nogil:
    cdef uint32_t entry = flow.u.tcp.batch
    if entry:
        batch(w).entries[entry - 1].flow = NULL
    overflow_drop(chunks(w), &flow.u.tcp)
    by_age_remove(w, flow)
    w.accepted -= flow.from_host
    count(w, C_TCP_CLOSED)
    worker_drop_flow(w, flow)


cdef void tcp_abort_host(Worker *w, Flow *flow) noexcept nogil:
    """Reset the host's end (T5) and forget the flow; after the guest's FIN the host's kernel sends what it has."""
    cdef linger now
    now.l_onoff = 1
    now.l_linger = 0
    if flow.fd >= 0 and flow.u.tcp.conn.flags & TF_SHUT_DONE:
        recv(flow.fd, NULL, INT32_MAX, MSG_TRUNC | MSG_DONTWAIT)  # with anything unread close(2) is a reset
    elif flow.fd >= 0:
        setsockopt(flow.fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now))
    tcp_forget(w, flow)


cdef void reset_by_host(Worker *w, Flow *flow) noexcept nogil:
    """The host's end is gone: so is the guest's."""
    count(w, C_TCP_RESET_BY_HOST)
    tcp_emit_reset(w, flow)
    tcp_forget(w, flow)


cdef inline void count_all(Worker *w, uint32_t counted) noexcept nogil:
    """Move the counters that the machine names."""
    if counted & TC_OUT_OF_ORDER:
        count(w, C_TCP_OUT_OF_ORDER)
    if counted & TC_DUPLICATE:
        count(w, C_TCP_DUPLICATE)
    if counted & TC_AFTER_FIN:
        count(w, C_TCP_DATA_AFTER_FIN)
        w.notices |= NOTICE_AFTER_FIN  # T32: told once
    if counted & TC_CHALLENGE:
        count(w, C_TCP_CHALLENGE_ACK)
    if counted & TC_FAST_RETRANSMIT:
        count(w, C_TCP_FAST_RETRANSMIT)
    if counted & TC_RETRANSMIT:
        count(w, C_TCP_RETRANSMIT)
    if counted & TC_PROBE:
        count(w, C_TCP_ZERO_WINDOW_PROBE)
    if counted & TC_KEEPALIVE:
        count(w, C_TCP_KEEPALIVE_SENT)
    if counted & TC_RESET_BY_GUEST:
        count(w, C_TCP_RESET_BY_GUEST)
    if counted & TC_TIMED_OUT:
        count(w, C_TCP_TIMED_OUT)
    if counted & TC_PAWS:
        count(w, C_TCP_PAWS)


# Host to guest


cdef inline void peek_from(Flow *flow, uint32_t seq) noexcept nogil:
    """Make the next read start at `seq`, if the kernel can. A short answer is sent in one read and never needs it."""
    cdef int value = <int> (seq - flow.u.tcp.conn.snd_una)
    flow.u.tcp.peeking = setsockopt(flow.fd, SOL_SOCKET, SO_PEEK_OFF, &value, sizeof(value)) == 0


cdef inline bint is_end(Flow *flow, uint32_t n) noexcept nogil:
    """Whether `n` bytes behind those in flight are the last that the host peer sent before it shut its side."""
    cdef int queued = 0
    return (ioctl(flow.fd, SIOCINQ, &queued) == 0
            and <uint32_t> queued == flow.u.tcp.conn.snd_nxt - flow.u.tcp.conn.snd_una + n)


cdef inline ssize_t peek(Worker *w, Flow *flow, uint32_t seq, uint8_t *out, uint32_t size) noexcept nogil:
    """Receive what is numbered `seq` and on, leaving it in the socket; as recv(2).

    With SO_PEEK_OFF on, the socket's offset is where `seq` is: it moves on with every read. Without, a read from the
    head ends at an urgent mark in what is in flight; BEHIND_MARK: there is more, once that was acknowledged.
    """
    cdef uint32_t skip = seq - flow.u.tcp.conn.snd_una
    cdef iovec[2] iov
    cdef msghdr message
    cdef ssize_t n
    if w.settings.peek_off and skip and not flow.u.tcp.peeking:
        peek_from(flow, seq)
    if skip == 0 or flow.u.tcp.peeking:
        return recv(flow.fd, out, size, MSG_PEEK | MSG_DONTWAIT)
    # Without SO_PEEK_OFF everything in flight is read again first
    if skip > SCRATCH:
        errno_set_again()
        return -1
    memset(&message, 0, sizeof(message))
    iov[0].iov_base = batch(w).scratch
    iov[0].iov_len = skip
    iov[1].iov_base = out
    iov[1].iov_len = size
    message.msg_iov = iov
    message.msg_iovlen = 2
    n = recvmsg(flow.fd, &message, MSG_PEEK | MSG_DONTWAIT)
    if n <= skip and n >= 0:
        if n == skip and not is_end(flow, 0):
            return BEHIND_MARK
        if n == skip and flow.u.tcp.hangup:
            return 0
        errno_set_again()
        return -1
    return n - skip if n > 0 else n


cdef extern from *:
    """
    #include <errno.h>
    static inline void errno_set_again(void) { errno = EAGAIN; }
    """
    void errno_set_again() noexcept nogil


cdef inline uint32_t headers_of(Flow *flow) noexcept nogil:
    """Bytes in front of the payload."""
    return (ETH_HLEN + TCP_HLEN + (IPV4_HLEN if addr_is_v4(&flow.key.guest) else IPV6_HLEN)
            + (TCP_TIMESTAMPS_SIZE if flow.u.tcp.conn.flags & TF_TIMESTAMPS else 0))


cdef inline uint32_t largest(Worker *w, Flow *flow) noexcept nogil:
    """Bytes of payload that a frame to the guest takes."""
    cdef uint32_t mss = flow.u.tcp.conn.mss
    if w.link.features & LINK_TSO:
        return ((IP_LEN_MAX + ETH_HLEN - headers_of(flow)) // mss) * mss
    return mss


cdef inline void build_data(Worker *w, Flow *flow, uint8_t *out, uint32_t seq, uint8_t flags, uint32_t length,
                            vnet_hdr *vnet) noexcept nogil:
    """Write the headers of a segment with payload."""
    cdef TcpConn *c = &flow.u.tcp.conn
    cdef uint8_t[TCP_OPTIONS_MAX] options
    cdef uint32_t size = tcp_options(c, False, w.now, options)
    cdef uint32_t offset = build_tcp(w, out, &flow.key, seq, c.rcv_nxt, tcp_window(c), flags, size, length, c.mss, vnet)
    memcpy(out + offset - size, options, size)


cdef void repair(Worker *w, Flow *flow) noexcept nogil:
    """Send holes again, as many as the share of this turn allows; the next acknowledgement goes on with it."""
    cdef Link *link = w.link
    cdef TcpFlow *t = &flow.u.tcp
    cdef uint32_t headers = headers_of(flow), limit = largest(w, flow), seq = 0, length, last = t.conn.snd_nxt
    cdef vnet_hdr vnet
    cdef uint8_t *out
    cdef uint32_t sent = 0
    cdef ssize_t n
    while sent < SHARE:
        length = tcp_hole(&t.conn, &seq)
        if length == 0:
            break
        out = link.reserve(link)
        if t.peeking and seq != last:
            peek_from(flow, seq)
        n = peek(w, flow, seq, out + headers, length if length < limit else limit)
        if n <= 0:
            break
        sent += <uint32_t> n if n > FRAME_COST else FRAME_COST
        last = seq + <uint32_t> n
        build_data(w, flow, out, seq, TH_ACK, <uint32_t> n, &vnet)
        tcp_repaired(&t.conn, seq, <uint32_t> n)
        count(w, C_TCP_RETRANSMIT)
        link.commit(link, headers + <uint32_t> n, &vnet)
    if t.peeking:
        peek_from(flow, t.conn.snd_nxt)


cdef bint pump(Worker *w, Flow *flow) noexcept nogil:
    """Send the host's data as far as the guest's window and the share of this turn go.

    Returns whether a segment left (it carried an acknowledgement). The flow may be gone afterwards: `kind` tells.
    """
    cdef Link *link = w.link
    cdef TcpFlow *t = &flow.u.tcp
    cdef TcpConn *c = &t.conn
    cdef TcpActions a
    cdef vnet_hdr vnet
    cdef uint32_t headers = headers_of(flow), limit = largest(w, flow), room, used = 0
    cdef uint8_t *out
    cdef uint8_t flags
    cdef ssize_t n
    cdef bint sent = False
    while t.readable:
        room = tcp_room(c)
        if room > limit:
            room = limit
        if not w.settings.peek_off and room > SCRATCH - (c.snd_nxt - c.snd_una):
            room = SCRATCH - (c.snd_nxt - c.snd_una)
        if room == 0:
            tcp_blocked(c, w.now)
            break
        if used >= SHARE or w.wire.blocked:
            if not t.queued:
                t.queued = 1
                worker_continue(w, flow)
            break
        out = link.reserve(link)
        n = peek(w, flow, c.snd_nxt, out + headers, room)
        if n > 0:
            flags = TH_ACK | TH_PSH if n < room else TH_ACK
            if n < room and t.hangup and not t.broken and is_end(flow, <uint32_t> n):
                flags |= TH_FIN  # one frame fewer for every short answer
            build_data(w, flow, out, c.snd_nxt, flags, <uint32_t> n, &vnet)
            tcp_sent(c, <uint32_t> n, w.now)
            t.late = 0
            if t.mistrusted:
                t.mistrusted -= 1
            if flags & TH_FIN:
                t.readable = 0
                tcp_host_eof(c, w.now, &a)
            link.commit(link, headers + <uint32_t> n, &vnet)
            sent = True
            used += <uint32_t> n if n > FRAME_COST else FRAME_COST
            if n < room and not t.hangup and not t.broken and not t.urgent:
                t.readable = 0  # drained: the next byte makes an edge
        elif n == 0 and t.broken:
            reset_by_host(w, flow)
            return True
        elif n == 0:
            t.readable = 0
            tcp_host_eof(c, w.now, &a)
            emit(w, flow, tcp_fin_seq(c), TH_FIN | TH_ACK)
            sent = True
        elif n == BEHIND_MARK:
            break
        elif errno == EAGAIN:
            t.readable = 0
            tcp_drained(c)
        elif errno != EINTR:
            reset_by_host(w, flow)
            return True
    return sent


# One flow at the end of a batch


cdef Entry *entry_of(Worker *w, Flow *flow) noexcept nogil:
    """The flow's place in the batch."""
    cdef Entry *e
    if flow.u.tcp.batch:
        return &batch(w).entries[flow.u.tcp.batch - 1]
    if batch(w).count == LINK_BATCH:
        tcp_flush(w)
    e = &batch(w).entries[batch(w).count]
    batch(w).count += 1
    flow.u.tcp.batch = batch(w).count
    e.flow = flow
    e.count = 0
    e.bytes = 0
    e.discard = 0
    e.owed = 0
    e.segments = 0
    e.rewind = False
    e.repair = False
    e.pump = False
    e.ack = False
    return e


cdef int deliver(Worker *w, Entry *e) noexcept nogil:
    """Hand the payload of an entry to the socket, the rest to the overflow. 0, or -errno of a socket done for."""
    cdef Flow *flow = e.flow
    cdef TcpFlow *t = &flow.u.tcp
    cdef uint32_t held = t.conn.held, most = t.conn.bound + BOUND_OVER, size, added
    cdef msghdr message
    cdef ssize_t n = 0
    cdef int i
    if held == 0:
        memset(&message, 0, sizeof(message))
        message.msg_iov = e.iov
        message.msg_iovlen = e.count
        while True:
            n = sendmsg(flow.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
            if n >= 0 or errno != EINTR:
                break
        if n < 0:
            if errno != EAGAIN and errno != ENOBUFS:
                return -errno
            n = 0
    if n < e.bytes:
        count(w, C_TCP_OVERFLOW)
        e.bytes -= <uint32_t> n
        for i in range(e.count):
            size = <uint32_t> e.iov[i].iov_len
            if n >= size:
                n -= size
                continue
            size -= <uint32_t> n
            added = most - held if held < most else 0
            added = overflow_add(chunks(w), t, <uint8_t *> e.iov[i].iov_base + n, size if size < added else added)
            n = 0
            held += added
            e.bytes -= added
            if added < size:
                # The pool is empty, or the flow's part of it: nothing of the rest was acknowledged yet
                count(w, C_TCP_OVERFLOW_EXHAUSTED)
                tcp_refused(&t.conn, e.bytes)
                if t.conn.kept.count == 0:  # a FIN has taken it out of the account, and comes again
                    overflow_forget(chunks(w), t)
                break
    t.conn.held = held
    e.count = 0
    e.bytes = 0
    return 0


cdef int fetch(Worker *w, Entry *e) noexcept nogil:
    """A hole is filled: hand over its payload, then what was kept behind it. 0, or -errno of a socket done for."""
    cdef Flow *flow = e.flow
    cdef TcpConn *c = &flow.u.tcp.conn
    cdef uint32_t start, length
    if e.count and deliver(w, e) < 0:
        return -1
    start = c.rcv_nxt
    length = tcp_fetch(c)
    overflow_fetch(chunks(w), &flow.u.tcp, start, start + length)
    return overflow_drain(chunks(w), flow)


cdef bint acknowledge_later(Worker *w, Entry *e) noexcept nogil:
    """Put the acknowledgement of a question off: the answer carries it, if it comes within LATE_NS (RFC 9293 §3.8.6.3).

    One small segment is taken for a question until the answer failed to come; then LATE_PENALTY segments of the host
    have to come first. Nobody waits for longer than LATE_NS: not a guest with Nagle's algorithm and another small
    segment (T28). Less than the kernel's tick would cost more than it saves: the timer is programmed anew each time.
    """
    cdef Flow *flow = e.flow
    cdef TcpFlow *t = &flow.u.tcp
    cdef TcpConn *c = &t.conn
    if (e.segments != 1 or e.owed > LATE_BYTES or t.late or t.mistrusted or c.held
            or c.flags & (TF_GUEST_FIN | TF_HOST_EOF) or c.rcv_adv - c.rcv_nxt < c.our_mss
            or c.state != TCP_ESTABLISHED):
        return False
    if not t.listed:
        if batch(w).late_count == LATE:
            return False
        batch(w).late[batch(w).late_count] = flow.index
        batch(w).late_count += 1
        t.listed = 1
    t.late = 1
    t.late_since = w.now
    if w.acknowledge_at == 0:
        w.acknowledge_at = w.now + LATE_NS
    return True


cdef void tcp_acknowledge(Worker *w) noexcept nogil:
    """Send the acknowledgements that were put off and whose time is over."""
    cdef uint32_t i, kept = 0
    cdef Flow *flow
    cdef TcpFlow *t
    w.acknowledge_at = 0
    for i in range(batch(w).late_count):
        flow = &w.flows.flows[batch(w).late[i]]
        t = &flow.u.tcp
        if flow.kind != FLOW_TCP or not t.listed:  # gone, or another one that is not on the list
            continue
        if t.late and w.now - t.late_since < LATE_NS:
            batch(w).late[kept] = flow.index
            kept += 1
            if w.acknowledge_at == 0 or t.late_since + LATE_NS < w.acknowledge_at:
                w.acknowledge_at = t.late_since + LATE_NS
            continue
        t.listed = 0
        if t.late:
            t.mistrusted = LATE_PENALTY
            emit(w, flow, tcp_ack_seq(&t.conn), TH_ACK)
    batch(w).late_count = kept


cdef void settle(Worker *w, Flow *flow, bint ack) noexcept nogil:
    """After the socket took what it takes: shut, acknowledge, close; `ack`: the guest is owed an acknowledgement."""
    cdef TcpFlow *t = &flow.u.tcp
    cdef TcpActions a
    tcp_held(&t.conn, t.conn.held, &a)
    if a.what & TA_SHUTDOWN:
        shutdown(flow.fd, SHUT_WR)
    if ack or a.what & TA_ACK:
        emit(w, flow, tcp_ack_seq(&t.conn), TH_ACK)
    if a.what & TA_CLOSE:
        tcp_forget(w, flow)
    elif t.conn.deadline:
        timer_arm(w.timers, w.flows, flow, t.conn.deadline)


cdef inline void discard(Flow *flow, uint32_t length) noexcept nogil:
    """Take bytes that the guest has acknowledged off the head of the socket. A read ends at an urgent mark (T31)."""
    cdef ssize_t n
    while length:
        n = recv(flow.fd, NULL, length, MSG_TRUNC | MSG_DONTWAIT)
        if n <= 0:
            return
        length -= <uint32_t> n


cdef void flush_entry(Worker *w, Entry *e) noexcept nogil:
    """Do for one flow what the segments of this batch ask for."""
    cdef Flow *flow = e.flow
    cdef TcpFlow *t
    cdef bint ack = e.ack
    if flow == NULL:
        return
    t = &flow.u.tcp
    if e.count and deliver(w, e) < 0:
        reset_by_host(w, flow)
        return
    if e.discard:
        discard(flow, e.discard)
        e.discard = 0
    if e.rewind:
        if t.peeking:
            peek_from(flow, t.conn.snd_nxt)
        t.readable = 1
        e.rewind = False
    if e.repair:
        e.repair = False
        repair(w, flow)
    e.ack = False
    if e.pump:
        e.pump = False
        if not t.queued and pump(w, flow):
            if e.flow == NULL:
                return
            ack = False
    settle(w, flow, ack and not acknowledge_later(w, e))


cdef uint32_t tcp_deliver(Worker *w) noexcept nogil:
    cdef uint32_t i, bytes = 0
    cdef Entry *e
    for i in range(batch(w).count):
        e = &batch(w).entries[i]
        if e.flow != NULL and e.count:
            bytes += e.bytes
            if deliver(w, e) < 0:
                reset_by_host(w, e.flow)
    return bytes


cdef void tcp_flush(Worker *w) noexcept nogil:
    cdef uint32_t i
    for i in range(batch(w).count):
        flush_entry(w, &batch(w).entries[i])
        if batch(w).entries[i].flow != NULL:
            batch(w).entries[i].flow.u.tcp.batch = 0
    batch(w).count = 0


# Guest to host


cdef int tcp_watch(Worker *w, Flow *flow) noexcept nogil:
    return worker_watch(w, flow, EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP)


cdef int open_socket(Worker *w, const Target *target) noexcept nogil:
    """Start connect(); returns the socket or -errno."""
    cdef sockaddr_any sa
    cdef socklen_t size
    cdef bint v4 = addr_is_v4(&target.address)
    cdef int one = 1, error
    cdef int fd = socket(AF_INET if v4 else AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP)
    if fd < 0:
        return -errno
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))  # T28: the guest's own Nagle is enough
    setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &one, sizeof(one))  # T31: urgent bytes stay in their place
    if not addr_is_unspecified(&target.source):
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one))
        size = sockaddr_fill(&sa, &target.source, 0, target.scope_id)
        if bind(fd, &sa.sa, size) < 0:
            error = errno
            close(fd)
            return -error
    error = worker_leave_by(w, fd, &target.address)
    if error < 0:
        close(fd)
        return error
    size = sockaddr_fill(&sa, &target.address, target.port, target.scope_id)
    if connect(fd, &sa.sa, size) < 0 and errno != EINPROGRESS:
        error = errno
        close(fd)
        return -error
    return fd


cdef uint32_t tcp_initial_number(Worker *w, const FlowKey *key) noexcept nogil:
    """RFC 6528 §3: a keyed hash of the connection plus a clock of about 4 microseconds."""
    return <uint32_t> siphash24(&w.isn_key, <const uint64_t *> key, 5) + <uint32_t> (w.now >> 12)


cdef uint32_t tcp_bound_now(Worker *w) noexcept nogil:
    """The overflow a new flow may count on: less when the pool runs short."""
    cdef uint64_t share = <uint64_t> chunks(w).available * CHUNK // 64
    if share >= BOUND:
        return BOUND
    return <uint32_t> share if share > BOUND_MIN else BOUND_MIN


cdef uint16_t tcp_our_mss(Worker *w, const FlowKey *key) noexcept nogil:
    return w.settings.mtu - TCP_HLEN - (IPV4_HLEN if addr_is_v4(&key.guest) else IPV6_HLEN)


cdef void refuse(Worker *w, const FlowKey *key, const TcpSegment *s, const FrameRef *ref, int error) noexcept nogil:
    """Tell the guest that its connect() failed: RST, or ICMP where the network was the reason (T1, T2)."""
    cdef Link *link = w.link
    cdef tcp_hdr quoted
    cdef vnet_hdr vnet
    cdef uint32_t length
    if error == ETIMEDOUT:
        return  # the guest's own patience decides
    if error == ECONNREFUSED or error == ECONNRESET or error == EMFILE or error == ENFILE or error == ENOMEM \
            or error == ENOBUFS or error == EAGAIN:
        count(w, C_TCP_RST_SENT)
        length = build_tcp(w, link.reserve(link), key, 0, s.seq + 1, 0, TH_RST | TH_ACK, 0, 0, 536, &vnet)
        link.commit(link, length, &vnet)
        return
    memset(&quoted, 0, sizeof(quoted))
    quoted.sport_be = htons(key.gport)
    quoted.dport_be = htons(key.rport)
    quoted.seq_be = htonl(s.seq)
    quoted.offset = (TCP_HLEN // 4) << 4
    quoted.flags = TH_SYN
    quoted.window_be = htons(s.window)
    build_icmp_error(w, key, &key.remote, icmp_error_of(error), 0, <uint8_t *> &quoted, TCP_HLEN, TCP_HLEN)


cdef void open_from_guest(Worker *w, FrameRef *ref, const TcpSegment *s) noexcept nogil:
    """A SYN of the guest to somewhere new."""
    cdef FlowKey key
    cdef Target target
    cdef Flow *flow
    cdef int fd
    cdef int verdict = translate_outbound(w, PROTO_TCP, &ref.dst, ref.dport, &target)
    if verdict < 0:
        count(w, -verdict)
        return
    worker_key(&key, ref)
    flow = flow_new(w.flows, &key, FLOW_TCP)
    if flow == NULL and room_for_connection(w, 0):
        flow = flow_new(w.flows, &key, FLOW_TCP)
    if flow == NULL:
        count(w, C_FLOW_REFUSED)
        answer_reset(w, ref)
        return
    fd = open_socket(w, &target)
    if fd < 0 and room_is_short(-fd) and room_for_connection(w, -fd):
        fd = open_socket(w, &target)
    if fd < 0:
        if room_is_short(-fd):
            count(w, C_FLOW_REFUSED)
        refuse(w, &key, s, ref, -fd)
        worker_drop_flow(w, flow)
        return
    flow.fd = fd
    memcpy(&flow.target, &target.address, sizeof(addr_t))
    flow.target_port = target.port
    tcp_from_guest(&flow.u.tcp.conn, s, tcp_initial_number(w, &key), tcp_our_mss(w, &key), tcp_bound_now(w), w.now)
    if tcp_watch(w, flow) < 0:
        count(w, C_FLOW_REFUSED)
        answer_reset(w, ref)
        worker_drop_flow(w, flow)
        return
    count(w, C_TCP_OPENED_GUEST)
    by_age_add(w, flow, AGED_GUEST)


cdef void tcp_frame(Worker *w, FrameRef *ref) noexcept nogil:
    cdef Flow *flow
    cdef Entry *e
    cdef TcpSegment s
    cdef TcpActions a
    cdef TcpConn *c
    cdef int one = 1
    cdef uint64_t begin
    if w.settings.no_tcp:
        count(w, C_DROP_DISABLED)
        return
    s.seq = ref.seq
    s.ack = ref.ack
    s.length = ref.payload_length
    s.window = ref.window
    s.flags = ref.flags
    s.options = ref.options
    s.options_length = ref.options_length
    flow = worker_find(w, ref)
    if flow == NULL:
        if ref.flags & (TH_SYN | TH_ACK | TH_RST) == TH_SYN:
            if worker_may_open(w, &begin):
                open_from_guest(w, ref, &s)
                worker_has_opened(w, begin)
        else:
            count(w, C_DROP_TCP_UNKNOWN)
            answer_reset(w, ref)
        return
    c = &flow.u.tcp.conn
    tcp_segment(c, &s, w.now, &a)
    count_all(w, a.counted)
    if flow.aged and c.state == TCP_ESTABLISHED:
        by_age_remove(w, flow)
    if a.what == 0:
        return
    if a.what & TA_NEW:
        if worker_may_open(w, &begin):
            tcp_abort_host(w, flow)
            open_from_guest(w, ref, &s)
            worker_has_opened(w, begin)
        return
    if a.what & TA_ABORT:
        tcp_abort_host(w, flow)
        return
    if a.what & TA_RST_REPLY:
        answer_reset(w, ref)
        return
    if a.what & TA_SYNACK:
        tcp_emit_syn(w, flow, TH_SYN | TH_ACK)
    if a.what & TA_KEEPALIVE:
        setsockopt(flow.fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one))  # T17
    e = entry_of(w, flow)
    if a.what & TA_ACCEPT:
        if e.count == LINK_BATCH and deliver(w, e) < 0:  # cannot be: what a batch has is delivered at its end
            reset_by_host(w, flow)
            return
        e.iov[e.count].iov_base = ref.payload + a.offset
        e.iov[e.count].iov_len = a.length
        e.count += 1
        e.bytes += a.length
        e.owed += a.length
        e.segments += 1
        if ref.frame == NULL and deliver(w, e) < 0:  # put together from fragments: its buffer is used again
            reset_by_host(w, flow)
            return
    if a.what & TA_KEEP:
        tcp_kept(c, s.seq + a.offset, overflow_keep(chunks(w), &flow.u.tcp, s.seq + a.offset, ref.payload + a.offset,
                                                    a.length))
    if a.what & TA_FETCH and fetch(w, e) < 0:
        reset_by_host(w, flow)
        return
    if a.what & TA_DISCARD:
        e.discard += a.discard
    if a.what & TA_REWIND:
        e.rewind = True
    if a.what & TA_REPAIR:
        e.repair = True
    if a.what & TA_PUMP:
        e.pump = True
    if a.what & TA_ACK_BATCH:
        e.ack = True
    # What is acknowledged must be accepted: first the payload of this batch
    if a.what & (TA_FIN | TA_ACK) and e.count and deliver(w, e) < 0:
        reset_by_host(w, flow)
        return
    if a.what & TA_FIN:
        emit(w, flow, tcp_fin_seq(c), TH_FIN | TH_ACK)
    if a.what & TA_ACK:  # each one is sent: duplicates count
        emit(w, flow, tcp_ack_seq(c), TH_ACK)
        e.ack = False


# Events


cdef void connected(Worker *w, Flow *flow, uint32_t events) noexcept nogil:
    """connect() has ended."""
    cdef TcpFlow *t = &flow.u.tcp
    cdef TcpActions a
    cdef TcpSegment s
    cdef int error = 0
    cdef socklen_t size = sizeof(error)
    if events & (EPOLLERR | EPOLLHUP):
        getsockopt(flow.fd, SOL_SOCKET, SO_ERROR, &error, &size)
        if error:
            s.seq = t.conn.irs
            s.window = <uint16_t> t.conn.snd_wnd
            refuse(w, &flow.key, &s, NULL, error)
            tcp_forget(w, flow)
            return
    elif not events & EPOLLOUT:
        return
    t.connected = 1
    tcp_connected(&t.conn, w.now, &a)
    tcp_emit_syn(w, flow, TH_SYN | TH_ACK)
    timer_arm(w.timers, w.flows, flow, t.conn.deadline)


cdef void tcp_event(Worker *w, Flow *flow, uint32_t events) noexcept nogil:
    cdef TcpFlow *t = &flow.u.tcp
    cdef int error = 0
    cdef socklen_t size = sizeof(error)
    if events & (EPOLLIN | EPOLLRDHUP):
        t.readable = 1
        if events & EPOLLRDHUP:
            t.hangup = 1
        if events & EPOLLPRI:
            t.urgent = 1
    if not t.connected:
        connected(w, flow, events)
        return
    if events & EPOLLERR:
        getsockopt(flow.fd, SOL_SOCKET, SO_ERROR, &error, &size)
        if error:
            # What came before the reset is still there to be read
            t.broken = 1
            pump(w, flow)
            if flow.fd < 0:
                return
            # With its end read, or with something for it that can no longer be sent, nothing would tell the guest
            if t.readable and t.conn.state == TCP_ESTABLISHED and not t.head and not t.conn.flags & TF_HOST_EOF:
                settle(w, flow, False)
            else:
                reset_by_host(w, flow)
            return
    if events & EPOLLOUT and t.head:
        if overflow_drain(chunks(w), flow) < 0:
            reset_by_host(w, flow)
            return
    if t.readable and t.conn.state == TCP_ESTABLISHED and not t.queued:
        pump(w, flow)
        if flow.fd < 0:
            return
    if t.conn.state != TCP_CLOSED:
        settle(w, flow, False)


cdef void tcp_continue(Worker *w, Flow *flow) noexcept nogil:
    flow.u.tcp.queued = 0
    pump(w, flow)
    if flow.fd >= 0:
        settle(w, flow, False)


cdef void tcp_timer(Worker *w, Flow *flow) noexcept nogil:
    cdef TcpFlow *t = &flow.u.tcp
    cdef TcpActions a
    if t.conn.deadline == 0:
        return
    if w.now >= t.conn.deadline:
        tcp_timeout(&t.conn, w.now, &a)
        count_all(w, a.counted)
        if a.what & TA_RST:
            tcp_emit_reset(w, flow)
        if a.what & TA_ABORT:
            tcp_abort_host(w, flow)
            return
        if a.what & TA_SYN:
            tcp_emit_syn(w, flow, TH_SYN)
        if a.what & TA_SYNACK:
            tcp_emit_syn(w, flow, TH_SYN | TH_ACK)
        if a.what & TA_FIN:
            emit(w, flow, tcp_fin_seq(&t.conn), TH_FIN | TH_ACK)
        if a.what & TA_PROBE:
            emit(w, flow, t.conn.snd_una - 1, TH_ACK)
        if a.what & TA_REWIND:
            if t.peeking:
                peek_from(flow, t.conn.snd_nxt)
            t.readable = 1
            pump(w, flow)
            if flow.fd < 0:
                return
        if a.what & TA_REPAIR:
            repair(w, flow)
    if t.conn.deadline:
        timer_arm(w.timers, w.flows, flow, t.conn.deadline)
