"""`Worker`: what one thread of the packet path owns. Nothing in it is shared; nothing global is written.

An epoll reference (64 bits) is kind (8 bits), generation (24 bits), index (32 bits): of the link, a flow (by its
socket, or by the second one of a spliced connection), a listener, a descriptor that Python watches, or the maker of
sockets.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from bucatini.datapath.counters cimport Counters
from bucatini.datapath.flow cimport Flow, FlowKey, FlowTable
from bucatini.datapath.headers cimport addr_t
from bucatini.datapath.link cimport Link
from bucatini.datapath.parse cimport FrameRef
from bucatini.datapath.siphash cimport siphash_key
from bucatini.datapath.timers cimport TimerWheel

cdef enum RefKind:
    REF_LINK
    REF_FLOW
    REF_LISTENER
    REF_PYTHON
    REF_FLOW_OTHER
    REF_SOCKETS

cdef enum:
    LISTENER_MAX = 262144
    AGES = 3  # kinds of flows listed by age

cdef struct Family:  # address translation of one IP version; unspecified (all zero) where there is none
    bint enabled
    addr_t guest  # the guest's address (assigned, or learnt when `learn`)
    addr_t assigned  # the address the guest was given
    bint learn  # the guest's address follows what it uses
    addr_t ours  # what stands for the host's loopback when nothing else is mapped
    addr_t map_host_loopback
    addr_t map_guest_addr
    addr_t host  # the host's own address that the guest shadows
    addr_t dns_forward
    addr_t dns_host
    addr_t resolver_gateway  # the gateway when it is the host's resolver: its ports 53 and 853 are not ours (D2)
    addr_t outbound  # source address of outbound sockets
    char outbound_if[16]
    addr_t guest_linklocal  # IPv6: learnt
    uint32_t scope_id  # host interface of link-local destinations

cdef struct Listener:  # a bound forward
    int fd
    uint8_t protocol
    uint8_t version  # 4, 6, or 0: dual stack
    uint8_t pif  # PIF_HOST, or PIF_SPLICE: bound in the guest's namespace
    bint bypass  # local connections go from socket to socket
    uint16_t port  # host order
    uint16_t to  # on the other side
    uint32_t scope_id
    addr_t address  # bound on, unspecified: any
    addr_t to_address  # on the other side, unspecified: the guest's own; from the namespace: what was asked
    uint32_t turn  # of the worker, when it was served last
    uint8_t accepts  # connections that were to be taken then
    bint used

cdef struct WorkerSettings:  # fixed while the worker runs
    uint16_t mtu  # of the guest's link, bytes
    bint no_tcp
    bint no_udp
    bint no_icmp
    bint freebind
    bint peek_off  # SO_PEEK_OFF works for TCP
    bint host_lo_to_ns_lo  # what bypasses the tap arrives on the namespace's loopback, not at the guest's address
    uint8_t our_mac[6]

cdef struct FlowList:  # flows of one kind, by age (`by_age`)
    uint32_t oldest  # FLOW_NONE: there is none
    uint32_t newest
    uint32_t count
    uint32_t limit

cdef enum Notice:  # what is told once: something has run out, or the guest has done what no guest does
    NOTICE_FLOWS = 1
    NOTICE_DESCRIPTORS = 2
    NOTICE_HALF_OPEN = 4
    NOTICE_AFTER_FIN = 8

cdef struct Worker:
    Link *link  # outermost
    Link *wire  # innermost
    FlowTable *flows
    TimerWheel *timers
    Counters *counters
    WorkerSettings settings
    Family v4
    Family v6
    Listener *listeners
    uint32_t listener_count
    uint32_t listener_limit
    int epoll
    uint64_t now  # ns, CLOCK_MONOTONIC, read once per turn and after waiting
    uint32_t turn  # times that all who were ready have been served
    uint8_t guest_mac[6]  # ff:ff:ff:ff:ff:ff until known
    siphash_key isn_key
    uint64_t acknowledge_at  # ns, when acknowledgements of TCP that were put off are due; 0: none is
    bint can_rest  # the loop can wait for less than a millisecond
    uint64_t rest_at  # ns, when a bypassed transfer that lets data gather goes on; 0: none does
    uint32_t ready_head  # flows to continue in the next turn (`Flow.ready_next`)
    uint32_t ready_tail
    uint32_t capacity  # flows at most, as far as the table and the limit of descriptors go
    uint32_t udp_ports  # UDP flows of the guest's at most: each takes a port of the host's
    uint32_t accepted  # connections among them that came in on forwards
    FlowList by_age[AGES]
    uint32_t notices  # NOTICE_*
    bint pressed  # the link has had frames without a pause for longer than its queue is
    uint64_t opened_at  # ns, when `open_spent` was last paid off
    uint64_t open_spent  # ns that were taken by new flows while it was
    int spare_fd  # given up for a moment when descriptors run out, to take and refuse a connection
    Flow *last_flow  # of the previous frame
    void *tcp  # what tcp_io keeps, private to it (a struct cannot be declared here and defined there)
    void *udp
    void *reassembly
    void *sockets  # NULL: there is no maker
    void *splice

cdef inline Family *family_of(Worker *w, int version) noexcept nogil:
    return &w.v4 if version == 4 else &w.v6

cdef inline void count(Worker *w, int counter) noexcept nogil:
    w.counters[0][counter] += 1

cdef inline void count_n(Worker *w, int counter, uint64_t n) noexcept nogil:
    w.counters[0][counter] += n

cdef inline uint64_t flow_ref(const Flow *flow) noexcept nogil:
    return (<uint64_t> REF_FLOW << 56) | (<uint64_t> (flow.generation & 0xFFFFFF) << 32) | flow.index

cdef inline uint64_t other_ref(const Flow *flow) noexcept nogil:
    return (<uint64_t> REF_FLOW_OTHER << 56) | (<uint64_t> (flow.generation & 0xFFFFFF) << 32) | flow.index

# Puts a flow on the list of those to be continued in the next turn; at most once each (the caller keeps `queued`).
cdef void worker_continue(Worker *w, Flow *flow) noexcept nogil
# Takes the first flow off that list, or NULL.
cdef Flow *worker_next(Worker *w) noexcept nogil
# Registers a flow's socket for `events` (EPOLL*), edge triggered, once for its life. 0 or -errno.
cdef int worker_watch(Worker *w, Flow *flow, uint32_t events) noexcept nogil
# Has a socket leave by the interface that was asked for (--outbound-if), unless it is for the loopback. 0 or -errno.
cdef int worker_leave_by(Worker *w, int fd, const addr_t *address) noexcept nogil
# Takes the flow off the timers, closes its socket and frees it.
cdef void worker_drop_flow(Worker *w, Flow *flow) noexcept nogil
# The flow of a frame of the guest, or NULL.
cdef Flow *worker_find(Worker *w, const FrameRef *ref) noexcept nogil
# Whether the guest may open a flow now: always, but for a share of the time while the link is `pressed` (counted). Then
# `worker_has_opened` follows, with the time it began.
cdef bint worker_may_open(Worker *w, uint64_t *begin) noexcept nogil
cdef void worker_has_opened(Worker *w, uint64_t begin) noexcept nogil
cdef void worker_key(FlowKey *key, const FrameRef *ref) noexcept nogil
