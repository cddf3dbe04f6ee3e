"""Interface of the links that wrap another: capture to a file, and a trace to Python (`capture.pyx`)."""

from bucatini.datapath.link cimport Link

# Makes `link` write every frame that passes through `inner` to `fd` in pcap format; 0 or -errno (header not written).
cdef int capture_open(Link *link, Link *inner, int fd) noexcept nogil
cdef void capture_close(Link *link) noexcept nogil
# Makes `link` call `trace(direction: str, frame: bytes)` for every frame that passes through `inner`.
cdef int trace_open(Link *link, Link *inner, void *trace) noexcept nogil
cdef void trace_close(Link *link) noexcept nogil
