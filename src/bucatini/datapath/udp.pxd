"""Interface of UDP flows (`udp.pyx`)."""

from libc.stdint cimport uint32_t

from bucatini.datapath.flow cimport Flow
from bucatini.datapath.parse cimport FrameRef
from bucatini.datapath.worker cimport Listener, Worker

cdef int udp_init(Worker *w) noexcept nogil  # reserves the batch buffers; 0 or -errno
cdef void udp_free(Worker *w) noexcept nogil
# One frame of the current batch; may be kept until `udp_flush`
cdef void udp_frame(Worker *w, FrameRef *ref) noexcept nogil
cdef void udp_flush(Worker *w) noexcept nogil  # end of the batch: all frames kept are sent
cdef void udp_event(Worker *w, Flow *flow, uint32_t events) noexcept nogil  # of the flow's socket, edge triggered
cdef void udp_continue(Worker *w, Flow *flow) noexcept nogil  # a flow that put itself on the ready list
cdef void udp_listener(Worker *w, Listener *listener) noexcept nogil  # datagrams on a forward, level triggered
cdef void udp_timer(Worker *w, Flow *flow) noexcept nogil  # its timer fired
cdef void udp_close(Worker *w, Flow *flow) noexcept nogil  # before worker_drop_flow: what the module keeps of it
