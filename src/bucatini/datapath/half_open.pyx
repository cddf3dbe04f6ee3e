"""Connections that are not established yet, by age: there are at most so many, and the oldest gives way.

Purpose. Whoever sends SYNs costs the host a socket each, for the two minutes that its kernel goes on asking a far end
that does not answer, or ours a guest that does not. So at most an eighth of the flow table (`SHARE`) is half open, for
each opener of its own: neither a flood of the guest's nor one at a forward takes what the other needs, and established
connections never give way. When descriptors run out below that, the oldest goes too (`room`).

By age alone, whatever it waited: a flood can be faster than any pause that one would grant. With 16,384 places, and the
60,000 SYNs a second that a processor here serves at most, a connection still has a quarter of a second.

Given up is without a word to the guest: its SYN comes again after a second, like one that was lost, and RST would claim
that somebody had refused. The host's end is reset: of a connection that was accepted its peer learns at once. A
segment that comes for it later is answered with RST, as for every connection that there is not.
"""

from bucatini.datapath.counters cimport C_TCP_HALF_OPEN_EVICTED
from bucatini.datapath.flow cimport FLOW_NONE, TcpFlow
from bucatini.datapath.tcp_io cimport tcp_abort_host
from bucatini.datapath.worker cimport EXHAUSTED_HALF_OPEN, HalfOpen, count


cdef enum:
    SHARE = 8  # of the flow table: one in so many


cdef void half_open_init(Worker *w) noexcept nogil:
    cdef int opener
    for opener in range(2):
        w.half_open[opener].oldest = FLOW_NONE
        w.half_open[opener].newest = FLOW_NONE
        w.half_open[opener].count = 0
        w.half_open[opener].limit = (w.flows.limit + SHARE - 1) // SHARE


cdef inline HalfOpen *list_of(Worker *w, Flow *flow) noexcept nogil:
    return &w.half_open[<int> (BY_HOST if flow.from_host else BY_GUEST)]


cdef void half_open_add(Worker *w, Flow *flow) noexcept nogil:
    cdef HalfOpen *h = list_of(w, flow)
    cdef TcpFlow *t = &flow.u.tcp
    if h.count >= h.limit:
        w.exhausted |= EXHAUSTED_HALF_OPEN
        half_open_give_way(w, BY_HOST if flow.from_host else BY_GUEST)
    t.half_open = 1
    t.newer = FLOW_NONE
    t.older = h.newest
    if h.newest == FLOW_NONE:
        h.oldest = flow.index
    else:
        w.flows.flows[h.newest].u.tcp.newer = flow.index
    h.newest = flow.index
    h.count += 1


cdef void half_open_remove(Worker *w, Flow *flow) noexcept nogil:
    cdef HalfOpen *h = list_of(w, flow)
    cdef TcpFlow *t = &flow.u.tcp
    if not t.half_open:
        return
    t.half_open = 0
    if t.older == FLOW_NONE:
        h.oldest = t.newer
    else:
        w.flows.flows[t.older].u.tcp.newer = t.newer
    if t.newer == FLOW_NONE:
        h.newest = t.older
    else:
        w.flows.flows[t.newer].u.tcp.older = t.older
    h.count -= 1


cdef bint half_open_give_way(Worker *w, int opener) noexcept nogil:
    cdef HalfOpen *h = &w.half_open[opener]
    if h.oldest == FLOW_NONE:
        return False
    count(w, C_TCP_HALF_OPEN_EVICTED)
    tcp_abort_host(w, &w.flows.flows[h.oldest])
    return True
