"""Flows that nobody has answered for yet, by age: there are at most so many, and the oldest gives way.

Purpose. Whoever sends SYNs costs the host a socket each, for the two minutes that its kernel goes on asking a far end
that does not answer, or ours a guest that does not; an echo request costs one for a minute. So of each kind (`Aged`)
there is at most an eighth of what the flow table and the limit of descriptors allow (`SHARE`): neither a flood of the
guest's nor one at a forward takes what the other needs, and established connections never give way. UDP has half: so
that an eighth is left for established connections whatever comes. When flows or descriptors run out all the same, the
oldest goes too (`room`).

By age alone, whatever it waited: a flood can be faster than any pause that one would grant. With 16,384 places and a
flood of 60,000 SYNs a second, a connection still has a quarter of a second.

A connection is given up without a word to the guest: its SYN comes again after a second, like one that was lost, and
RST would claim that somebody had refused. The host's end is reset: of a connection that was accepted its peer learns at
once. A segment that comes for it later is answered with RST, as for every connection that there is not.
"""

from libc.stdint cimport uint8_t

from bucatini.datapath.counters cimport C_PING_EVICTED, C_TCP_HALF_OPEN_EVICTED
from bucatini.datapath.flow cimport FLOW_NONE, FLOW_TCP
from bucatini.datapath.icmp cimport icmp_close
from bucatini.datapath.tcp_io cimport tcp_abort_host
from bucatini.datapath.worker cimport AGES, NOTICE_HALF_OPEN, FlowList, count


cdef enum:
    SHARE = 8  # one in so many


cdef void by_age_init(Worker *w) noexcept nogil:
    cdef int kind
    for kind in range(AGES):
        w.by_age[kind].oldest = FLOW_NONE
        w.by_age[kind].newest = FLOW_NONE
        w.by_age[kind].count = 0
        w.by_age[kind].limit = (w.capacity + SHARE - 1) // SHARE


cdef void by_age_add(Worker *w, Flow *flow, int kind) noexcept nogil:
    cdef FlowList *list_ = &w.by_age[kind]
    if list_.count >= list_.limit:
        w.notices |= NOTICE_HALF_OPEN
        by_age_give_way(w, kind)
    flow.aged = <uint8_t> (kind + 1)
    flow.newer = FLOW_NONE
    flow.older = list_.newest
    if list_.newest == FLOW_NONE:
        list_.oldest = flow.index
    else:
        w.flows.flows[list_.newest].newer = flow.index
    list_.newest = flow.index
    list_.count += 1


cdef void by_age_remove(Worker *w, Flow *flow) noexcept nogil:
    cdef FlowList *list_
    if not flow.aged:
        return
    list_ = &w.by_age[flow.aged - 1]
    flow.aged = 0
    if flow.older == FLOW_NONE:
        list_.oldest = flow.newer
    else:
        w.flows.flows[flow.older].newer = flow.newer
    if flow.newer == FLOW_NONE:
        list_.newest = flow.older
    else:
        w.flows.flows[flow.newer].older = flow.older
    list_.count -= 1


cdef bint by_age_give_way(Worker *w, int kind) noexcept nogil:
    cdef FlowList *list_ = &w.by_age[kind]
    cdef Flow *flow
    if list_.oldest == FLOW_NONE:
        return False
    flow = &w.flows.flows[list_.oldest]
    if flow.kind == FLOW_TCP:
        count(w, C_TCP_HALF_OPEN_EVICTED)
        tcp_abort_host(w, flow)
    else:
        count(w, C_PING_EVICTED)
        icmp_close(w, flow)
    return True
