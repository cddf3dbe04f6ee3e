"""Interface of the flows that give way by age (`by_age.pyx`)."""

from bucatini.datapath.flow cimport Flow
from bucatini.datapath.worker cimport Worker

cdef enum Aged:  # index into `Worker.by_age`
    AGED_GUEST  # connections of the guest that are not established
    AGED_HOST  # those of the host's side
    AGED_PING

cdef void by_age_init(Worker *w) noexcept nogil
# Lists a new flow as the youngest of its kind; at the limit the oldest is given up.
cdef void by_age_add(Worker *w, Flow *flow, int kind) noexcept nogil
# Takes it off, if it is listed: it is established or over.
cdef void by_age_remove(Worker *w, Flow *flow) noexcept nogil
# Gives the oldest of a kind up; returns whether there was one.
cdef bint by_age_give_way(Worker *w, int kind) noexcept nogil
