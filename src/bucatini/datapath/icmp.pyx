"""Echo (ping) of the guest over ping sockets: ICMP and ICMPv6 alike (icmp(7), "ping" sockets).

A flow is the guest's address, its identifier and the other end. Its socket has an identifier of the kernel's;
replies get the guest's back, the sequence number stays. Only echo passes: other messages of the guest are dropped
(`drop_icmp_type`), errors of the network come back as errors to the guest (traceroute).

Failure. A host that does not allow ping sockets (net.ipv4.ping_group_range) is answered by "administratively
prohibited", so that ping says so at once; `drop_ping_no_socket` counts.
"""

# syscalls serve: socket setsockopt getsockopt bind connect sendto recvfrom recvmsg epoll_ctl

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from bucatini.datapath.build cimport (
    build_icmp_checksum, build_icmp_error, build_ip, icmp_error_of, icmp_error_reported, icmp_is_silent,
)
from bucatini.datapath.by_age cimport AGED_PING, by_age_add, by_age_remove
from bucatini.datapath.counters cimport (
    C_DROP_DISABLED, C_DROP_LINK_ERROR, C_DROP_PING_NO_SOCKET, C_DROP_PING_SEND, C_FLOW_REFUSED, C_PING_FLOWS,
    C_UDP_ERRORS,
)
from bucatini.datapath.flow cimport FLOW_PING, FlowKey, flow_new
from bucatini.datapath.headers cimport (
    ICMP_HLEN, IP_LEN_MAX, IPV4_HLEN, PROTO_ICMP, PROTO_ICMPV6, addr_is_unspecified, addr_is_v4, addr_t, htons,
    icmp_hdr, vnet_hdr,
)
from bucatini.datapath.link cimport Link
from bucatini.datapath.room cimport room_for_datagrams, room_is_short
from bucatini.datapath.sockaddr cimport sockaddr_any, sockaddr_fill
from bucatini.datapath.syscalls cimport (
    AF_INET, AF_INET6, EPOLL_CTL_MOD, EPOLLERR, EPOLLET, EPOLLIN, IP_RECVERR, IP_TTL, IPPROTO_ICMP, IPPROTO_ICMPV6,
    IPPROTO_IP, IPPROTO_IPV6, IPV6_RECVERR, IPV6_UNICAST_HOPS, MSG_DONTWAIT, MSG_ERRQUEUE, MSG_NOSIGNAL, MSG_TRUNC,
    SO_ERROR, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, SOL_SOCKET, bind, connect, epoll_ctl, epoll_event, getsockopt,
    iovec, msghdr, recv, recvmsg, send, setsockopt, socket, socklen_t,
)
from bucatini.datapath.timers cimport timer_arm
from bucatini.datapath.translate cimport Target, translate_outbound
from bucatini.datapath.worker cimport (
    count, flow_ref, worker_drop_flow, worker_find, worker_has_opened, worker_key, worker_leave_by, worker_may_open,
    worker_watch,
)


cdef extern from "<errno.h>" nogil:
    int errno, EINTR


cdef enum:
    REPLY_V4 = 0  # RFC 792
    REPLY_V6 = 129  # RFC 4443 §4.2
    TTL_DEFAULT = 64
    REPLIES = 32  # taken from a socket in one turn
    QUOTED = 512  # bytes of the guest's message that an error quotes

cdef uint64_t IDLE_NS = <uint64_t> 60 * 1000000000


cdef void tell_guest(Worker *w, const FlowKey *key, int error, const addr_t *reporter, uint32_t mtu,
                     const uint8_t *message, uint32_t size) noexcept nogil:
    """Send the ICMP error about an echo request of `size` bytes, with the guest's identifier."""
    cdef uint8_t[QUOTED] quoted
    cdef uint32_t length = size if size < QUOTED else QUOTED
    memcpy(quoted, message, length)
    if length >= ICMP_HLEN:
        (<icmp_hdr *> quoted).id_be = htons(key.gport)
    build_icmp_error(w, key, reporter, error, mtu, quoted, length, size)


cdef void icmp_close(Worker *w, Flow *flow) noexcept nogil:
    by_age_remove(w, flow)
    worker_drop_flow(w, flow)


cdef int make_socket(bint v4) noexcept nogil:
    return socket(AF_INET if v4 else AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC,
                  IPPROTO_ICMP if v4 else IPPROTO_ICMPV6)


cdef bint leaves_as_asked(Worker *w, int fd, const Target *target) noexcept nogil:
    """Give a socket the interface and the source address that were asked for; False, and errno: they are not there."""
    cdef sockaddr_any sa
    cdef socklen_t size
    if worker_leave_by(w, fd, &target.address) < 0:
        return False
    if addr_is_unspecified(&target.source):
        return True
    size = sockaddr_fill(&sa, &target.source, 0, target.scope_id)
    return bind(fd, &sa.sa, size) == 0


cdef Flow *open_echo(Worker *w, FrameRef *ref) noexcept nogil:
    """The first request of an identifier; NULL when there can be no socket (counted, and told to the guest)."""
    cdef FlowKey key
    cdef Target target
    cdef sockaddr_any sa
    cdef socklen_t size
    cdef Flow *flow
    cdef bint v4
    cdef int one = 1, error
    cdef int verdict = translate_outbound(w, ref.protocol, &ref.dst, 0, &target)
    if verdict < 0:
        count(w, -verdict)
        return NULL
    worker_key(&key, ref)
    flow = flow_new(w.flows, &key, FLOW_PING)
    if flow == NULL and room_for_datagrams(w, 0):
        flow = flow_new(w.flows, &key, FLOW_PING)
    if flow == NULL:
        count(w, C_FLOW_REFUSED)
        return NULL
    memcpy(&flow.target, &target.address, sizeof(addr_t))
    flow.u.ping.ttl = TTL_DEFAULT
    v4 = addr_is_v4(&target.address)
    flow.fd = make_socket(v4)
    if flow.fd < 0 and room_is_short(errno) and room_for_datagrams(w, errno):
        flow.fd = make_socket(v4)
    if flow.fd >= 0:
        setsockopt(flow.fd, IPPROTO_IP if v4 else IPPROTO_IPV6, IP_RECVERR if v4 else IPV6_RECVERR, &one, sizeof(one))
        size = sockaddr_fill(&sa, &target.address, 0, target.scope_id)
        if (leaves_as_asked(w, flow.fd, &target) and connect(flow.fd, &sa.sa, size) == 0
                and worker_watch(w, flow, EPOLLIN) == 0):
            count(w, C_PING_FLOWS)
            by_age_add(w, flow, AGED_PING)
            flow.u.ping.last = w.now
            timer_arm(w.timers, w.flows, flow, w.now + IDLE_NS)
            return flow
    error = errno
    if flow.fd < 0:
        flow.fd = -1
    count(w, C_DROP_PING_NO_SOCKET)
    tell_guest(w, &key, icmp_error_of(error), &key.remote, 0, ref.l4, ref.l4_length)
    worker_drop_flow(w, flow)
    return NULL


cdef void icmp_frame(Worker *w, FrameRef *ref) noexcept nogil:
    cdef int _i
    cdef Flow *flow
    cdef int value, error
    cdef bint v4
    cdef uint64_t begin
    if w.settings.no_icmp:
        count(w, C_DROP_DISABLED)
        return
    flow = worker_find(w, ref)
    if flow == NULL:
        if not worker_may_open(w, &begin):
            return
        flow = open_echo(w, ref)
        worker_has_opened(w, begin)
        if flow == NULL:
            return
    flow.u.ping.last = w.now
    if ref.ttl != flow.u.ping.ttl and ref.ttl:
        v4 = addr_is_v4(&flow.target)
        flow.u.ping.ttl = ref.ttl
        value = ref.ttl
        setsockopt(flow.fd, IPPROTO_IP if v4 else IPPROTO_IPV6, IP_TTL if v4 else IPV6_UNICAST_HOPS, &value,
                   sizeof(value))
    # A pending error of an earlier request makes send fail once: the error was told or will be from its queue
    for _i in range(2):
        if send(flow.fd, ref.l4, ref.l4_length, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0:
            return
    error = errno
    count(w, C_DROP_PING_SEND)
    if icmp_is_silent(error):
        return
    tell_guest(w, &flow.key, icmp_error_of(error), &flow.key.remote, 0, ref.l4, ref.l4_length)


cdef void take_errors(Worker *w, Flow *flow) noexcept nogil:
    """Tell the guest what the network says about its requests."""
    cdef msghdr message
    cdef iovec iov
    cdef uint8_t[512] control
    cdef uint8_t[QUOTED] data
    cdef addr_t reporter
    cdef uint32_t mtu = 0
    cdef ssize_t n
    cdef int _i, error, value = 0
    cdef socklen_t size = sizeof(value)
    for _i in range(REPLIES):
        memset(&message, 0, sizeof(message))
        iov.iov_base = data
        iov.iov_len = QUOTED
        message.msg_iov = &iov
        message.msg_iovlen = 1
        message.msg_control = control
        message.msg_controllen = sizeof(control)
        n = recvmsg(flow.fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT)
        if n < 0:
            break
        error = icmp_error_reported(w, flow, &message, &reporter, &mtu)
        if error >= 0:
            count(w, C_UDP_ERRORS)
            tell_guest(w, &flow.key, error, &reporter, mtu, data, <uint32_t> n)
    getsockopt(flow.fd, SOL_SOCKET, SO_ERROR, &value, &size)


cdef void icmp_event(Worker *w, Flow *flow, uint32_t events) noexcept nogil:
    cdef Link *link = w.link
    cdef uint8_t *out
    cdef epoll_event event
    cdef vnet_hdr vnet
    cdef bint v4 = addr_is_v4(&flow.key.guest)
    cdef uint8_t protocol = PROTO_ICMP if v4 else PROTO_ICMPV6
    cdef uint32_t offset = 34 if v4 else 54
    cdef ssize_t n, room = IP_LEN_MAX - (IPV4_HLEN if v4 else 0)  # the length of IPv6 leaves its header out
    cdef int _i
    if events & EPOLLERR:
        take_errors(w, flow)
    if not events & EPOLLIN:
        return
    memset(&vnet, 0, sizeof(vnet))
    for _i in range(REPLIES):
        out = link.reserve(link)
        n = recv(flow.fd, out + offset, room, MSG_DONTWAIT | MSG_TRUNC)
        if n < 0:
            if errno == EINTR:
                continue
            return
        if n > room:  # larger than a frame may be
            count(w, C_DROP_LINK_ERROR)
            continue
        if n < ICMP_HLEN or out[offset] != (REPLY_V4 if v4 else REPLY_V6):
            continue
        flow.u.ping.last = w.now
        build_ip(w, out, &flow.key.remote, &flow.key.guest, protocol, <uint32_t> n, TTL_DEFAULT)
        (<icmp_hdr *> (out + offset)).id_be = htons(flow.key.gport)
        build_icmp_checksum(out + offset, <uint32_t> n, &flow.key.remote, &flow.key.guest)
        link.commit(link, offset + <uint32_t> n, &vnet)
    # More are waiting than one turn takes: armed anew, the edge comes again, after all others had their turn
    event.events = EPOLLIN | EPOLLET
    event.data.u64 = flow_ref(flow)
    epoll_ctl(w.epoll, EPOLL_CTL_MOD, flow.fd, &event)


cdef void icmp_timer(Worker *w, Flow *flow) noexcept nogil:
    if w.now - flow.u.ping.last >= IDLE_NS:
        icmp_close(w, flow)
    else:
        timer_arm(w.timers, w.flows, flow, flow.u.ping.last + IDLE_NS)
