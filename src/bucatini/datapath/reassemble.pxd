"""Interface of reassembly (`reassemble.pyx`): fragments of the guest, within a fixed budget."""

from bucatini.datapath.parse cimport FrameRef
from bucatini.datapath.worker cimport Worker

cdef int reassemble_init(Worker *w) noexcept nogil  # 0 or -errno
cdef void reassemble_free(Worker *w) noexcept nogil
# Takes a KIND_FRAGMENT; when it completes a packet, parses that packet into `ref` (its buffer is valid until the next
# call) and returns its Kind; else -(Counter): what became of it (C_FRAGMENTS_IN: kept, waiting for the rest).
cdef int reassemble(Worker *w, FrameRef *ref) noexcept nogil
