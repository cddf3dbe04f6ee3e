"""Interface of the timer wheel (`timers.pyx`)."""

from libc.stdint cimport uint32_t, uint64_t

from bucatini.datapath.flow cimport Flow, FlowTable

cdef enum:
    TIMER_SLOTS = 4096
    TIMER_WORDS = 64  # TIMER_SLOTS bits
    TIMER_TICK_NS = 8388608  # 2**23 ns, 8.4 ms: the wheel turns once in 34 s; later deadlines wait for another turn
    TIMER_SHIFT = 23
    TIMER_NONE = 0xFFFFFFFFU

cdef struct TimerWheel:
    uint32_t heads[TIMER_SLOTS]  # first flow of each slot, FLOW_NONE: empty
    uint64_t bitmap[TIMER_WORDS]  # slots that are not empty
    uint64_t tick  # all slots up to this tick have fired
    uint32_t count

cdef void timers_init(TimerWheel *t, uint64_t now) noexcept nogil
# Makes sure that `flow` fires at `at` (ns) at the latest; an earlier appointment stays.
cdef void timer_arm(TimerWheel *t, FlowTable *flows, Flow *flow, uint64_t at) noexcept nogil
cdef void timer_cancel(TimerWheel *t, FlowTable *flows, Flow *flow) noexcept nogil
# Takes one flow that is due, or NULL; call until NULL.
cdef Flow *timer_due(TimerWheel *t, FlowTable *flows, uint64_t now) noexcept nogil
# Milliseconds until the next slot that may fire, -1: none.
cdef int timer_wait_ms(const TimerWheel *t, uint64_t now) noexcept nogil
