"""The flow table: every TCP connection, UDP flow and echo session, in memory reserved at start.

Purpose. A flow has two sides. The guest's side is its `FlowKey` and is found by hash; the host's side is a socket,
found by the epoll reference that carries the flow's index.

Data. An array of `Flow` and an array of bucket heads, both mapped once for `limit` flows; pages that no flow has used
yet cost nothing. A bucket is a chain by index (`hash_next`); the hash is keyed (SipHash-1-3), so a guest cannot aim at
one chain. Free flows form a stack, so that memory in use stays dense.

Limits. A full table makes `flow_new` return NULL; the caller refuses the flow (TCP: RST) and counts it.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from bucatini.datapath.siphash cimport siphash13
from bucatini.datapath.syscalls cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap,
)
from bucatini.datapath.timers cimport TIMER_NONE


cdef extern from "<errno.h>" nogil:
    int EINVAL, ENOMEM


cdef int flow_table_init(FlowTable *t, uint32_t limit, const uint8_t *key) noexcept nogil:
    cdef uint32_t buckets = 1024
    if sizeof(FlowKey) != 40:  # hashed and compared whole: it must not have holes
        return -EINVAL
    while buckets < limit:
        buckets *= 2
    t.limit = limit
    t.bucket_mask = buckets - 1
    t.used = 0
    t.fresh = 0
    t.free_head = FLOW_NONE
    memcpy(&t.key, key, sizeof(siphash_key))
    t.flows = <Flow *> mmap(NULL, limit * sizeof(Flow), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    t.buckets = <uint32_t *> mmap(NULL, buckets * sizeof(uint32_t), PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if t.flows == <Flow *> MAP_FAILED or t.buckets == <uint32_t *> MAP_FAILED:
        return -ENOMEM
    return 0


cdef void flow_table_free(FlowTable *t) noexcept nogil:
    munmap(t.flows, t.limit * sizeof(Flow))
    munmap(t.buckets, (t.bucket_mask + 1) * sizeof(uint32_t))


cdef inline uint32_t *bucket_of(FlowTable *t, const FlowKey *key) noexcept nogil:
    return &t.buckets[siphash13(&t.key, <const uint64_t *> key, 5) & t.bucket_mask]


cdef Flow *flow_find(FlowTable *t, const FlowKey *key) noexcept nogil:
    """Return the flow of this key, or NULL."""
    # Buckets hold index + 1, so that untouched pages mean "empty".
    cdef uint32_t link = bucket_of(t, key)[0]
    cdef Flow *flow
    while link:
        flow = &t.flows[link - 1]
        if memcmp(&flow.key, key, sizeof(FlowKey)) == 0:
            return flow
        link = flow.hash_next
    return NULL


cdef Flow *flow_new(FlowTable *t, const FlowKey *key, uint8_t kind) noexcept nogil:
    """Return a new flow, all zero but for its key, kind and `fd` -1; NULL when the table is full.

    The key must not be in the table.
    """
    cdef Flow *flow
    cdef uint32_t index, generation
    cdef uint32_t *bucket
    if t.free_head != FLOW_NONE:
        index = t.free_head
        flow = &t.flows[index]
        t.free_head = flow.hash_next
    elif t.fresh < t.limit:
        index = t.fresh
        t.fresh += 1
        flow = &t.flows[index]
    else:
        return NULL
    generation = flow.generation
    memset(flow, 0, sizeof(Flow))
    memcpy(&flow.key, key, sizeof(FlowKey))
    flow.generation = generation + 1
    flow.kind = kind
    flow.index = index
    flow.fd = -1
    flow.timer_slot = TIMER_NONE
    bucket = bucket_of(t, key)
    flow.hash_next = bucket[0]
    bucket[0] = index + 1
    t.used += 1
    return flow


cdef void flow_free(FlowTable *t, Flow *flow) noexcept nogil:
    """Take a flow out of the table. Its timer is cancelled and its socket closed by then."""
    cdef uint32_t *link = bucket_of(t, &flow.key)
    while link[0] != flow.index + 1:
        link = &t.flows[link[0] - 1].hash_next
    link[0] = flow.hash_next
    flow.kind = FLOW_FREE
    flow.hash_next = t.free_head
    t.free_head = flow.index
    t.used -= 1
