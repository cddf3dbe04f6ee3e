"""A timer wheel for flows: one appointment each, O(1), in memory reserved at start.

A flow waits in at most one slot. Deadlines that move to later are not moved here: the flow fires early, its owner sees
that its own deadline is not reached, and arms it again. So the hot path writes a number and touches the wheel only
when nothing is armed. Slots are 8.4 ms wide; a flow never fires early by more than that against `timer_at`, and a
deadline beyond one turn of the wheel (34 s) fires at the end of the turn, to be armed again.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from bucatini.datapath.flow cimport FLOW_NONE, Flow, FlowTable


cdef extern from * nogil:
    int ctzll "__builtin_ctzll"(unsigned long long value)


cdef void timers_init(TimerWheel *t, uint64_t now) noexcept nogil:
    memset(t.heads, 0xFF, sizeof(t.heads))
    memset(t.bitmap, 0, sizeof(t.bitmap))
    t.tick = now >> TIMER_SHIFT
    t.count = 0


cdef void timer_arm(TimerWheel *t, FlowTable *flows, Flow *flow, uint64_t at) noexcept nogil:
    cdef uint64_t tick
    cdef uint32_t slot
    if flow.timer_slot != TIMER_NONE:
        if flow.timer_at <= at:
            return
        timer_cancel(t, flows, flow)
    tick = (at >> TIMER_SHIFT) + 1  # the slot fires when it is over: never before `at`
    if tick <= t.tick:
        tick = t.tick + 1
    elif tick >= t.tick + TIMER_SLOTS:
        tick = t.tick + TIMER_SLOTS - 1
    slot = tick & (TIMER_SLOTS - 1)
    flow.timer_slot = slot
    flow.timer_at = at
    flow.timer_previous = FLOW_NONE
    flow.timer_next = t.heads[slot]
    if flow.timer_next != FLOW_NONE:
        flows.flows[flow.timer_next].timer_previous = flow.index
    t.heads[slot] = flow.index
    t.bitmap[slot >> 6] |= <uint64_t> 1 << (slot & 63)
    t.count += 1


cdef void timer_cancel(TimerWheel *t, FlowTable *flows, Flow *flow) noexcept nogil:
    cdef uint32_t slot = flow.timer_slot
    if slot == TIMER_NONE:
        return
    if flow.timer_next != FLOW_NONE:
        flows.flows[flow.timer_next].timer_previous = flow.timer_previous
    if flow.timer_previous != FLOW_NONE:
        flows.flows[flow.timer_previous].timer_next = flow.timer_next
    else:
        t.heads[slot] = flow.timer_next
        if flow.timer_next == FLOW_NONE:
            t.bitmap[slot >> 6] &= ~(<uint64_t> 1 << (slot & 63))
    flow.timer_slot = TIMER_NONE
    t.count -= 1


cdef inline int next_slot_distance(const TimerWheel *t) noexcept nogil:
    """Ticks from `tick` to the next slot that is not empty, 1..TIMER_SLOTS; `count` must not be 0."""
    cdef int _i
    cdef uint32_t start = (t.tick + 1) & (TIMER_SLOTS - 1)
    cdef uint32_t word = start >> 6
    cdef uint64_t bits = t.bitmap[word] & (~<uint64_t> 0 << (start & 63))
    for _i in range(TIMER_WORDS + 1):
        if bits:
            return <int> ((((word << 6) + ctzll(bits)) - start) & (TIMER_SLOTS - 1)) + 1
        word = (word + 1) & (TIMER_WORDS - 1)
        bits = t.bitmap[word]
    return TIMER_SLOTS


cdef Flow *timer_due(TimerWheel *t, FlowTable *flows, uint64_t now) noexcept nogil:
    cdef uint64_t current = now >> TIMER_SHIFT
    cdef uint32_t slot
    cdef Flow *flow
    cdef int distance
    while t.tick < current:
        if t.count == 0:
            t.tick = current
            return NULL
        distance = next_slot_distance(t)
        if t.tick + distance > current:
            # `tick` stays on the last slot that fired: those between are empty anyway
            t.tick = current
            return NULL
        slot = (t.tick + distance) & (TIMER_SLOTS - 1)
        t.tick += distance - 1
        flow = &flows.flows[t.heads[slot]]
        timer_cancel(t, flows, flow)
        if t.heads[slot] == FLOW_NONE:
            t.tick += 1
        return flow
    return NULL


cdef int timer_wait_ms(const TimerWheel *t, uint64_t now) noexcept nogil:
    cdef uint64_t at
    if t.count == 0:
        return -1
    at = (t.tick + next_slot_distance(t)) << TIMER_SHIFT
    if at <= now:
        return 0
    return <int> ((at - now) // 1000000) + 1
