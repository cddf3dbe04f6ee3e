"""Interface of the link that makes faults (`fault.pyx`)."""

from libc.stdint cimport uint32_t, uint64_t

from bucatini.datapath.link cimport Link

cdef enum:
    FAULT_LOSS
    FAULT_DUPLICATE
    FAULT_REORDER
    FAULT_CORRUPT
    FAULT_TRUNCATE
    FAULTS

# Makes `link` do to the frames of `inner` what `chances` (of 2**32 each) say, drawn from `seed`. A frame that is
# overtaken waits for `late` ns. 0 or -errno.
cdef int fault_open(Link *link, Link *inner, const uint32_t *chances, uint64_t late, uint64_t seed) noexcept nogil
cdef void fault_close(Link *link) noexcept nogil
