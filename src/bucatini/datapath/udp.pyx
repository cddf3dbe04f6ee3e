"""UDP flows: one connected socket each, datagrams in runs both ways.

Purpose. A flow is the guest's address and port and the other end's. The guest's datagrams go out of a socket
connected to the other end; what comes back on it goes to the guest. The flows that a forward opens have no socket of
their own (`udp_forward`).

What it does not do. Broadcast is dropped (`drop_multicast`). A datagram to a multicast group leaves the host (U13);
an answer from one of its members would come from an address that the connected socket does not take. Datagrams
larger than the guest's MTU are sent in one frame: a tap's kernel takes them.

Data. `Udp`: the runs of the current batch, receive slots and headers, mapped once. Slots are 64 KiB and a little
apart, so that they do not share cache sets; pages that no datagram has reached cost nothing. `held` counts our
sockets by port.

Source ports. The guest's port is kept (U6). The first socket on a port, that of a forward too, is bound without
SO_REUSEPORT, so that a port somebody else has is noticed and another is taken; then it gets the option, so that further
flows of ours from the same port can share it. Two instances never share one (U5): a bind succeeds only if both sockets
have the option at that moment, and belong to the same user. SO_REUSEADDR would do but for that: any user may share what
has it, and the last to bind gets what comes. Root's forwards are given to whom it becomes (`runtime/forwards`).

What the kernel makes of it. Of sockets that share a port it takes the connected one for what its peer sends
(`begin_group`). What others send goes to one that is not connected, by a hash: the forward's, or between bind() and
connect() that of a flow, which passes it on (`sort_out`). A connect() that chooses the address takes a socket out of
the group, so that groups stay small.

Runs. Datagrams of one flow and one size that come in one batch leave as one UDP_SEGMENT send, and arrive at the
guest as one USO superframe. A route that does not take it (`no_segment`) gets them one by one.

Timers. `IDLE_NS` after one exchange, `STREAM_NS` for a stream, `DNS_NS` for an answered query: the timer looks when
the last datagram was and waits again or closes.

Limits. Half of all flows are UDP's at most (`SHARE_OF_ALL`). At that limit one of them gives way; where there is no
descriptor or flow left, something does (`room`). Of UDP flows that is one of the side that has opened more of them, so
that neither a sweep of the guest's over ports nor a flood at a forward pushes out what is the other's: the one that has
been idle longest, if it had its answer, or a second of silence, or never more than one datagram each way
(`udp_make_room`). The lists by age are put right then, not with every datagram. Where nothing gives way, the new flow
is refused. The guest's flows are no more than half of the ports that the host's kernel hands out, since each takes one
(`udp_ports`): among themselves they give way before.

Failure. What the network says about a datagram (IP_RECVERR) becomes an ICMP error to the guest. What a socket does
not take at once is dropped and counted, as a full queue of a network card would.
"""

# syscalls serve: socket setsockopt getsockopt bind connect recvmmsg recvmsg sendmsg close

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from bucatini.datapath.build cimport (
    build_icmp_error, build_udp, icmp_error_of, icmp_error_reported, icmp_is_silent,
)
from bucatini.datapath.counters cimport (
    C_DROP_DISABLED, C_DROP_MULTICAST, C_DROP_UDP_NO_SOCKET, C_DROP_UDP_SEND,
    C_FLOW_REFUSED, C_UDP_ERRORS, C_UDP_EVICTED, C_UDP_FLOWS,
)
from bucatini.datapath.flow cimport (
    FLOW_NONE, FLOW_UDP, PIF_HOST, PIF_SPLICE, PIF_TAP, FlowKey, UdpFlow, flow_new,
)
from bucatini.datapath.headers cimport (
    IP_LEN_MAX, IPV6_HLEN, PROTO_UDP, UDP_HLEN, VNET_GSO_UDP_L4, addr_equal, addr_from_v4, addr_is_broadcast,
    addr_is_multicast, addr_is_unspecified, addr_is_v4, addr_t, htons, udp_hdr, vnet_hdr,
)
from bucatini.datapath.link cimport LINK_BATCH, LINK_USO, Link
from bucatini.datapath.room cimport room_for_datagrams, room_for_host_datagrams, room_is_short
from bucatini.datapath.sockaddr cimport sockaddr_any, sockaddr_fill, sockaddr_read
from bucatini.datapath.syscalls cimport (
    AF_INET, AF_INET6, CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_NXTHDR, CMSG_SPACE, EPOLLERR, EPOLLIN, IP_MULTICAST_TTL,
    IP_PKTINFO, IP_RECVERR, IP_TOS, IP_TTL, IPPROTO_IP, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, IPV6_PKTINFO, IPV6_RECVERR,
    IPV6_TCLASS, IPV6_UNICAST_HOPS, MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, MSG_DONTWAIT, MSG_ERRQUEUE,
    MSG_NOSIGNAL, PROT_READ, PROT_WRITE, SO_ERROR, SO_RCVBUF, SO_REUSEPORT, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK,
    SOL_SOCKET, SOL_UDP, UDP_SEGMENT, bind, close, cmsghdr, connect, getsockopt, in6_pktinfo, in_pktinfo, iovec, mmap,
    mmsghdr, msghdr, munmap, recvmmsg, recvmsg, sendmsg, setsockopt, socket, socklen_t,
)
from bucatini.datapath.timers cimport timer_arm
from bucatini.datapath.translate cimport Target, translate_outbound
from bucatini.datapath.udp_forward cimport udp_forward_answer, udp_forward_of, udp_forward_stray
from bucatini.datapath.udp_splice cimport udp_splice_answers
from bucatini.datapath.worker cimport (
    count, count_n, worker_continue, worker_drop_flow, worker_find, worker_has_opened, worker_key, worker_leave_by,
    worker_may_open, worker_watch,
)


cdef extern from "<errno.h>" nogil:
    int errno, EAGAIN, ECONNREFUSED, EINTR, EINVAL, EIO, EMSGSIZE, ENETUNREACH, ENOBUFS, ENOMEM, EOPNOTSUPP


cdef extern from *:
    """
    #ifndef IP_MTU
    #define IP_MTU 14
    #endif
    #ifndef IPV6_MTU
    #define IPV6_MTU 24
    #endif
    """
    int IP_MTU, IPV6_MTU


cdef enum:
    SHARE_OF_ALL = 2  # one flow in so many is UDP at most: connections have room whatever is sent
    RUN_MAX = 64  # datagrams of one UDP_SEGMENT send (UDP_MAX_SEGMENTS before Linux 6.9) and of one USO frame
    RUN_BYTES = 65000
    SLOT = 67648  # bytes: 65536 and a little, a multiple of 64 that spreads over cache sets
    SHARE = 4  # receive calls in one turn of a flow
    RECEIVE_BUFFER = 1 << 20  # bytes, which the kernel doubles: 10 ms of a gigabit in datagrams of 1400 bytes
    EARLY = 16  # receive calls for what came before connect()
    DNS = 53
    MULTICAST_TTL = 1  # towards a group (ip(7), ipv6(7))

cdef uint64_t SECOND = 1000000000
cdef uint64_t IDLE_NS = 30 * SECOND
cdef uint64_t STREAM_NS = 180 * SECOND
cdef uint64_t DNS_NS = 10 * SECOND
cdef uint64_t SILENT_NS = SECOND  # a flow may go for another one
cdef uint64_t EARLY_NS = SECOND // 10  # what the kernel was about to queue at connect() is there by then

cdef struct Run:  # datagrams of one flow on their way to its socket
    Flow *flow
    iovec iov[RUN_MAX]
    uint32_t count
    uint32_t size  # of each but the last, which may be shorter
    uint32_t total
    bint closed  # a shorter one was added: nothing may follow

cdef struct Ages:  # flows by age, FLOW_NONE: none
    uint32_t oldest
    uint32_t newest
    uint32_t count

cdef struct Udp:
    Run runs[LINK_BATCH]
    uint32_t count
    mmsghdr messages[UDP_SLOTS]
    iovec iov[UDP_SLOTS]
    sockaddr_any names[UDP_SLOTS]
    uint8_t control[UDP_SLOTS * UDP_CONTROL]
    uint8_t header[128]
    iovec frame[RUN_MAX + 2]
    int default_buffer  # bytes that a socket has for what comes, as the kernel counts them; 0: not known yet
    Ages ages[2]  # of flows of the guest's, and of the host's side
    uint16_t held[4 * 65536]  # our sockets bound to a port of the host, IPv4 then IPv6; and of the guest's namespace
    uint8_t *slots


cdef inline Udp *udp(Worker *w) noexcept nogil:
    return <Udp *> w.udp


cdef uint16_t *udp_held(Worker *w, uint8_t pif, bint v4, uint16_t port) noexcept nogil:
    return &udp(w).held[(0 if pif == PIF_HOST else 131072) + (0 if v4 else 65536) + port]


cdef void udp_hold(Worker *w, const Listener *listener, int change) noexcept nogil:
    cdef int one = 1
    if change > 0 and listener.pif == PIF_HOST:  # a dual stack socket takes both
        setsockopt(listener.fd, IPPROTO_IP, IP_RECVERR, &one, sizeof(one))
        setsockopt(listener.fd, IPPROTO_IPV6, IPV6_RECVERR, &one, sizeof(one))
    if listener.version != 6:
        udp_held(w, listener.pif, True, listener.port)[0] += change
    if listener.version != 4:
        udp_held(w, listener.pif, False, listener.port)[0] += change


cdef void udp_make_roomy(Worker *w, int fd) noexcept nogil:
    """Have a socket take what comes while we wait for a CPU; net.core.rmem_max cuts it (socket(7))."""
    cdef int size = 0
    cdef socklen_t length = sizeof(size)
    if udp(w).default_buffer == 0 and getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, &length) == 0:
        udp(w).default_buffer = size
    size = RECEIVE_BUFFER
    if udp(w).default_buffer < 2 * RECEIVE_BUFFER:
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size))


cdef void udp_slot(Worker *w, int index, Slot *out) noexcept nogil:
    out.payload = udp(w).slots + index * SLOT
    out.size = udp(w).messages[index].msg_len
    out.name = &udp(w).names[index]
    out.message = &udp(w).messages[index].msg_hdr


cdef int udp_init(Worker *w) noexcept nogil:
    cdef int side
    cdef uint8_t *memory = <uint8_t *> mmap(NULL, UDP_SLOTS * SLOT + sizeof(Udp), PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if memory == <uint8_t *> MAP_FAILED:
        return -ENOMEM
    w.udp = memory + UDP_SLOTS * SLOT
    udp(w).slots = memory
    for side in range(2):
        udp(w).ages[side].oldest = FLOW_NONE
        udp(w).ages[side].newest = FLOW_NONE
    return 0


cdef void udp_free(Worker *w) noexcept nogil:
    munmap(udp(w).slots, UDP_SLOTS * SLOT + sizeof(Udp))


# To the host


cdef void udp_tell_guest(Worker *w, Flow *flow, int error, const addr_t *reporter, uint32_t mtu, const uint8_t *payload,
                         uint32_t size) noexcept nogil:
    """Send the ICMP error about a datagram of `size` bytes that the guest sent, quoting it."""
    cdef uint8_t[UDP_HLEN + 512] quoted
    cdef udp_hdr *header = <udp_hdr *> quoted
    cdef uint32_t length = size if size < 512 else 512
    header.sport_be = htons(flow.key.gport)
    header.dport_be = htons(flow.key.rport)
    header.length_be = htons(<uint16_t> (UDP_HLEN + size))
    header.checksum_be = 0
    memcpy(quoted + UDP_HLEN, payload, length)
    count(w, C_UDP_ERRORS)
    build_icmp_error(w, &flow.key, reporter, error, mtu, quoted, UDP_HLEN + length, UDP_HLEN + size)


cdef uint32_t path_mtu(Flow *flow) noexcept nogil:
    """Return the MTU of the way to the other end, as the host knows it."""
    cdef int value = 0
    cdef socklen_t size = sizeof(value)
    if addr_is_v4(&flow.target):
        getsockopt(flow.fd, IPPROTO_IP, IP_MTU, &value, &size)
    else:
        getsockopt(flow.fd, IPPROTO_IPV6, IPV6_MTU, &value, &size)
    return <uint32_t> value if value > 0 else 1280


cdef int udp_send(int fd, msghdr *message, uint16_t segment) noexcept nogil:
    """0 or -errno; an earlier datagram's error is passed over. Control data, if any, is `UDP_CONTROL` bytes.

    That error is the socket's next result, whatever is called, and told from its queue (`take_errors`).
    """
    cdef int _i
    cdef uint8_t[UDP_CONTROL + 32] control
    cdef size_t used = message.msg_controllen
    cdef cmsghdr *cmsg
    if segment:
        memset(control, 0, sizeof(control))
        if used:  # memcpy(3) takes no null pointer, not for nothing either
            memcpy(control, message.msg_control, used)
        cmsg = <cmsghdr *> (control + used)
        cmsg.cmsg_level = SOL_UDP
        cmsg.cmsg_type = UDP_SEGMENT
        cmsg.cmsg_len = CMSG_LEN(sizeof(uint16_t))
        memcpy(CMSG_DATA(cmsg), &segment, sizeof(uint16_t))
        message.msg_control = control
        message.msg_controllen = used + CMSG_SPACE(sizeof(uint16_t))
    for _i in range(2):
        if sendmsg(fd, message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0:
            return 0
        if errno == EAGAIN:
            break
    return -errno


cdef int send_out(Worker *w, Flow *flow, iovec *iov, uint32_t n, uint16_t segment) noexcept nogil:
    """One send to the flow's socket, or that of its forward; `segment`: size of the datagrams, 0: one. 0 or -errno."""
    cdef sockaddr_any name
    cdef uint8_t[UDP_CONTROL] control
    cdef msghdr message
    cdef int fd = flow.fd, done
    cdef addr_t asked
    memset(&message, 0, sizeof(message))
    if fd < 0:
        fd = udp_forward_answer(w, flow, &message, &name, control)
    message.msg_iov = iov
    message.msg_iovlen = n
    done = udp_send(fd, &message, segment)
    if (done == -EINVAL or done == -ENETUNREACH) and flow.fd < 0 and not addr_is_unspecified(&flow.u.udp.asked):
        # A broadcast may have been asked, which is no source to answer from: the host chooses one on that link
        memcpy(&asked, &flow.u.udp.asked, sizeof(addr_t))
        memset(&flow.u.udp.asked, 0, sizeof(addr_t))
        done = send_out(w, flow, iov, n, segment)
        if done < 0:
            memcpy(&flow.u.udp.asked, &asked, sizeof(addr_t))
    return done


cdef void send_one(Worker *w, Flow *flow, uint8_t *payload, uint32_t size) noexcept nogil:
    """Send a datagram; what goes wrong is counted and told to the guest."""
    cdef iovec iov
    cdef int error
    iov.iov_base = payload
    iov.iov_len = size
    error = -send_out(w, flow, &iov, 1, 0)
    if error == 0:
        return
    count(w, C_DROP_UDP_SEND)
    if icmp_is_silent(error):
        return
    udp_tell_guest(w, flow, icmp_error_of(error), &flow.key.remote, path_mtu(flow) if error == EMSGSIZE else 0, payload,
                   size)


cdef void send_pieces(Worker *w, Flow *flow, uint8_t *payload, uint32_t total, uint32_t size) noexcept nogil:
    """Send datagrams that stand side by side one by one."""
    cdef uint32_t at = 0
    while at < total:
        send_one(w, flow, payload + at, size if total - at > size else total - at)
        at += size


cdef bint udp_segments_refused(int error) noexcept nogil:
    """Whether an error says that UDP_SEGMENT does not work here, rather than that the datagrams cannot go."""
    return error == EINVAL or error == EMSGSIZE or error == EIO or error == EOPNOTSUPP


cdef void flush_run(Worker *w, Run *run) noexcept nogil:
    """Send what a run has gathered."""
    cdef Flow *flow = run.flow
    cdef int error
    cdef uint32_t i, n = run.count
    run.count = 0
    run.total = 0
    run.closed = False
    if flow == NULL or n == 0:
        return
    if n > 1 and not flow.u.udp.no_segment:
        error = -send_out(w, flow, run.iov, n, <uint16_t> run.size)
        if error == 0:
            return
        if not udp_segments_refused(error):
            if not icmp_is_silent(error):
                udp_tell_guest(w, flow, icmp_error_of(error), &flow.key.remote, 0, <uint8_t *> run.iov[0].iov_base,
                               run.size)
            count_n(w, C_DROP_UDP_SEND, n)
            return
        flow.u.udp.no_segment = 1
    for i in range(n):
        send_one(w, flow, <uint8_t *> run.iov[i].iov_base, <uint32_t> run.iov[i].iov_len)


cdef void udp_flush(Worker *w) noexcept nogil:
    cdef uint32_t i
    cdef Run *run
    for i in range(udp(w).count):
        run = &udp(w).runs[i]
        flush_run(w, run)
        if run.flow != NULL:
            run.flow.u.udp.batch = 0
    udp(w).count = 0


cdef void send_superframe(Worker *w, Flow *flow, const FrameRef *ref) noexcept nogil:
    """Send the datagrams of a USO frame of the guest."""
    cdef uint32_t size = ref.gso_size, at = 0, part
    cdef uint32_t most = size * RUN_MAX
    cdef iovec iov
    cdef int error
    if most > RUN_BYTES:
        most = RUN_BYTES // size * size if size <= RUN_BYTES else size
    while at < ref.payload_length:
        part = ref.payload_length - at
        if part > most:
            part = most
        if part > size and not flow.u.udp.no_segment:
            iov.iov_base = ref.payload + at
            iov.iov_len = part
            error = -send_out(w, flow, &iov, 1, <uint16_t> size)
            if error == 0:
                at += part
                continue
            if udp_segments_refused(error):
                flow.u.udp.no_segment = 1
        send_pieces(w, flow, ref.payload + at, part, size)
        at += part


cdef void add_to_run(Worker *w, Flow *flow, const FrameRef *ref) noexcept nogil:
    """Keep a datagram for the end of the batch."""
    cdef Run *run
    cdef uint32_t size = ref.payload_length
    if flow.u.udp.batch == 0:
        if udp(w).count == LINK_BATCH:
            udp_flush(w)
        run = &udp(w).runs[udp(w).count]
        udp(w).count += 1
        flow.u.udp.batch = udp(w).count
        run.flow = flow
        run.count = 0
        run.total = 0
        run.closed = False
    else:
        run = &udp(w).runs[flow.u.udp.batch - 1]
    if run.count and (run.closed or size > run.size or size == 0 or run.size == 0 or run.count == RUN_MAX
                      or run.total + size > RUN_BYTES):
        flush_run(w, run)
    if run.count == 0:
        run.size = size
    elif size < run.size:
        run.closed = True
    run.iov[run.count].iov_base = ref.payload
    run.iov[run.count].iov_len = size
    run.count += 1
    run.total += size


cdef void pass_on(Worker *w, Flow *flow, const FrameRef *ref) noexcept nogil:
    """Give the socket the TTL and traffic class of the guest's datagram, when they change (U3)."""
    cdef int value, ttl
    cdef bint v4 = addr_is_v4(&flow.target)
    if ref.ttl == flow.u.udp.ttl and ref.tos == flow.u.udp.tos:
        return
    if flow.u.udp.batch:  # those before it go with theirs
        flush_run(w, &udp(w).runs[flow.u.udp.batch - 1])
    if flow.fd < 0:  # told with each answer
        flow.u.udp.ttl = ref.ttl
        flow.u.udp.tos = ref.tos
        return
    if ref.ttl != flow.u.udp.ttl and ref.ttl:
        flow.u.udp.ttl = ref.ttl
        value = ref.ttl
        if addr_is_multicast(&flow.target):
            ttl = IP_MULTICAST_TTL if v4 else IPV6_MULTICAST_HOPS
        else:
            ttl = IP_TTL if v4 else IPV6_UNICAST_HOPS
        setsockopt(flow.fd, IPPROTO_IP if v4 else IPPROTO_IPV6, ttl, &value, sizeof(value))
    if ref.tos != flow.u.udp.tos:
        flow.u.udp.tos = ref.tos
        value = ref.tos
        setsockopt(flow.fd, IPPROTO_IP if v4 else IPPROTO_IPV6, IP_TOS if v4 else IPV6_TCLASS, &value, sizeof(value))


cdef void udp_frame(Worker *w, FrameRef *ref) noexcept nogil:
    cdef Flow *flow
    cdef uint64_t begin
    if w.settings.no_udp:
        count(w, C_DROP_DISABLED)
        return
    flow = worker_find(w, ref)
    if flow != NULL and flow.fd < 0 and udp_forward_of(w, flow) == NULL:
        udp_flush(w)
        udp_close_flow(w, flow)  # its forward is gone: it goes on as the guest's
        flow = NULL
    if flow == NULL:
        if not worker_may_open(w, &begin):
            return
        flow = open_from_guest(w, ref)
        worker_has_opened(w, begin)
        if flow == NULL:
            return
    pass_on(w, flow, ref)
    flow.u.udp.last = w.now
    if flow.u.udp.to_host < 1000:
        flow.u.udp.to_host += 1
    if ref.frame == NULL or ref.gso_type == VNET_GSO_UDP_L4:
        if flow.u.udp.batch:
            flush_run(w, &udp(w).runs[flow.u.udp.batch - 1])
        if ref.gso_type == VNET_GSO_UDP_L4:
            send_superframe(w, flow, ref)
        else:  # put together from fragments: its buffer is used again
            send_one(w, flow, ref.payload, ref.payload_length)
    else:
        add_to_run(w, flow, ref)


# Flows by age


cdef void unlist(Worker *w, Flow *flow) noexcept nogil:
    cdef UdpFlow *u = &flow.u.udp
    cdef Ages *ages = &udp(w).ages[flow.from_host]
    if not u.listed:
        return
    u.listed = 0
    ages.count -= 1
    if u.older == FLOW_NONE:
        ages.oldest = u.newer
    else:
        w.flows.flows[u.older].u.udp.newer = u.newer
    if u.newer == FLOW_NONE:
        ages.newest = u.older
    else:
        w.flows.flows[u.newer].u.udp.older = u.older


cdef void list_as_newest(Worker *w, Flow *flow) noexcept nogil:
    cdef UdpFlow *u = &flow.u.udp
    cdef Ages *ages = &udp(w).ages[flow.from_host]
    u.listed = 1
    ages.count += 1
    u.newer = FLOW_NONE
    u.older = ages.newest
    if u.older == FLOW_NONE:
        ages.oldest = flow.index
    else:
        w.flows.flows[u.older].u.udp.newer = flow.index
    ages.newest = flow.index


cdef void udp_opened(Worker *w, Flow *flow) noexcept nogil:
    count(w, C_UDP_FLOWS)
    flow.u.udp.last = w.now
    list_as_newest(w, flow)


cdef uint32_t udp_flows(Worker *w) noexcept nogil:
    return udp(w).ages[0].count + udp(w).ages[1].count


cdef inline bint may_go(Worker *w, Flow *flow) noexcept nogil:
    """Whether a flow is not in use: silent, or an answered query, or no more than one datagram each way."""
    cdef UdpFlow *u = &flow.u.udp
    return not u.batch and (w.now - u.last >= SILENT_NS or (flow.target_port == DNS and u.to_guest >= u.to_host)
                            or (u.to_host < 2 and u.to_guest < 2))


cdef bint give_way(Worker *w, int side, bint descriptor) noexcept nogil:
    """Close a flow that may go; returns whether there was one. Those in use get a second chance (a clock, 64 steps)."""
    cdef Flow *flow
    cdef int _i
    for _i in range(64):
        if udp(w).ages[side].oldest == FLOW_NONE:
            return False
        flow = &w.flows.flows[udp(w).ages[side].oldest]
        if may_go(w, flow) and (flow.fd >= 0 or not descriptor):
            count(w, C_UDP_EVICTED)
            udp_close_flow(w, flow)
            return True
        unlist(w, flow)
        list_as_newest(w, flow)
    return False


cdef bint udp_make_room(Worker *w, bint descriptor, bint from_host) noexcept nogil:
    cdef int more = 1 if udp(w).ages[1].count > udp(w).ages[0].count else 0
    return give_way(w, more, descriptor) or give_way(w, 1 if from_host else 1 - more, descriptor)


cdef Flow *udp_new_flow(Worker *w, const FlowKey *key, bint from_host) noexcept nogil:
    """A new flow, NULL: refused (counted)."""
    cdef Flow *flow
    if ((udp_flows(w) >= w.capacity // SHARE_OF_ALL and not udp_make_room(w, False, from_host))
            or (not from_host and udp(w).ages[0].count >= w.udp_ports and not give_way(w, 0, False))):
        count(w, C_FLOW_REFUSED)
        return NULL
    flow = flow_new(w.flows, key, FLOW_UDP)
    if flow == NULL and (room_for_host_datagrams(w, 0) if from_host else room_for_datagrams(w, 0)):
        flow = flow_new(w.flows, key, FLOW_UDP)
    if flow == NULL:
        count(w, C_FLOW_REFUSED)
    return flow


# Sockets


cdef int make_socket(Worker *w, const addr_t *peer) noexcept nogil:
    """Return a new socket of the peer's IP version that reports errors, or -errno."""
    cdef bint v4 = addr_is_v4(peer)
    cdef int one = 1, error
    cdef int fd = socket(AF_INET if v4 else AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0 and room_is_short(errno) and room_for_datagrams(w, errno):
        fd = socket(AF_INET if v4 else AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0:
        return -errno
    setsockopt(fd, IPPROTO_IP if v4 else IPPROTO_IPV6, IP_RECVERR if v4 else IPV6_RECVERR, &one, sizeof(one))
    error = worker_leave_by(w, fd, peer)
    if error < 0:
        close(fd)
        return error
    return fd


cdef bint udp_bind_port(Flow *flow, uint16_t *held, const sockaddr_any *sa, socklen_t size,
                        uint16_t port) noexcept nogil:
    cdef int share = 1
    if held[0]:
        setsockopt(flow.fd, SOL_SOCKET, SO_REUSEPORT, &share, sizeof(share))
    if held[0] < 65535 and bind(flow.fd, &sa.sa, size) == 0:
        setsockopt(flow.fd, SOL_SOCKET, SO_REUSEPORT, &share, sizeof(share))
        held[0] += 1
        flow.u.udp.bound_port = port
        return True
    share = 0  # or the kernel might choose a port of another instance of the same user (U5)
    setsockopt(flow.fd, SOL_SOCKET, SO_REUSEPORT, &share, sizeof(share))
    return False


cdef void begin_group(const sockaddr_any *sa, socklen_t size) noexcept nogil:
    """Have the kernel make the group of the first socket on a port before that is connected.

    Made later, it would not know that one of its sockets is, and before Linux 6.13 would have the next one take what
    comes for the first until it is connected too. Without an address to leave from there are no groups of that kind.
    """
    cdef int one = 1
    cdef int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)
    if fd >= 0:
        setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one))
        bind(fd, &sa.sa, size)
        close(fd)


cdef int bind_source(Worker *w, Flow *flow, const Target *target) noexcept nogil:
    """Bind the guest's own port if it can be had, and the source address asked for; 0, or -1: not that address."""
    cdef sockaddr_any sa
    cdef socklen_t size
    cdef addr_t any_
    cdef const addr_t *source = &target.source
    cdef bint v4 = addr_is_v4(&target.address)
    cdef uint16_t *held = udp_held(w, PIF_HOST, v4, flow.key.gport)
    if addr_is_unspecified(source):
        memset(&any_, 0, sizeof(any_))
        if v4:
            addr_from_v4(&any_, 0)
        source = &any_
    size = sockaddr_fill(&sa, source, flow.key.gport, target.scope_id)
    if udp_bind_port(flow, held, &sa, size, flow.key.gport):
        if held[0] == 1 and v4 and source != &any_:
            begin_group(&sa, size)
    elif source != &any_:
        size = sockaddr_fill(&sa, source, 0, target.scope_id)
        return bind(flow.fd, &sa.sa, size)
    return 0


cdef Flow *open_from_guest(Worker *w, FrameRef *ref) noexcept nogil:
    """A datagram of the guest to somewhere new; NULL when it cannot go (counted)."""
    cdef FlowKey key
    cdef Target target
    cdef sockaddr_any sa
    cdef socklen_t size
    cdef Flow *flow
    cdef int verdict, error
    if addr_is_broadcast(&ref.dst):
        count(w, C_DROP_MULTICAST)
        return NULL
    verdict = translate_outbound(w, PROTO_UDP, &ref.dst, ref.dport, &target)
    if verdict < 0:
        count(w, -verdict)
        return NULL
    worker_key(&key, ref)
    flow = udp_new_flow(w, &key, False)
    if flow == NULL:
        return NULL
    memcpy(&flow.target, &target.address, sizeof(addr_t))
    flow.target_port = target.port
    flow.u.udp.ttl = MULTICAST_TTL if addr_is_multicast(&target.address) else UDP_TTL
    flow.fd = make_socket(w, &target.address)
    if flow.fd < 0:
        error = -flow.fd
        flow.fd = -1
        count(w, C_DROP_UDP_NO_SOCKET)
        if not room_is_short(error):
            udp_tell_guest(w, flow, icmp_error_of(error), &key.remote, 0, ref.payload, ref.payload_length)
        worker_drop_flow(w, flow)
        return NULL
    if target.port != DNS:  # an answer or two
        udp_make_roomy(w, flow.fd)
    size = sockaddr_fill(&sa, &target.address, target.port, target.scope_id)
    if (bind_source(w, flow, &target) < 0 or connect(flow.fd, &sa.sa, size) < 0
            or worker_watch(w, flow, EPOLLIN) < 0):
        error = errno
        count(w, C_DROP_UDP_NO_SOCKET)
        udp_tell_guest(w, flow, icmp_error_of(error), &key.remote, 0, ref.payload, ref.payload_length)
        udp_close_flow(w, flow)
        return NULL
    udp_opened(w, flow)
    if flow.u.udp.bound_port or not addr_is_unspecified(&target.source):
        flow.u.udp.sure_at = w.now + EARLY_NS
        take(w, flow, EARLY)
    timer_arm(w.timers, w.flows, flow, w.now + (DNS_NS if target.port == DNS else IDLE_NS))
    return flow


cdef void udp_close_flow(Worker *w, Flow *flow) noexcept nogil:
    udp_close(w, flow)
    worker_drop_flow(w, flow)


cdef void udp_close(Worker *w, Flow *flow) noexcept nogil:
    cdef UdpFlow *u = &flow.u.udp
    unlist(w, flow)
    if u.batch:
        udp(w).runs[u.batch - 1].flow = NULL
        u.batch = 0
    if u.bound_port:
        # What was opened on the host and bypasses the tap is bound in the namespace
        udp_held(w, PIF_SPLICE if flow.key.pif == PIF_HOST else PIF_HOST, addr_is_v4(&flow.target),
                 u.bound_port)[0] -= 1
        u.bound_port = 0


# To the guest


cdef void deliver_one(Worker *w, const FlowKey *key, uint8_t *payload, uint32_t size) noexcept nogil:
    """Send one datagram to the guest."""
    cdef Link *link = w.link
    cdef vnet_hdr vnet
    cdef uint8_t *out
    cdef uint32_t offset
    cdef Udp *u = udp(w)
    if size < 128:  # a copy is cheaper than a second iovec, and short frames need padding
        out = link.reserve(link)
        offset = build_udp(w, out, key, 0, size, &vnet)
        memcpy(out + offset, payload, size)
        link.commit(link, offset + size, &vnet)
        return
    offset = build_udp(w, u.header, key, 0, size, &vnet)
    u.frame[1].iov_base = u.header
    u.frame[1].iov_len = offset
    u.frame[2].iov_base = payload
    u.frame[2].iov_len = size
    link.send(link, u.frame, 3, &vnet)


cdef int udp_run_length(Worker *w, int first, int n) noexcept nogil:
    cdef Udp *u = udp(w)
    cdef uint32_t size = u.messages[first].msg_len, total = size
    cdef int i = first + 1
    if size == 0:
        return 1
    while i < n and i - first < RUN_MAX:
        total += u.messages[i].msg_len
        if u.messages[i].msg_len > size or u.messages[i].msg_len == 0 or total > IP_LEN_MAX - IPV6_HLEN - UDP_HLEN:
            break
        i += 1
        if u.messages[i - 1].msg_len < size:
            break
    return i - first


cdef void udp_deliver(Worker *w, Flow *flow, int first, int n) noexcept nogil:
    cdef Udp *u = udp(w)
    cdef Link *link = w.link
    cdef vnet_hdr vnet
    cdef uint32_t total
    cdef int run, i
    flow.u.udp.last = w.now
    if flow.u.udp.to_guest < 1000:
        flow.u.udp.to_guest += n - first
    while first < n:
        run = udp_run_length(w, first, n) if link.features & LINK_USO else 1
        if run == 1:
            deliver_one(w, &flow.key, u.slots + first * SLOT, u.messages[first].msg_len)
        else:
            total = 0
            for i in range(run):
                u.frame[i + 2].iov_base = u.slots + (first + i) * SLOT
                u.frame[i + 2].iov_len = u.messages[first + i].msg_len
                total += u.messages[first + i].msg_len
            u.frame[1].iov_base = u.header
            u.frame[1].iov_len = build_udp(w, u.header, &flow.key, u.messages[first].msg_len, total, &vnet)
            link.send(link, u.frame, run + 2, &vnet)
        first += run


cdef void udp_asked_address(const msghdr *message, addr_t *out) noexcept nogil:
    """Find the address that a datagram was sent to; unspecified when unknown."""
    cdef cmsghdr *cmsg = CMSG_FIRSTHDR(<msghdr *> message)
    memset(out, 0, sizeof(addr_t))
    while cmsg != NULL:
        if cmsg.cmsg_level == IPPROTO_IP and cmsg.cmsg_type == IP_PKTINFO:
            addr_from_v4(out, (<in_pktinfo *> CMSG_DATA(cmsg)).ipi_addr.s_addr)
            return
        if cmsg.cmsg_level == IPPROTO_IPV6 and cmsg.cmsg_type == IPV6_PKTINFO:
            memcpy(out, &(<in6_pktinfo *> CMSG_DATA(cmsg)).ipi6_addr, 16)
            return
        cmsg = CMSG_NXTHDR(<msghdr *> message, cmsg)


cdef int udp_receive(Worker *w, int fd, int n, bint names) noexcept nogil:
    """Receive up to `n` datagrams into the slots; `names`: with where they came from and went to. As recvmmsg(2)."""
    cdef Udp *u = udp(w)
    cdef msghdr *message
    cdef int i
    for i in range(n):
        message = &u.messages[i].msg_hdr
        u.iov[i].iov_base = u.slots + i * SLOT
        u.iov[i].iov_len = 65536
        message.msg_iov = &u.iov[i]
        message.msg_iovlen = 1
        message.msg_flags = 0
        if names:
            message.msg_name = &u.names[i]
            message.msg_namelen = sizeof(sockaddr_any)
            message.msg_control = u.control + i * UDP_CONTROL
            message.msg_controllen = UDP_CONTROL
        else:
            message.msg_name = NULL
            message.msg_namelen = 0
            message.msg_control = NULL
            message.msg_controllen = 0
    return recvmmsg(fd, u.messages, n, MSG_DONTWAIT, NULL)


cdef bint is_from(const Flow *flow, const sockaddr_any *name) noexcept nogil:
    """Whether it is the address that the flow's socket is connected to."""
    cdef addr_t peer
    return sockaddr_read(name, &peer) == flow.target_port and addr_equal(&peer, &flow.target)


cdef void sort_out(Worker *w, Flow *flow, int n) noexcept nogil:
    """Pass on what has come on a new socket: what came between bind() and connect() may be anybody's (U9)."""
    cdef Udp *u = udp(w)
    cdef int first = 0, end
    unlist(w, flow)  # what is a stranger's opens a flow, to which this one must not give way
    while first < n:
        end = first
        while end < n and is_from(flow, &u.names[end]):
            end += 1
        if end > first:
            udp_deliver(w, flow, first, end)
        else:
            end += 1
            udp_forward_stray(w, flow, first)
        first = end
    list_as_newest(w, flow)


cdef bint take(Worker *w, Flow *flow, int calls) noexcept nogil:
    """Take what the socket has, in so many calls at most; returns whether there may be more."""
    cdef bint early = w.now < flow.u.udp.sure_at
    cdef int _i
    cdef int n
    for _i in range(calls):
        n = udp_receive(w, flow.fd, UDP_SLOTS, early)
        if n < 0:
            if errno == EINTR or errno == ECONNREFUSED:
                continue
            return False
        if early:
            sort_out(w, flow, n)
        else:
            udp_deliver(w, flow, 0, n)
        if n < UDP_SLOTS:
            return False
    return True


cdef void drain(Worker *w, Flow *flow) noexcept nogil:
    """Take what the socket has, as far as the share of this turn goes."""
    if take(w, flow, SHARE) and not flow.u.udp.queued:
        flow.u.udp.queued = 1
        worker_continue(w, flow)


cdef void udp_event(Worker *w, Flow *flow, uint32_t events) noexcept nogil:
    if flow.key.pif != PIF_TAP:
        udp_splice_answers(w, flow)
        return
    if events & EPOLLERR:
        take_errors(w, flow)
    if events & EPOLLIN:
        drain(w, flow)


cdef void udp_continue(Worker *w, Flow *flow) noexcept nogil:
    flow.u.udp.queued = 0
    if flow.key.pif != PIF_TAP:
        udp_splice_answers(w, flow)
    else:
        drain(w, flow)


cdef int udp_next_error(Worker *w, int fd, msghdr *message, sockaddr_any *name, uint8_t *control) noexcept nogil:
    cdef iovec iov
    memset(message, 0, sizeof(msghdr))
    iov.iov_base = udp(w).slots
    iov.iov_len = 65536
    message.msg_iov = &iov
    message.msg_iovlen = 1
    message.msg_name = name
    message.msg_namelen = sizeof(sockaddr_any)
    message.msg_control = control
    message.msg_controllen = UDP_ERROR_CONTROL
    return <int> recvmsg(fd, message, MSG_ERRQUEUE | MSG_DONTWAIT)


cdef void udp_report(Worker *w, Flow *flow, msghdr *message, int size) noexcept nogil:
    cdef addr_t reporter
    cdef uint32_t mtu = 0
    cdef int error = icmp_error_reported(w, flow, message, &reporter, &mtu)
    if error >= 0:
        udp_tell_guest(w, flow, error, &reporter, mtu, udp(w).slots, <uint32_t> size)


cdef void take_errors(Worker *w, Flow *flow) noexcept nogil:
    """Tell the guest what the network says about its datagrams (U1, U2, U3)."""
    cdef sockaddr_any name
    cdef uint8_t[UDP_ERROR_CONTROL] control
    cdef msghdr message
    cdef int _i, n, value
    cdef socklen_t size = sizeof(value)
    for _i in range(UDP_ERRORS):
        n = udp_next_error(w, flow.fd, &message, &name, control)
        if n < 0:
            break
        udp_report(w, flow, &message, n)
    # What the queue held is also the error of the next call: it was told
    getsockopt(flow.fd, SOL_SOCKET, SO_ERROR, &value, &size)


cdef void udp_timer(Worker *w, Flow *flow) noexcept nogil:
    cdef UdpFlow *u = &flow.u.udp
    cdef uint64_t idle = IDLE_NS
    if flow.target_port == DNS and u.to_guest:
        idle = DNS_NS
    elif u.to_host > 2 and u.to_guest > 2:
        idle = STREAM_NS
    if w.now - u.last >= idle:
        udp_close_flow(w, flow)
    else:
        timer_arm(w.timers, w.flows, flow, u.last + idle)
