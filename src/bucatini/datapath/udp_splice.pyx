"""UDP flows that bypass the tap: from the socket of a forward to one on the other side, and back.

Purpose. What comes from the host's loopback to a forward of -u, or from the namespace's to one of -U, leaves on a
socket on the other side that is connected to the target, one for each peer and address that it asked; answers leave
from the socket of the forward, with the address that was asked as their source (U4). So all that a peer sends comes on
one socket, in order, and no other socket is ever bound to the port of the forward (U9).

Runs of equal datagrams are sent at once (UDP_SEGMENT) where that goes.

Source ports are kept as for flows over the tap (U6): bound first without SO_REUSEPORT, which notices a port that
somebody else has; further sockets of ours share it, those of one user. What others have sent to a socket before it was
connected is thrown away.

Flows are those of `udp` but for `key.pif`: same ageing, same limits. Of a port that is closed nobody can be told: a UDP
socket cannot send an ICMP error. Its errors are passed over (U12).
"""

# syscalls pasta: socket setsockopt bind connect recvfrom

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from bucatini.datapath.counters cimport C_DROP_UDP_INBOUND, C_DROP_UDP_NO_SOCKET, C_DROP_UDP_SPLICE, C_UDP_SPLICE_FLOWS
from bucatini.datapath.flow cimport PIF_HOST, PIF_SPLICE, Flow, FlowKey, flow_find
from bucatini.datapath.headers cimport (
    PROTO_UDP, addr_from_v4, addr_is_multicast, addr_is_v4, addr_t,
)
from bucatini.datapath.room cimport room_is_short
from bucatini.datapath.sockaddr cimport sockaddr_any, sockaddr_fill, sockaddr_read
from bucatini.datapath.socket_pool cimport sockets_take
from bucatini.datapath.syscalls cimport (
    AF_INET, AF_INET6, EPOLLIN, MSG_DONTWAIT, MSG_TRUNC, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, connect, iovec,
    msghdr, recv, socket, socklen_t,
)
from bucatini.datapath.timers cimport timer_arm
from bucatini.datapath.translate cimport translate_bypass
from bucatini.datapath.udp cimport (
    UDP_CONTROL, UDP_SLOTS, Slot, udp_asked_address, udp_bind_port, udp_close_flow, udp_held, udp_make_room,
    udp_make_roomy, udp_new_flow, udp_opened, udp_receive, udp_run_length, udp_segments_refused, udp_send, udp_slot,
)
from bucatini.datapath.udp_forward cimport udp_address_answer, udp_forward_at
from bucatini.datapath.worker cimport count, count_n, worker_continue, worker_watch


cdef extern from "<errno.h>" nogil:
    int errno, EINTR, ECONNREFUSED


cdef enum:
    SHARE = 4  # receive calls in one turn of a flow
    EARLY = 1024  # datagrams of others to throw away
    DNS = 53

# As `udp`, whose timer looks again
cdef unsigned long long IDLE_NS = 30000000000ULL
cdef unsigned long long DNS_NS = 10000000000ULL


# On the way there


cdef void bind_source(Worker *w, Flow *flow, uint8_t pif) noexcept nogil:
    """Bind the port that the peer has, on the other side, if it can be had."""
    cdef sockaddr_any sa
    cdef addr_t any_
    cdef socklen_t size
    cdef bint v4 = addr_is_v4(&flow.target)
    memset(&any_, 0, sizeof(any_))
    if v4:
        addr_from_v4(&any_, 0)
    size = sockaddr_fill(&sa, &any_, flow.key.rport, 0)
    udp_bind_port(flow, udp_held(w, pif, v4, flow.key.rport), &sa, size, flow.key.rport)


cdef int other_socket(Worker *w, uint8_t pif, bint v4) noexcept nogil:
    """A socket where `pif` says, or -errno."""
    cdef int fd
    if pif == PIF_SPLICE:
        fd = sockets_take(w, PROTO_UDP, v4)
        return sockets_take(w, PROTO_UDP, v4) if room_is_short(-fd) and udp_make_room(w, True, True) else fd
    fd = socket(AF_INET if v4 else AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0 and room_is_short(errno) and udp_make_room(w, True, False):
        fd = socket(AF_INET if v4 else AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    return fd if fd >= 0 else -errno


cdef Flow *open_flow(Worker *w, Listener *listener, const FlowKey *key, const addr_t *target) noexcept nogil:
    """A flow for a new peer; NULL: refused (counted)."""
    cdef sockaddr_any sa
    cdef socklen_t size
    cdef uint8_t pif = PIF_SPLICE if listener.pif == PIF_HOST else PIF_HOST
    cdef int _i
    cdef Flow *flow = udp_new_flow(w, key, listener.pif == PIF_HOST)
    if flow == NULL:
        return NULL
    flow.from_host = listener.pif == PIF_HOST
    memcpy(&flow.target, target, sizeof(addr_t))
    flow.target_port = listener.to
    flow.u.udp.listener = <uint32_t> (listener - w.listeners)
    flow.fd = other_socket(w, pif, addr_is_v4(target))
    if flow.fd >= 0:
        if listener.to != DNS:
            udp_make_roomy(w, flow.fd)
        bind_source(w, flow, pif)
        size = sockaddr_fill(&sa, target, listener.to, 0)
        if connect(flow.fd, &sa.sa, size) == 0:
            for _i in range(EARLY):
                if recv(flow.fd, NULL, 0, MSG_DONTWAIT | MSG_TRUNC) < 0:
                    break
                count(w, C_DROP_UDP_INBOUND)
            if worker_watch(w, flow, EPOLLIN) == 0:
                udp_opened(w, flow)
                count(w, C_UDP_SPLICE_FLOWS)
                timer_arm(w.timers, w.flows, flow, w.now + (DNS_NS if listener.to == DNS else IDLE_NS))
                return flow
    else:
        flow.fd = -1
    count(w, C_DROP_UDP_NO_SOCKET)
    udp_close_flow(w, flow)
    return NULL


cdef void send_run(Worker *w, Flow *flow, int fd, msghdr *message, int first, int n) noexcept nogil:
    """Send `n` datagrams that lie in the slots, the last of which may be shorter, at once or one by one."""
    cdef iovec[UDP_SLOTS] iov
    cdef Slot slot
    cdef msghdr one
    cdef uint32_t size = 0
    cdef int i, error
    for i in range(n):
        udp_slot(w, first + i, &slot)
        iov[i].iov_base = slot.payload
        iov[i].iov_len = slot.size
        if i == 0:
            size = slot.size
    memcpy(&one, message, sizeof(one))
    one.msg_iov = iov
    if n > 1 and not flow.u.udp.no_segment:
        one.msg_iovlen = n
        error = -udp_send(fd, &one, <uint16_t> size)
        if error == 0:
            return
        if not udp_segments_refused(error):
            count_n(w, C_DROP_UDP_SPLICE, n)
            return
        flow.u.udp.no_segment = 1
    for i in range(n):
        memcpy(&one, message, sizeof(one))
        one.msg_iov = &iov[i]
        one.msg_iovlen = 1
        if udp_send(fd, &one, 0) < 0:
            count(w, C_DROP_UDP_SPLICE)


cdef int udp_splice_serve(Worker *w, Listener *listener, int first, int n) noexcept nogil:
    cdef Slot slot, other
    cdef addr_t peer, asked, asked_too, target
    cdef FlowKey key
    cdef msghdr message
    cdef Flow *flow
    cdef int run, same = 1
    if not listener.bypass:
        return 0
    udp_slot(w, first, &slot)
    memset(&key, 0, sizeof(key))
    key.rport = sockaddr_read(slot.name, &peer)
    udp_asked_address(slot.message, &asked)
    if key.rport == 0 or addr_is_multicast(&asked) or not translate_bypass(w, listener, &peer, &asked, &target):
        return 0
    # As many as come from the same peer to the same address
    run = udp_run_length(w, first, n)
    while same < run:
        udp_slot(w, first + same, &other)
        udp_asked_address(other.message, &asked_too)
        if memcmp(slot.name, other.name, sizeof(sockaddr_any)) != 0 or memcmp(&asked, &asked_too, sizeof(addr_t)) != 0:
            break
        same += 1
    memcpy(&key.remote, &peer, sizeof(addr_t))
    memcpy(&key.guest, &asked, sizeof(addr_t))
    key.gport = listener.port
    key.protocol = PROTO_UDP
    key.pif = listener.pif
    flow = flow_find(w.flows, &key)
    if flow == NULL:
        flow = open_flow(w, listener, &key, &target)
        if flow == NULL:
            count_n(w, C_DROP_UDP_SPLICE, same - 1)
            return same
    flow.u.udp.listener = <uint32_t> (listener - w.listeners)  # the forward may have been made anew
    flow.u.udp.last = w.now
    if flow.u.udp.to_host < 1000:
        flow.u.udp.to_host += same
    memset(&message, 0, sizeof(message))
    send_run(w, flow, flow.fd, &message, first, same)
    return same


# On the way back


cdef void udp_splice_answers(Worker *w, Flow *flow) noexcept nogil:
    cdef Listener *listener = udp_forward_at(w, flow.u.udp.listener, flow.key.pif, flow.key.gport,
                                             addr_is_v4(&flow.key.remote))
    cdef sockaddr_any name
    cdef uint8_t[UDP_CONTROL] control
    cdef msghdr message
    cdef int _i
    cdef int n, first, run
    if listener == NULL:
        udp_close_flow(w, flow)  # its forward is gone
        return
    flow.u.udp.listener = <uint32_t> (listener - w.listeners)  # or was made anew
    memset(&message, 0, sizeof(message))
    udp_address_answer(listener, &flow.key.remote, flow.key.rport, &flow.key.guest, 0, &message, &name, control)
    for _i in range(SHARE):
        n = udp_receive(w, flow.fd, UDP_SLOTS, False)
        if n < 0:
            if errno == EINTR or errno == ECONNREFUSED:
                continue
            return
        flow.u.udp.last = w.now
        if flow.u.udp.to_guest < 1000:
            flow.u.udp.to_guest += n
        first = 0
        while first < n:
            run = udp_run_length(w, first, n)
            send_run(w, flow, listener.fd, &message, first, run)
            first += run
        if n < UDP_SLOTS:
            return
    if not flow.u.udp.queued:
        flow.u.udp.queued = 1
        worker_continue(w, flow)
