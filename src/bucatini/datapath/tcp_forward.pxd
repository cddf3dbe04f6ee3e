"""Interface of TCP forwards (`tcp_forward.pyx`)."""

from bucatini.datapath.flow cimport Flow
from bucatini.datapath.worker cimport Listener, Worker

cdef void tcp_listener(Worker *w, Listener *listener) noexcept nogil  # connections on a forward, level triggered
