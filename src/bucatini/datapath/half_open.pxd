"""Interface of the connections that are not established yet (`half_open.pyx`)."""

from bucatini.datapath.flow cimport Flow
from bucatini.datapath.worker cimport Worker

cdef enum Opener:  # which end the connection is of; index into `Worker.half_open`
    BY_GUEST
    BY_HOST

cdef void half_open_init(Worker *w) noexcept nogil
# Lists a new connection as the youngest; at the limit the oldest of the same opener is given up.
cdef void half_open_add(Worker *w, Flow *flow) noexcept nogil
# Takes it off, if it is listed: it is established or over.
cdef void half_open_remove(Worker *w, Flow *flow) noexcept nogil
# Gives the oldest of an opener up; returns whether there was one.
cdef bint half_open_give_way(Worker *w, int opener) noexcept nogil
