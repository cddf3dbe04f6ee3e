"""Forwards of UDP over the tap: the socket of the forward is that of all the flows it opens.

Purpose. A datagram on a forward opens a flow for its sender, and goes to the guest; so does all that follows, on the
same socket. Answers leave from there, with the address that was asked as their source (IP_PKTINFO, U4), and with the
guest's TTL and traffic class.

Why there is no socket for each flow, connected to its peer: between its bind() and its connect() it would take what
others send to the forward; and what the kernel is about to queue is queued after either has returned. On one socket
nothing is misattributed and nothing overtakes anything (U9).

Data. `UdpFlow.listener`, `asked` and `scope_id` say where answers leave: as what the peer has asked last. What comes
together from one peer goes to the guest together.

Failure. Errors are queued at the forward's socket with the address that the datagram went to; they become ICMP errors
to the guest. When a forward is removed, what the guest still sends goes on as a flow of its own.
"""

# syscalls serve: getsockopt

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from bucatini.datapath.counters cimport C_DROP_UDP_INBOUND
from bucatini.datapath.flow cimport PIF_HOST, Flow, FlowKey, flow_find
from bucatini.datapath.headers cimport (
    PROTO_UDP, addr_equal, addr_is_linklocal6, addr_is_multicast, addr_is_unspecified, addr_is_v4, addr_t,
)
from bucatini.datapath.sockaddr cimport sockaddr_any, sockaddr_fill, sockaddr_read
from bucatini.datapath.syscalls cimport (
    AF_INET6, CMSG_DATA, CMSG_LEN, CMSG_SPACE, EPOLLERR, IP_PKTINFO, IP_TOS, IP_TTL, IPPROTO_IP,
    IPPROTO_IPV6, IPV6_HOPLIMIT, IPV6_PKTINFO, IPV6_TCLASS, SO_ERROR, SOL_SOCKET, cmsghdr, getsockopt, in6_pktinfo,
    in_pktinfo, msghdr, sockaddr_in6, socklen_t,
)
from bucatini.datapath.timers cimport timer_arm
from bucatini.datapath.translate cimport translate_inbound
from bucatini.datapath.udp cimport (
    UDP_CONTROL, UDP_ERRORS, UDP_ERROR_CONTROL, UDP_SLOTS, UDP_TTL, Slot, udp_asked_address, udp_close_flow,
    udp_deliver, udp_new_flow, udp_next_error, udp_opened, udp_receive, udp_report, udp_slot,
)
from bucatini.datapath.udp_splice cimport udp_splice_serve
from bucatini.datapath.worker cimport count


cdef extern from "<errno.h>" nogil:
    int errno, ECONNREFUSED, EINTR


cdef enum:
    SHARE = 4  # receive calls in one turn of a forward

cdef unsigned long long IDLE_NS = 30000000000ULL  # as `udp`: its timer looks again


cdef bint forwards(const Listener *listener, uint8_t pif, uint16_t port, bint v4) noexcept nogil:
    """Whether it is there and forwards datagrams of this version to a port where `pif` says."""
    return (listener.used and listener.protocol == PROTO_UDP and listener.pif == pif and listener.port == port
            and (listener.version == 0 or (listener.version == 4) == v4))


cdef Listener *udp_forward_at(Worker *w, uint32_t likely, uint8_t pif, uint16_t port, bint v4) noexcept nogil:
    cdef uint32_t i
    if forwards(&w.listeners[likely], pif, port, v4):
        return &w.listeners[likely]
    for i in range(w.listener_count):
        if forwards(&w.listeners[i], pif, port, v4):
            return &w.listeners[i]
    return NULL


# To the guest


cdef bint key_of(Worker *w, const Listener *listener, const addr_t *peer, uint16_t port, FlowKey *key) noexcept nogil:
    """Find what the flow of a peer is known by; False: the peer has no address there."""
    memset(key, 0, sizeof(FlowKey))
    key.gport = listener.to
    key.rport = port
    key.protocol = PROTO_UDP
    return port != 0 and translate_inbound(w, listener, peer, &key.remote, &key.guest) == 0


cdef Flow *open_flow(Worker *w, const FlowKey *key, const addr_t *peer) noexcept nogil:
    """A datagram from somebody new; NULL: no flow for it (counted)."""
    cdef Flow *flow = udp_new_flow(w, key, True)
    if flow == NULL:
        return NULL
    flow.fd = -1
    flow.from_host = 1
    memcpy(&flow.target, peer, sizeof(addr_t))
    flow.target_port = key.rport
    flow.u.udp.ttl = UDP_TTL
    udp_opened(w, flow)
    timer_arm(w.timers, w.flows, flow, w.now + IDLE_NS)
    return flow


cdef uint32_t scope_of(const Listener *listener, const Slot *slot) noexcept nogil:
    """The link that a datagram came by, where its addresses need one."""
    if slot.name.sa.sa_family == AF_INET6 and slot.name.in6.sin6_scope_id:
        return slot.name.in6.sin6_scope_id
    return listener.scope_id


cdef bint is_of(const Flow *flow, const Listener *listener, const Slot *slot, const addr_t *peer) noexcept nogil:
    """Whether a flow is this peer's: translated, several may have the same address."""
    return addr_equal(&flow.target, peer) and (flow.fd >= 0 or not addr_is_linklocal6(peer)
                                               or flow.u.udp.scope_id == scope_of(listener, slot))


cdef void answer_from(Worker *w, Flow *flow, const Listener *listener, const Slot *slot,
                      const addr_t *asked) noexcept nogil:
    """Have answers leave where, and as what, the peer has asked last."""
    flow.u.udp.listener = <uint32_t> (listener - w.listeners)
    flow.u.udp.local_port = listener.port
    memcpy(&flow.u.udp.asked, &listener.address if addr_is_unspecified(asked) else asked, sizeof(addr_t))
    flow.u.udp.scope_id = scope_of(listener, slot)


cdef int serve(Worker *w, Listener *listener, int first, int n) noexcept nogil:
    """Pass on the datagrams from slot `first` on that come from one peer to one address; returns how many."""
    cdef Slot slot, other
    cdef addr_t peer, asked, asked_too
    cdef FlowKey key
    cdef Flow *flow
    cdef uint16_t port
    cdef int end = first + 1
    udp_slot(w, first, &slot)
    port = sockaddr_read(slot.name, &peer)
    if not key_of(w, listener, &peer, port, &key):
        count(w, C_DROP_UDP_INBOUND)
        return 1
    udp_asked_address(slot.message, &asked)
    if addr_is_multicast(&asked):
        count(w, C_DROP_UDP_INBOUND)
        return 1
    while end < n:
        udp_slot(w, end, &other)
        udp_asked_address(other.message, &asked_too)
        if memcmp(slot.name, other.name, sizeof(sockaddr_any)) != 0 or not addr_equal(&asked, &asked_too):
            break
        end += 1
    flow = flow_find(w.flows, &key)
    if flow != NULL and not is_of(flow, listener, &slot, &peer):
        count(w, C_DROP_UDP_INBOUND)
        return 1
    if (flow != NULL and flow.fd >= 0 and flow.u.udp.bound_port != listener.port and flow.u.udp.to_guest == 0
            and not flow.u.udp.batch):
        udp_close_flow(w, flow)  # the guest's own, from another port, and never answered there
        flow = NULL
    if flow == NULL:
        flow = open_flow(w, &key, &peer)
        if flow == NULL:
            return 1
    if flow.fd < 0:
        answer_from(w, flow, listener, &slot, &asked)
    udp_deliver(w, flow, first, end)
    return end - first


cdef void pass_on(Worker *w, Listener *listener, int first, int n) noexcept nogil:
    """Pass on the datagrams of a forward in the slots from `first` to `n`."""
    cdef int done
    while first < n:
        done = udp_splice_serve(w, listener, first, n)
        if done == 0:
            done = 1
            if listener.pif == PIF_HOST and w.link != NULL:
                done = serve(w, listener, first, n)
            else:
                count(w, C_DROP_UDP_INBOUND)
        first += done


cdef void udp_listener(Worker *w, Listener *listener, uint32_t events) noexcept nogil:
    cdef int _i
    cdef int n
    if events & EPOLLERR:
        take_errors(w, listener)
    for _i in range(SHARE):
        n = udp_receive(w, listener.fd, UDP_SLOTS, True)
        if n < 0:
            if errno == EINTR or errno == ECONNREFUSED:
                continue
            return
        pass_on(w, listener, 0, n)
        if n < UDP_SLOTS:
            return


cdef void udp_forward_stray(Worker *w, const Flow *flow, int slot) noexcept nogil:
    cdef Listener *listener = udp_forward_at(w, 0, PIF_HOST, flow.u.udp.bound_port, addr_is_v4(&flow.target))
    if listener != NULL:
        pass_on(w, listener, slot, slot + 1)
    else:
        count(w, C_DROP_UDP_INBOUND)


# From the guest


cdef Listener *udp_forward_of(Worker *w, const Flow *flow) noexcept nogil:
    cdef Listener *listener = &w.listeners[flow.u.udp.listener]
    return listener if forwards(listener, PIF_HOST, flow.u.udp.local_port, addr_is_v4(&flow.target)) else NULL


cdef uint8_t *add_control(msghdr *message, int level, int type_, uint32_t size) noexcept nogil:
    """Add control data of `size` bytes; returns where they go."""
    cdef cmsghdr *cmsg = <cmsghdr *> (<uint8_t *> message.msg_control + message.msg_controllen)
    cmsg.cmsg_level = level
    cmsg.cmsg_type = type_
    cmsg.cmsg_len = CMSG_LEN(size)
    message.msg_controllen += CMSG_SPACE(size)
    return CMSG_DATA(cmsg)


cdef void udp_address_answer(const Listener *listener, const addr_t *peer, uint16_t port, const addr_t *asked,
                             uint32_t scope_id, msghdr *message, sockaddr_any *name, uint8_t *control) noexcept nogil:
    cdef in_pktinfo info4
    cdef in6_pktinfo info6
    memset(control, 0, UDP_CONTROL)
    message.msg_name = name
    message.msg_control = control
    message.msg_controllen = 0
    if listener.version == 4:
        message.msg_namelen = sockaddr_fill(name, peer, port, 0)
    else:  # a v4-mapped address does for both (udp_sendmsg takes it in IPV6_PKTINFO too)
        memset(name, 0, sizeof(sockaddr_any))
        name.in6.sin6_family = <unsigned short> AF_INET6
        name.in6.sin6_port = (port >> 8) | <uint16_t> (port << 8)
        memcpy(&name.in6.sin6_addr, peer, 16)
        if addr_is_linklocal6(peer):
            name.in6.sin6_scope_id = scope_id
        message.msg_namelen = sizeof(sockaddr_in6)
    if addr_is_unspecified(asked):
        return
    if listener.version == 4:
        memset(&info4, 0, sizeof(info4))
        info4.ipi_spec_dst.s_addr = asked.w[3]
        memcpy(add_control(message, IPPROTO_IP, IP_PKTINFO, sizeof(info4)), &info4, sizeof(info4))
    else:
        memset(&info6, 0, sizeof(info6))
        memcpy(&info6.ipi6_addr, asked, 16)
        if addr_is_linklocal6(asked):
            info6.ipi6_ifindex = scope_id
        memcpy(add_control(message, IPPROTO_IPV6, IPV6_PKTINFO, sizeof(info6)), &info6, sizeof(info6))


cdef int udp_forward_answer(Worker *w, const Flow *flow, msghdr *message, sockaddr_any *name,
                            uint8_t *control) noexcept nogil:
    cdef Listener *listener = udp_forward_of(w, flow)
    cdef bint v4 = addr_is_v4(&flow.target)
    cdef int value
    if listener == NULL:
        return -1
    udp_address_answer(listener, &flow.target, flow.target_port, &flow.u.udp.asked, flow.u.udp.scope_id, message, name,
                       control)
    if flow.u.udp.ttl != UDP_TTL and flow.u.udp.ttl:
        value = flow.u.udp.ttl
        memcpy(add_control(message, IPPROTO_IP if v4 else IPPROTO_IPV6, IP_TTL if v4 else IPV6_HOPLIMIT, sizeof(value)),
               &value, sizeof(value))
    if flow.u.udp.tos:
        value = flow.u.udp.tos
        memcpy(add_control(message, IPPROTO_IP if v4 else IPPROTO_IPV6, IP_TOS if v4 else IPV6_TCLASS, sizeof(value)),
               &value, sizeof(value))
    return listener.fd


cdef void take_errors(Worker *w, Listener *listener) noexcept nogil:
    """Tell the guest what the network says about answers."""
    cdef sockaddr_any name
    cdef uint8_t[UDP_ERROR_CONTROL] control
    cdef msghdr message
    cdef addr_t peer
    cdef FlowKey key
    cdef Flow *flow
    cdef uint16_t port
    cdef int _i, n, value
    cdef socklen_t size = sizeof(value)
    for _i in range(UDP_ERRORS):
        n = udp_next_error(w, listener.fd, &message, &name, control)
        if n < 0:
            break
        port = sockaddr_read(&name, &peer)
        if w.link == NULL or not key_of(w, listener, &peer, port, &key):
            continue
        flow = flow_find(w.flows, &key)
        if flow != NULL and flow.fd < 0:
            udp_report(w, flow, &message, n)
    getsockopt(listener.fd, SOL_SOCKET, SO_ERROR, &value, &size)
