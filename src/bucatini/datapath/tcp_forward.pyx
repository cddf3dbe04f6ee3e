"""Connections of the host's side: accepted on a forward, offered to the guest by a SYN; local ones bypass the tap.

What cannot be served is reset at once: the peer's connect() has succeeded, its first read says what came of it.
Descriptors that have run out must not keep a listener ready: the spare one is given up for a moment to take the
connection, which is reset where nothing gives way (`room`).
"""

# syscalls serve: accept4 setsockopt getsockopt close eventfd2

from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from bucatini.datapath.by_age cimport AGED_HOST, by_age_add
from bucatini.datapath.counters cimport C_FLOW_REFUSED, C_TCP_OPENED_HOST
from bucatini.datapath.flow cimport FLOW_TCP, PIF_HOST, FlowKey, flow_find, flow_new
from bucatini.datapath.headers cimport PROTO_TCP, TH_SYN, addr_t
from bucatini.datapath.room cimport room_for_host, room_is_short
from bucatini.datapath.sockaddr cimport sockaddr_any, sockaddr_read
from bucatini.datapath.syscalls cimport (
    EFD_CLOEXEC, IPPROTO_TCP, SO_LINGER, SOCK_CLOEXEC, SOCK_NONBLOCK, SOL_SOCKET, TCP_CLOSE, TCP_INFO, accept4, close,
    eventfd, getsockopt, linger, setsockopt, socklen_t,
)
from bucatini.datapath.tcp cimport TcpActions, tcp_to_guest
from bucatini.datapath.tcp_io cimport (
    tcp_abort_host, tcp_bound_now, tcp_emit_reset, tcp_emit_syn, tcp_forget, tcp_initial_number, tcp_our_mss,
    tcp_watch,
)
from bucatini.datapath.tcp_splice cimport splice_accept
from bucatini.datapath.timers cimport timer_arm
from bucatini.datapath.translate cimport translate_inbound
from bucatini.datapath.worker cimport count


cdef extern from "<errno.h>" nogil:
    int errno, ECONNABORTED, EINTR


cdef enum:
    ACCEPTS = 16  # connections taken from a listener in one turn, at most
    LEFT = 8  # one flow in so many is none of a forward's: whatever comes in, the guest can open connections of its own


cdef void reject(int fd) noexcept nogil:
    """Reset a connection that cannot be served."""
    cdef linger now
    now.l_onoff = 1
    now.l_linger = 0
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now))
    close(fd)


cdef bint is_over(Flow *flow) noexcept nogil:
    """Whether the host's connection has ended both ways: only the guest's goes on."""
    cdef uint8_t state = 0  # the first field of struct tcp_info
    cdef socklen_t size = sizeof(state)
    return getsockopt(flow.fd, IPPROTO_TCP, TCP_INFO, &state, &size) == 0 and state == TCP_CLOSE


cdef void open_from_host(Worker *w, Listener *listener, int fd, const sockaddr_any *sa) noexcept nogil:
    """A connection accepted on a forward: SYN to the guest."""
    cdef addr_t peer
    cdef FlowKey key
    cdef Flow *flow
    cdef TcpActions a
    memset(&key, 0, sizeof(key))
    key.rport = sockaddr_read(sa, &peer)
    key.gport = listener.to
    key.protocol = PROTO_TCP
    if translate_inbound(w, listener, &peer, &key.remote, &key.guest) < 0:
        count(w, C_FLOW_REFUSED)
        reject(fd)
        return
    flow = flow_find(w.flows, &key)
    if flow != NULL and is_over(flow):
        # T25: the peer uses its port again while the guest has not seen the end of the last connection
        tcp_emit_reset(w, flow)
        tcp_forget(w, flow)
        flow = NULL
    elif flow != NULL:
        count(w, C_FLOW_REFUSED)
        reject(fd)
        return
    if w.accepted >= w.capacity - w.capacity // LEFT:
        room_for_host(w, 0)
    if w.accepted < w.capacity - w.capacity // LEFT:
        flow = flow_new(w.flows, &key, FLOW_TCP)
        if flow == NULL and room_for_host(w, 0):
            flow = flow_new(w.flows, &key, FLOW_TCP)
    if flow == NULL:
        count(w, C_FLOW_REFUSED)
        reject(fd)
        return
    flow.fd = fd
    flow.from_host = 1
    w.accepted += 1
    memcpy(&flow.target, &peer, sizeof(addr_t))
    flow.target_port = key.rport
    flow.u.tcp.connected = 1
    tcp_to_guest(&flow.u.tcp.conn, tcp_initial_number(w, &key), tcp_our_mss(w, &key), tcp_bound_now(w), w.now, &a)
    if tcp_watch(w, flow) < 0:
        count(w, C_FLOW_REFUSED)
        tcp_abort_host(w, flow)
        return
    count(w, C_TCP_OPENED_HOST)
    by_age_add(w, flow, AGED_HOST)
    tcp_emit_syn(w, flow, TH_SYN)
    timer_arm(w.timers, w.flows, flow, flow.u.tcp.conn.deadline)


cdef void take(Worker *w, Listener *listener, int fd, const sockaddr_any *sa) noexcept nogil:
    """Serve a connection that was accepted: past the tap, or to the guest."""
    if splice_accept(w, listener, fd, sa):
        return
    if listener.pif == PIF_HOST and w.link != NULL:
        open_from_host(w, listener, fd, sa)
    else:
        count(w, C_FLOW_REFUSED)
        reject(fd)


cdef void tcp_listener(Worker *w, Listener *listener) noexcept nogil:
    cdef int _i
    cdef sockaddr_any sa
    cdef socklen_t size
    cdef int fd, error
    cdef bint short
    # accept4() makes a socket and a file before it looks whether anybody waits, so one connection is taken; more where
    # a listener is ready again at once
    if w.turn - listener.turn > 1:
        listener.accepts = 1
    elif listener.accepts < ACCEPTS:
        listener.accepts *= 2
    listener.turn = w.turn
    for _i in range(listener.accepts):
        size = sizeof(sa)
        fd = accept4(listener.fd, &sa.sa, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd >= 0:
            take(w, listener, fd, &sa)
        elif room_is_short(errno):
            # Nobody need be waiting. Whoever is gets the spare descriptor, if something gives way to have one again
            error = errno
            close(w.spare_fd)
            fd = accept4(listener.fd, &sa.sa, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
            short = fd >= 0 and (listener.pif != PIF_HOST or not room_for_host(w, error))
            if short:  # refused: else the listener would stay ready
                count(w, C_FLOW_REFUSED)
                reject(fd)
            w.spare_fd = eventfd(0, EFD_CLOEXEC)
            if fd < 0:
                return
            if not short:
                take(w, listener, fd, &sa)
        elif errno != EINTR and errno != ECONNABORTED:
            return
