"""Interface of the sockets of TCP flows (`tcp_io.pyx`)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from bucatini.datapath.flow cimport Flow, FlowKey
from bucatini.datapath.parse cimport FrameRef
from bucatini.datapath.worker cimport Worker

cdef int tcp_init(Worker *w) noexcept nogil  # reserves the overflow and the batch; 0 or -errno
cdef void tcp_free(Worker *w) noexcept nogil
cdef void tcp_frame(Worker *w, FrameRef *ref) noexcept nogil  # one frame of the current batch
# Hands the payload of this batch to its sockets; acknowledgements wait for `tcp_flush`. Returns the bytes.
cdef uint32_t tcp_deliver(Worker *w) noexcept nogil
cdef void tcp_flush(Worker *w) noexcept nogil  # end of the batch
cdef void tcp_acknowledge(Worker *w) noexcept nogil  # at `w.acknowledge_at`
cdef void tcp_event(Worker *w, Flow *flow, uint32_t events) noexcept nogil  # of the flow's socket, edge triggered
cdef void tcp_continue(Worker *w, Flow *flow) noexcept nogil  # a flow that put itself on the ready list
cdef void tcp_timer(Worker *w, Flow *flow) noexcept nogil  # its timer fired

# For `tcp_forward`
cdef int tcp_watch(Worker *w, Flow *flow) noexcept nogil  # adds it to epoll; 0 or -errno
cdef void tcp_emit_syn(Worker *w, Flow *flow, uint8_t flags) noexcept nogil
cdef void tcp_emit_reset(Worker *w, Flow *flow) noexcept nogil
cdef void tcp_forget(Worker *w, Flow *flow) noexcept nogil  # closes the socket
cdef void tcp_abort_host(Worker *w, Flow *flow) noexcept nogil  # resets it
cdef uint32_t tcp_initial_number(Worker *w, const FlowKey *key) noexcept nogil
cdef uint32_t tcp_bound_now(Worker *w) noexcept nogil
cdef uint16_t tcp_our_mss(Worker *w, const FlowKey *key) noexcept nogil
