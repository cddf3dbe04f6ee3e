"""A few ranges of sequence numbers, sorted and apart: what came out of order, and what the guest says it has.

There is room for `RANGES`; a range that touches none and finds no room is refused. Numbers are compared as serial
numbers (RFC 9293 §3.4), so all ranges of one set must lie within 2**31 of each other.
"""

from libc.stdint cimport uint32_t


cdef inline bint before(uint32_t a, uint32_t b) noexcept nogil:
    return <int> (a - b) < 0


cdef bint ranges_add(Ranges *r, uint32_t start, uint32_t end) noexcept nogil:
    cdef int i = 0, j, following
    while i < r.count and before(r.end[i], start):
        i += 1
    if i == r.count or before(end, r.start[i]):
        if r.count == RANGES:
            return False
        for j in range(r.count, i, -1):
            r.start[j] = r.start[j - 1]
            r.end[j] = r.end[j - 1]
        r.start[i] = start
        r.end[i] = end
        r.count += 1
        r.latest = i
        return True
    if before(start, r.start[i]):
        r.start[i] = start
    following = i + 1
    while following < r.count and not before(end, r.start[following]):
        following += 1
    if before(r.end[following - 1], end):
        r.end[i] = end
    else:
        r.end[i] = r.end[following - 1]
    remove(r, i + 1, following)
    r.latest = i
    return True


cdef void remove(Ranges *r, int first, int end) noexcept nogil:
    """Remove the ranges with indices first..end-1."""
    cdef int i
    for i in range(end, r.count):
        r.start[first + i - end] = r.start[i]
        r.end[first + i - end] = r.end[i]
    r.count -= end - first
    r.latest = r.latest - (end - first) if r.latest >= end else 0


cdef bint ranges_fits(const Ranges *r, uint32_t start) noexcept nogil:
    cdef int i
    if r.count < RANGES:
        return True
    for i in range(r.count):
        if r.end[i] == start:
            return True
    return False


cdef void ranges_cut(Ranges *r, uint32_t edge) noexcept nogil:
    cdef int gone = 0
    while gone < r.count and not before(edge, r.end[gone]):
        gone += 1
    if gone:
        remove(r, 0, gone)
    if r.count and before(r.start[0], edge):
        r.start[0] = edge


cdef uint32_t ranges_behind(const Ranges *r, uint32_t seq) noexcept nogil:
    cdef int i
    for i in range(r.count):
        if before(seq, r.end[i]):
            return seq if before(seq, r.start[i]) else r.end[i]
    return seq


cdef uint32_t ranges_before(const Ranges *r, uint32_t seq, uint32_t limit) noexcept nogil:
    cdef int i
    for i in range(r.count):
        if before(seq, r.start[i]):
            return r.start[i] if before(r.start[i], limit) else limit
    return limit


cdef uint32_t ranges_bytes(const Ranges *r) noexcept nogil:
    cdef uint32_t sum = 0
    cdef int i
    for i in range(r.count):
        sum += r.end[i] - r.start[i]
    return sum


cdef class RangeSet:
    """For tests: the same, from Python."""

    cdef Ranges r

    def add(self, uint32_t start, uint32_t end):
        return bool(ranges_add(&self.r, start, end))

    def cut(self, uint32_t edge):
        ranges_cut(&self.r, edge)

    def behind(self, uint32_t seq):
        return ranges_behind(&self.r, seq)

    def before(self, uint32_t seq, uint32_t limit):
        return ranges_before(&self.r, seq, limit)

    def bytes(self):
        return ranges_bytes(&self.r)

    def ranges(self):
        return [(self.r.start[i], self.r.end[i]) for i in range(self.r.count)]

    def latest(self):
        return self.r.start[self.r.latest], self.r.end[self.r.latest]
