"""What every protocol of the packet path needs from its worker: flows found, watched, continued and dropped."""

from libc.stdint cimport uint32_t
from libc.string cimport memcmp, memcpy, memset

from bucatini.datapath.flow cimport FLOW_NONE, FLOW_SPLICE, FLOW_TCP, FLOW_UDP, PIF_TAP, flow_find, flow_free
from bucatini.datapath.headers cimport PROTO_ICMP, PROTO_ICMPV6, addr_t
from bucatini.datapath.syscalls cimport EPOLL_CTL_ADD, EPOLLET, close, epoll_ctl, epoll_event
from bucatini.datapath.timers cimport timer_cancel


cdef extern from "<errno.h>" nogil:
    int errno


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
