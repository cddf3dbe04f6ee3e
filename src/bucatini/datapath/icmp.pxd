"""Interface of echo flows over ping sockets (`icmp.pyx`)."""

from libc.stdint cimport uint32_t

from bucatini.datapath.flow cimport Flow
from bucatini.datapath.parse cimport FrameRef
from bucatini.datapath.worker cimport Worker

cdef void icmp_frame(Worker *w, FrameRef *ref) noexcept nogil
cdef void icmp_event(Worker *w, Flow *flow, uint32_t events) noexcept nogil
cdef void icmp_timer(Worker *w, Flow *flow) noexcept nogil
cdef void icmp_close(Worker *w, Flow *flow) noexcept nogil
