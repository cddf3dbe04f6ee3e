"""Interface of TCP connections that bypass the tap (`tcp_splice.pyx`)."""

from libc.stdint cimport uint32_t

from bucatini.datapath.flow cimport Flow
from bucatini.datapath.sockaddr cimport sockaddr_any
from bucatini.datapath.worker cimport Listener, Worker

cdef int splice_init(Worker *w) noexcept nogil  # 0 or -errno
cdef void splice_free(Worker *w) noexcept nogil
# Takes a connection accepted on a listener; returns whether it is one for the bypass, and then `fd` is taken care of.
cdef bint splice_accept(Worker *w, Listener *listener, int fd, const sockaddr_any *peer) noexcept nogil
cdef void splice_event(Worker *w, Flow *flow, int side, uint32_t events) noexcept nogil  # edge triggered
cdef void splice_rested(Worker *w) noexcept nogil  # goes on with the transfers that have rested (`Worker.rest_at`)
cdef void splice_continue(Worker *w, Flow *flow) noexcept nogil  # a flow that put itself on the ready list
