"""Interface of UDP flows that bypass the tap (`udp_splice.pyx`)."""

from bucatini.datapath.flow cimport Flow
from bucatini.datapath.worker cimport Listener, Worker

# Passes datagrams received on a listener on: from slot `first` on, `n` in all; returns how many, 0: not one to bypass.
cdef int udp_splice_serve(Worker *w, Listener *listener, int first, int n) noexcept nogil
cdef void udp_splice_answers(Worker *w, Flow *flow) noexcept nogil  # what has come back on the flow's socket
