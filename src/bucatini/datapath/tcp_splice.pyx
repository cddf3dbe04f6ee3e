"""TCP connections that bypass the tap: from socket to socket, through a pipe, with splice(2).

Purpose. A connection from the host's loopback to a forward, or from the namespace's loopback to one of -T, has both its
ends on this machine. Packets would be made of its data only to be taken apart again. Instead the accepted socket is
coupled with one connected on the other side: the data moves from the one to a pipe and on to the other as pages, which
nobody copies in user space.

What it does not do. It never holds data in our memory, and it keeps nothing for a connection in which nothing moves: a
pipe belongs to a direction only while there is something in it. There are no timers but for rests: both peers are
kernels of this machine, which do not vanish.

Addresses. From the host: to the address of a forward's target, to the namespace's loopback (`host_lo_to_ns_lo`), else
to the guest's own address, which the namespace reaches without the tap too. From the namespace: to the loopback address
that was asked (L3). What came from or asked for any other address does not bypass.

Events. Both sockets are in epoll once, edge triggered, for everything. `readable` is what an edge left to do. `pump`
moves one direction until its source is empty, its sink is full (an edge of the sink goes on, T14: no CPU meanwhile; the
pipe takes what else it can) or its share of the turn is used up. A read that brought fewer bytes than a pipe has slots
cannot have been cut short by the pipe: it emptied the source, and the next edge says when there is more; after a hangup
there is none, and it is read to its end.

Rests. Every wake of ours on behalf of a segment costs the sender too, whose CPU sends the interrupt. So nothing is
heard of what comes while the sink is full; and a direction that moved `BULK` bytes in one go and is empty now lets data
gather for `REST_NS`, unheard too. What is small is never kept waiting.

End. The end of one direction is passed on by shutdown(2) when the pipe is empty (T7). With both passed on, both are
closed. A reset, or any other error, is passed on as a reset (T6), after the data that came before it.

Urgent data. splice(2) stops at the urgent byte. A source that has one is read with recv(2) until it is empty; the byte
stays in its place in the stream, as everywhere (T31).
"""

# syscalls pasta: splice pipe2 fcntl getsockname socket connect setsockopt shutdown recvfrom read write close epoll_ctl
# syscalls pasta: clock_gettime

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from bucatini.datapath.counters cimport (
    C_FLOW_REFUSED, C_SPLICE_BYTES, C_SPLICE_CLOSED, C_SPLICE_OPENED, C_SPLICE_RESET,
)
from bucatini.datapath.flow cimport FLOW_SPLICE, PIF_HOST, PIF_SPLICE, FlowKey, SpliceFlow, flow_new
from bucatini.datapath.headers cimport PROTO_TCP, addr_is_v4, addr_t
from bucatini.datapath.sockaddr cimport sockaddr_any, sockaddr_fill, sockaddr_read
from bucatini.datapath.socket_pool cimport sockets_take
from bucatini.datapath.syscalls cimport (
    AF_INET, AF_INET6, CLOCK_MONOTONIC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN,
    EPOLLOUT, EPOLLPRI, EPOLLRDHUP, F_SETPIPE_SZ, IPPROTO_TCP, MSG_DONTWAIT, MSG_PEEK, O_CLOEXEC, O_NONBLOCK, SHUT_WR,
    SO_LINGER, SO_OOBINLINE, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, SPLICE_F_MOVE, SPLICE_F_NONBLOCK,
    TCP_NODELAY, clock_gettime, close, connect, epoll_ctl, epoll_event, fcntl, getsockname, linger, pipe2, recv,
    setsockopt, shutdown, socket, socklen_t, splice, timespec, write,
)
from bucatini.datapath.translate cimport translate_bypass
from bucatini.datapath.worker cimport (
    count, count_n, flow_ref, other_ref, worker_continue, worker_drop_flow, worker_watch,
)


cdef extern from "<errno.h>" nogil:
    int errno, EAGAIN, EINPROGRESS, EINTR, ENOMEM


cdef enum:
    PIPES = 4096  # in use at most; a direction needs one only while its sink is full, or within a call of `pump`
    SPARE = 32  # kept when nobody uses them
    PIPE_BYTES = 1 << 20  # asked for; users beyond pipe-user-pages-soft get less (pipe(7))
    SLOTS_MIN = 2  # of a pipe then
    CHUNK = 1 << 20
    SHARE = 1 << 22  # bytes of a direction in one turn
    BROKEN = 2  # `ended`: by an error
    COPY = 4096  # bytes read at once where splice(2) does not do: they fit into the smallest pipe
    EDGES = EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP
    BULK = 262144  # bytes moved in one go that speak for a transfer
    REST_NS = 200000
    RESTING = 256  # directions at a time; further ones do not rest

cdef struct Pipe:
    int reader
    int writer
    uint32_t slots  # pages that it has room for
    uint32_t next_  # free list

cdef struct Rest:
    uint64_t until  # ns
    uint32_t index  # of the flow
    uint32_t generation
    uint32_t side

cdef struct Splice:
    Rest rests[RESTING]  # a ring, in the order of their ends
    uint32_t first
    uint32_t resting
    Pipe pipes[PIPES + 1]  # from 1 on
    uint32_t fresh  # those from here on were never used
    uint32_t unused  # closed ones, 0: none
    uint32_t spare  # empty ones
    uint32_t spares


cdef inline Splice *state(Worker *w) noexcept nogil:
    return <Splice *> w.splice


cdef int splice_init(Worker *w) noexcept nogil:
    w.splice = calloc(1, sizeof(Splice))
    if w.splice == NULL:
        return -ENOMEM
    state(w).fresh = 1
    return 0


cdef void splice_free(Worker *w) noexcept nogil:
    cdef uint32_t index = state(w).spare
    while index:
        close(state(w).pipes[index].reader)
        close(state(w).pipes[index].writer)
        index = state(w).pipes[index].next_
    free(w.splice)


# Pipes


cdef uint32_t pipe_take(Worker *w) noexcept nogil:
    """An empty pipe; 0: there is none."""
    cdef Splice *s = state(w)
    cdef uint32_t index = s.spare
    cdef Pipe *pipe
    cdef int[2] fds
    cdef int size
    if index:
        s.spare = s.pipes[index].next_
        s.spares -= 1
        return index
    index = s.unused if s.unused else s.fresh
    if index > PIPES or pipe2(fds, O_NONBLOCK | O_CLOEXEC) < 0:
        return 0
    pipe = &s.pipes[index]
    if index == s.unused:
        s.unused = pipe.next_
    else:
        s.fresh += 1
    pipe.reader = fds[0]
    pipe.writer = fds[1]
    size = fcntl(fds[1], F_SETPIPE_SZ, PIPE_BYTES)
    pipe.slots = <uint32_t> size >> 12 if size > 0 else SLOTS_MIN
    return index


cdef void pipe_give(Worker *w, uint32_t index, bint empty) noexcept nogil:
    """Give a pipe back."""
    cdef Splice *s = state(w)
    cdef Pipe *pipe = &s.pipes[index]
    if empty and s.spares < SPARE:
        pipe.next_ = s.spare
        s.spare = index
        s.spares += 1
        return
    close(pipe.reader)
    close(pipe.writer)
    pipe.next_ = s.unused
    s.unused = index


# Ends


cdef void close_both(Worker *w, Flow *flow) noexcept nogil:
    cdef SpliceFlow *s = &flow.u.splice
    cdef int d
    for d in range(2):
        if s.pipe[d]:
            pipe_give(w, s.pipe[d], s.held[d] == 0)
            s.pipe[d] = 0
    if s.other >= 0:
        close(s.other)
        s.other = -1
    worker_drop_flow(w, flow)


cdef void reset_at_close(int fd) noexcept nogil:
    cdef linger now
    now.l_onoff = 1
    now.l_linger = 0
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now))


cdef void reset_both(Worker *w, Flow *flow) noexcept nogil:
    count(w, C_SPLICE_RESET)
    reset_at_close(flow.fd)
    reset_at_close(flow.u.splice.other)
    close_both(w, flow)


# Moving data


cdef inline int socket_of(Flow *flow, int side) noexcept nogil:
    return flow.fd if side == 0 else flow.u.splice.other


cdef ssize_t fill(Flow *flow, int side, const Pipe *pipe) noexcept nogil:
    """Move what a side has to a pipe; bytes, 0 at its end, or -errno (-EINTR: again)."""
    cdef uint8_t[COPY] buffer
    cdef int fd = socket_of(flow, side)
    cdef ssize_t n
    if flow.u.splice.urgent[side]:
        n = recv(fd, buffer, COPY, MSG_DONTWAIT)
        if n < 0 and errno == EAGAIN:
            flow.u.splice.urgent[side] = 0
        elif n > 0:
            n = write(pipe.writer, buffer, n)
    else:
        n = splice(fd, NULL, pipe.writer, NULL, CHUNK, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
        if n == 0 and recv(fd, buffer, 1, MSG_PEEK | MSG_DONTWAIT) > 0:
            flow.u.splice.urgent[side] = 1  # an urgent mark with a FIN behind it, which looks like the end
            return -EINTR
    return n if n >= 0 else -errno


cdef void top_up(Flow *flow, int side, const Pipe *pipe) noexcept nogil:
    """Let the pipe take more while the sink is full: the sender goes on, and there is more to move at once."""
    cdef SpliceFlow *s = &flow.u.splice
    cdef ssize_t n
    if s.ended[side] or not s.readable[side] or s.urgent[side] or s.held[side] >= CHUNK:
        return
    n = fill(flow, side, pipe)
    if n > 0:
        s.held[side] += <uint32_t> n
    elif n == 0:
        s.ended[side] = 1
    elif n != -EAGAIN and n != -EINTR:  # -EAGAIN: no data, or no room; the next edge of the sink will tell
        s.ended[side] = BROKEN


cdef void mute(Worker *w, Flow *flow, int side, bint on) noexcept nogil:
    """Hear no more of what comes from a side, or again; what came meanwhile makes an edge then."""
    cdef epoll_event event
    # Every segment is told as EPOLLPRI too
    event.events = EPOLLET | (EPOLLOUT if on else EDGES)
    event.data.u64 = flow_ref(flow) if side == 0 else other_ref(flow)
    if epoll_ctl(w.epoll, EPOLL_CTL_MOD, socket_of(flow, side), &event) == 0:
        flow.u.splice.muted[side] = on


cdef void drained(Worker *w, Flow *flow, int side, uint32_t moved) noexcept nogil:
    """Let data gather for a moment where much came at once; where little did, hear of the next byte."""
    cdef SpliceFlow *s = &flow.u.splice
    cdef Splice *all_ = state(w)
    cdef Rest *rest
    cdef timespec now
    if s.resting[side]:
        return
    if moved >= BULK and all_.resting < RESTING and w.can_rest and not s.hangup[side] and not s.urgent[side]:
        if not s.muted[side]:
            mute(w, flow, side, True)
        rest = &all_.rests[(all_.first + all_.resting) % RESTING]
        clock_gettime(CLOCK_MONOTONIC, &now)
        rest.until = <uint64_t> now.tv_sec * 1000000000 + now.tv_nsec + REST_NS
        rest.index = flow.index
        rest.generation = flow.generation
        rest.side = side
        if all_.resting == 0:
            w.rest_at = rest.until
        all_.resting += 1
        s.resting[side] = 1
    elif s.muted[side]:
        mute(w, flow, side, False)


cdef void splice_rested(Worker *w) noexcept nogil:
    cdef Splice *all_ = state(w)
    cdef Rest *rest
    cdef Flow *flow
    cdef uint32_t due = all_.resting
    while due:
        due -= 1
        rest = &all_.rests[all_.first]
        if rest.until > w.now:
            break
        all_.first = (all_.first + 1) % RESTING
        all_.resting -= 1
        flow = &w.flows.flows[rest.index]
        if flow.kind == FLOW_SPLICE and flow.generation == rest.generation:
            flow.u.splice.resting[rest.side] = 0
            flow.u.splice.readable[rest.side] = 1
            pump(w, flow, rest.side)
    w.rest_at = all_.rests[all_.first].until if all_.resting else 0


cdef bint pump(Worker *w, Flow *flow, int side) noexcept nogil:
    """Move data from `side` to the other one as far as it goes; False: the connection is gone."""
    cdef SpliceFlow *s = &flow.u.splice
    cdef int sink = socket_of(flow, 1 - side)
    cdef Pipe *pipe
    cdef ssize_t n
    cdef uint32_t moved = 0
    while True:
        while s.held[side]:
            pipe = &state(w).pipes[s.pipe[side]]
            n = splice(pipe.reader, NULL, sink, NULL, s.held[side], SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
            if n > 0:
                s.held[side] -= <uint32_t> n
                count_n(w, C_SPLICE_BYTES, <uint64_t> n)
            elif n < 0 and errno == EAGAIN:
                top_up(flow, side, pipe)
                return True
            elif n == 0 or errno != EINTR:
                reset_both(w, flow)
                return False
        if s.ended[side] == BROKEN:
            reset_both(w, flow)
            return False
        if s.ended[side] or not s.readable[side]:
            break
        if moved >= SHARE:
            if not s.queued:
                s.queued = 1
                worker_continue(w, flow)
            break
        if s.pipe[side] == 0:
            s.pipe[side] = pipe_take(w)
            if s.pipe[side] == 0:
                count(w, C_FLOW_REFUSED)
                reset_both(w, flow)
                return False
        pipe = &state(w).pipes[s.pipe[side]]
        n = fill(flow, side, pipe)
        if n > 0:
            s.held[side] = <uint32_t> n
            moved += <uint32_t> n
            if not s.hangup[side] and not s.urgent[side] and n < pipe.slots:
                s.readable[side] = 0
        elif n == 0:
            s.ended[side] = 1
        elif n == -EAGAIN:
            s.readable[side] = 0
        elif n != -EINTR:
            reset_both(w, flow)
            return False
    if s.pipe[side]:
        pipe_give(w, s.pipe[side], True)
        s.pipe[side] = 0
    if s.ended[side] and not s.told[side]:
        s.told[side] = 1
        shutdown(sink, SHUT_WR)
        if s.told[1 - side]:
            count(w, C_SPLICE_CLOSED)
            close_both(w, flow)
            return False
    if not s.ended[side] and not s.readable[side]:
        drained(w, flow, side, moved)
    return True


cdef void splice_event(Worker *w, Flow *flow, int side, uint32_t events) noexcept nogil:
    cdef SpliceFlow *s = &flow.u.splice
    if events & (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        s.readable[side] = 1
    if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        s.hangup[side] = 1
    if events & EPOLLPRI:
        s.urgent[side] = 1
    if not s.connected:
        if side == 1 and events & (EPOLLERR | EPOLLHUP):
            reset_both(w, flow)
            return
        if side == 0 or not events & EPOLLOUT:
            return
        s.connected = 1
        if s.readable[0] and not pump(w, flow, 0):
            return
    elif events & EPOLLERR and s.ended[side] == 1:
        reset_both(w, flow)  # nothing is left to be read that would say so
        return
    elif events & EPOLLOUT and s.held[1 - side] and not pump(w, flow, 1 - side):
        return
    if s.held[side]:
        top_up(flow, side, &state(w).pipes[s.pipe[side]])
        if not s.muted[side]:
            mute(w, flow, side, True)
    elif s.readable[side] and not s.ended[side]:
        pump(w, flow, side)


cdef void splice_continue(Worker *w, Flow *flow) noexcept nogil:
    flow.u.splice.queued = 0
    if pump(w, flow, 0):
        pump(w, flow, 1)


# Beginnings


cdef int open_other(Worker *w, Listener *listener, const addr_t *target) noexcept nogil:
    """A socket on the other side on its way to `target`, or -errno."""
    cdef sockaddr_any sa
    cdef socklen_t size = sockaddr_fill(&sa, target, listener.to, 0)
    cdef bint v4 = addr_is_v4(target)
    cdef int one = 1, fd, error
    if listener.pif == PIF_HOST:
        fd = sockets_take(w, PROTO_TCP, v4)
    else:
        fd = socket(AF_INET if v4 else AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP)
        if fd < 0:
            return -errno
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))  # T28
        setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &one, sizeof(one))  # T31
    if fd >= 0 and connect(fd, &sa.sa, size) < 0 and errno != EINPROGRESS:
        error = errno
        close(fd)
        return -error
    return fd


cdef bint splice_accept(Worker *w, Listener *listener, int fd, const sockaddr_any *sa) noexcept nogil:
    cdef addr_t peer, asked, target
    cdef sockaddr_any name
    cdef socklen_t size = sizeof(name)
    cdef FlowKey key
    cdef Flow *flow
    cdef epoll_event event
    cdef int other
    memset(&key, 0, sizeof(key))
    key.rport = sockaddr_read(sa, &peer)
    if listener.pif == PIF_SPLICE and getsockname(fd, &name.sa, &size) == 0:
        sockaddr_read(&name, &asked)
    else:
        memset(&asked, 0, sizeof(asked))
    if not translate_bypass(w, listener, &peer, &asked, &target):
        return False
    other = open_other(w, listener, &target)
    if other < 0:
        count(w, C_FLOW_REFUSED)
        reset_at_close(fd)
        close(fd)
        return True
    memcpy(&key.remote, &peer, sizeof(addr_t))
    key.gport = listener.port
    key.protocol = PROTO_TCP
    key.pif = listener.pif
    flow = flow_new(w.flows, &key, FLOW_SPLICE)
    if flow == NULL:
        count(w, C_FLOW_REFUSED)
        reset_at_close(fd)
        close(fd)
        close(other)
        return True
    flow.fd = fd
    memcpy(&flow.target, &target, sizeof(addr_t))
    flow.target_port = listener.to
    flow.u.splice.other = other
    event.events = EDGES | EPOLLET
    event.data.u64 = other_ref(flow)
    if worker_watch(w, flow, EDGES) < 0 or epoll_ctl(w.epoll, EPOLL_CTL_ADD, other, &event) < 0:
        count(w, C_FLOW_REFUSED)
        reset_both(w, flow)
        return True
    count(w, C_SPLICE_OPENED)
    return True
