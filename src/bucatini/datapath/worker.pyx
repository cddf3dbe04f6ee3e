"""What every protocol of the packet path needs from its worker: flows found, watched, continued and dropped.

A new flow costs twenty times as much as a frame that is dropped. When the guest sends without a pause, faster than
flows can be opened, the link's queue is always full, and what is lost in front of it hits everybody alike: established
connections starve. So then new flows get a share of the time (`OPEN_SHARE`), and beyond it are dropped
(`drop_open_budget`): that is quick, the queue empties, and who is established gets through. A SYN comes again.
"""

# syscalls serve: epoll_ctl setsockopt close clock_gettime

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from bucatini.datapath.counters cimport C_DROP_OPEN_BUDGET
from bucatini.datapath.flow cimport FLOW_NONE, FLOW_SPLICE, FLOW_TCP, FLOW_UDP, PIF_TAP, flow_find, flow_free
from bucatini.datapath.headers cimport PROTO_ICMP, PROTO_ICMPV6, addr_is_loopback, addr_is_v4, addr_t
from bucatini.datapath.syscalls cimport (
    CLOCK_MONOTONIC, EPOLL_CTL_ADD, EPOLLET, SOL_SOCKET, SO_BINDTODEVICE, clock_gettime, close, epoll_ctl, epoll_event,
    setsockopt, timespec,
)
from bucatini.datapath.timers cimport timer_cancel


cdef extern from "<errno.h>" nogil:
    int errno


cdef enum:
    OPEN_SHARE = 4  # one part in so many of the time is for new flows while the link is pressed

cdef uint64_t OPEN_BURST_NS = 20000000  # about a thousand of them


cdef inline uint64_t clock_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t> now.tv_sec * 1000000000 + now.tv_nsec


cdef bint worker_may_open(Worker *w, uint64_t *begin) noexcept nogil:
    cdef uint64_t paid
    begin[0] = 0
    if not w.pressed:
        return True
    paid = (w.now - w.opened_at) // OPEN_SHARE
    w.opened_at = w.now
    w.open_spent -= paid if paid < w.open_spent else w.open_spent
    if w.open_spent >= OPEN_BURST_NS:
        count(w, C_DROP_OPEN_BUDGET)
        return False
    begin[0] = clock_ns()
    return True


cdef void worker_has_opened(Worker *w, uint64_t begin) noexcept nogil:
    if begin:
        w.open_spent += clock_ns() - begin


cdef void worker_continue(Worker *w, Flow *flow) noexcept nogil:
    flow.ready_next = FLOW_NONE
    flow.ready_previous = w.ready_tail
    if w.ready_head == FLOW_NONE:
        w.ready_head = flow.index
    else:
        w.flows.flows[w.ready_tail].ready_next = flow.index
    w.ready_tail = flow.index


cdef Flow *worker_next(Worker *w) noexcept nogil:
    cdef Flow *flow
    if w.ready_head == FLOW_NONE:
        return NULL
    flow = &w.flows.flows[w.ready_head]
    w.ready_head = flow.ready_next
    if w.ready_head == FLOW_NONE:
        w.ready_tail = FLOW_NONE
    else:
        w.flows.flows[w.ready_head].ready_previous = FLOW_NONE
    return flow


cdef int worker_watch(Worker *w, Flow *flow, uint32_t events) noexcept nogil:
    cdef epoll_event event
    event.events = events | EPOLLET
    event.data.u64 = flow_ref(flow)
    if epoll_ctl(w.epoll, EPOLL_CTL_ADD, flow.fd, &event) < 0:
        return -errno
    return 0


cdef int worker_leave_by(Worker *w, int fd, const addr_t *address) noexcept nogil:
    cdef Family *family = family_of(w, 4 if addr_is_v4(address) else 6)
    if family.outbound_if[0] == 0 or addr_is_loopback(address):
        return 0
    return -errno if setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, family.outbound_if, 16) < 0 else 0


cdef void unlist(Worker *w, Flow *flow) noexcept nogil:
    """Take a flow off the list of those to continue."""
    if flow.ready_previous == FLOW_NONE:
        w.ready_head = flow.ready_next
    else:
        w.flows.flows[flow.ready_previous].ready_next = flow.ready_next
    if flow.ready_next == FLOW_NONE:
        w.ready_tail = flow.ready_previous
    else:
        w.flows.flows[flow.ready_next].ready_previous = flow.ready_previous


cdef void worker_drop_flow(Worker *w, Flow *flow) noexcept nogil:
    if ((flow.kind == FLOW_TCP and flow.u.tcp.queued) or (flow.kind == FLOW_UDP and flow.u.udp.queued)
            or (flow.kind == FLOW_SPLICE and flow.u.splice.queued)):
        unlist(w, flow)
    timer_cancel(w.timers, w.flows, flow)
    if flow.fd >= 0:
        close(flow.fd)  # the last descriptor of its file: epoll forgets it too
        flow.fd = -1
    if w.last_flow == flow:
        w.last_flow = NULL
    flow_free(w.flows, flow)


cdef void worker_key(FlowKey *key, const FrameRef *ref) noexcept nogil:
    """Write the key of the flow that a frame of the guest belongs to."""
    memcpy(&key.guest, &ref.src, sizeof(addr_t))
    memcpy(&key.remote, &ref.dst, sizeof(addr_t))
    key.gport = ref.sport
    key.rport = 0 if ref.protocol == PROTO_ICMP or ref.protocol == PROTO_ICMPV6 else ref.dport
    key.protocol = ref.protocol
    key.pif = PIF_TAP
    memset(key.zero, 0, 2)


cdef Flow *worker_find(Worker *w, const FrameRef *ref) noexcept nogil:
    cdef FlowKey key
    cdef Flow *flow
    worker_key(&key, ref)
    # Frames come in trains: most belong to the flow of the one before
    if w.last_flow != NULL and memcmp(&w.last_flow.key, &key, sizeof(FlowKey)) == 0:
        return w.last_flow
    flow = flow_find(w.flows, &key)
    if flow != NULL:
        w.last_flow = flow
    return flow
