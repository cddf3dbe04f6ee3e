"""Interface of what happens when the host has moved (`moved.pyx`)."""

from bucatini.datapath.worker cimport Worker

# Let go of the guest's UDP flows and pings of an IP version that left from an address which the host no longer has.
cdef void let_go_of_moved(Worker *w, bint v4) noexcept nogil
