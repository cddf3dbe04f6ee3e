"""Interface of the flow table (`flow.pyx`)."""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from bucatini.datapath.headers cimport addr_t
from bucatini.datapath.siphash cimport siphash_key
from bucatini.datapath.tcp cimport TcpConn

cdef enum FlowKind:
    FLOW_FREE
    FLOW_TCP
    FLOW_UDP
    FLOW_PING
    FLOW_SPLICE

cdef enum Pif:  # where a side lives
    PIF_TAP
    PIF_HOST
    PIF_SPLICE  # the guest's namespace, reached by sockets in it

cdef enum:
    FLOW_NONE = 0xFFFFFFFFU  # no flow: indices below it are valid

# The guest's side; 40 bytes without a hole, hashed and compared as they are. Of a flow that bypasses the tap: `remote`
# is who opened it, `guest` what was asked, both as they are at `pif`.
cdef struct FlowKey:
    addr_t guest  # the guest's address
    addr_t remote  # the other end as the guest sees it
    uint16_t gport  # host order; ping: the identifier
    uint16_t rport  # ping: 0
    uint8_t protocol  # PROTO_*
    uint8_t pif  # PIF_TAP; of a flow that bypasses the tap where it was opened
    uint8_t zero[2]

cdef struct TcpFlow:
    TcpConn conn
    uint32_t head  # first chunk that is held for the socket (`overflow`), 0: none
    uint32_t tail  # last one
    uint32_t kept  # first chunk that came out of order
    uint32_t kept_chunks
    uint32_t batch  # index into the batch of this turn + 1, 0: not in it
    uint8_t readable  # the host socket may have data
    uint8_t hangup  # the host peer has shut its side: read until EOF
    uint8_t broken  # the host peer has reset: what is left is to be read, and its end is no EOF
    uint8_t urgent  # there was urgent data: a short read may have more behind it
    uint8_t queued  # in the worker's list of flows to continue
    uint8_t connected
    uint8_t peeking  # SO_PEEK_OFF is on: from the first read behind data in flight
    uint8_t late  # an acknowledgement is owed since `late_since`
    uint8_t listed  # it is among those that may owe one
    uint8_t mistrusted  # exchanges to go before an acknowledgement is put off again
    uint64_t late_since  # ns

cdef struct UdpFlow:
    uint64_t last  # ns, last datagram either way
    uint32_t to_host  # datagrams seen, saturating
    uint32_t to_guest
    uint64_t sure_at  # ns: until then what comes on its socket may be somebody else's
    addr_t asked  # of a flow that a forward opened: the host's address that its peer uses, unspecified: any
    uint32_t scope_id  # and the link, for link-local addresses
    uint16_t local_port  # and the forward's port
    uint16_t bound_port  # source port we bound for it, host order; 0: any
    uint32_t batch  # index into the batch of this turn + 1, 0: not in it
    uint32_t older  # neighbours in the list of flows by age, FLOW_NONE: none
    uint32_t newer
    uint8_t listed  # in that list
    uint8_t no_segment  # UDP_SEGMENT was refused on this socket
    uint8_t queued  # in the worker's list of flows to continue
    uint8_t ttl  # of the socket
    uint8_t tos
    uint32_t listener  # the forward that opened it, where answers leave

cdef struct SpliceFlow:  # a TCP connection that bypasses the tap; sides: 0 who opened it (Flow.fd), 1 the other
    int other  # socket of side 1
    uint32_t pipe[2]  # what is on its way from this side to the other, index of a pipe + 1; 0: nothing is
    uint32_t held[2]  # bytes in it
    uint8_t readable[2]  # may have data, or its end
    uint8_t hangup[2]  # will not say again that there is something: read to the end
    uint8_t urgent[2]  # urgent data stands in the way of splice(2)
    uint8_t ended[2]  # the end was read, or an error: a reset once the pipe is empty
    uint8_t told[2]  # and passed on
    uint8_t muted[2]  # epoll does not tell of data
    uint8_t resting[2]  # while data gathers
    uint8_t connected
    uint8_t queued  # in the worker's list of flows to continue

cdef struct PingFlow:
    uint64_t last
    uint8_t ttl  # of the socket

cdef union FlowState:
    TcpFlow tcp
    UdpFlow udp
    PingFlow ping
    SpliceFlow splice

cdef struct Flow:
    FlowKey key
    addr_t target  # where the host side goes: address of the far end on the host's side
    uint16_t target_port  # host order
    uint8_t kind  # FlowKind
    uint8_t from_host  # opened by the host's side
    uint8_t aged  # list by age that it is in + 1, 0: none
    uint32_t older  # its neighbours there, FLOW_NONE: none
    uint32_t newer
    int fd  # host socket, -1: none
    uint32_t index  # of this flow
    uint32_t hash_next  # chain of the bucket, or of the free list
    uint32_t timer_next  # chain of the timer slot
    uint32_t timer_previous
    uint32_t timer_slot  # slot it waits in, TIMER_NONE: none
    uint64_t timer_at  # ns, when that slot fires
    uint32_t ready_next  # worker's list of flows to continue
    uint32_t ready_previous
    uint32_t generation  # moves on each reuse: epoll events of an earlier life are known by it
    FlowState u

cdef struct FlowTable:
    Flow *flows
    uint32_t *buckets
    uint32_t bucket_mask
    uint32_t limit  # flows at most
    uint32_t used
    uint32_t fresh  # flows never used yet start here
    uint32_t free_head
    siphash_key key

cdef int flow_table_init(FlowTable *t, uint32_t limit, const uint8_t *key) noexcept nogil
cdef void flow_table_free(FlowTable *t) noexcept nogil
cdef Flow *flow_find(FlowTable *t, const FlowKey *key) noexcept nogil
cdef Flow *flow_new(FlowTable *t, const FlowKey *key, uint8_t kind) noexcept nogil
cdef void flow_free(FlowTable *t, Flow *flow) noexcept nogil
