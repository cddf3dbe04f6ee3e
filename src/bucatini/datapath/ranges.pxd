"""Interface of ranges of sequence numbers (`ranges.pyx`)."""

from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    RANGES = 8

cdef struct Ranges:  # sorted, apart from each other: [start, end) each
    uint32_t start[RANGES]
    uint32_t end[RANGES]
    uint8_t count
    uint8_t latest  # index of the one that was added to last

# Whether a range that begins at `start` would find room.
cdef bint ranges_fits(const Ranges *r, uint32_t start) noexcept nogil
# Adds [start, end), merging what touches; returns whether there was room.
cdef bint ranges_add(Ranges *r, uint32_t start, uint32_t end) noexcept nogil
# Removes everything below `edge`.
cdef void ranges_cut(Ranges *r, uint32_t edge) noexcept nogil
# The end of the range that `seq` is in, or `seq` itself.
cdef uint32_t ranges_behind(const Ranges *r, uint32_t seq) noexcept nogil
# The start of the first range above `seq`, at most `limit`.
cdef uint32_t ranges_before(const Ranges *r, uint32_t seq, uint32_t limit) noexcept nogil
cdef uint32_t ranges_bytes(const Ranges *r) noexcept nogil
