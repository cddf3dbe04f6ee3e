"""Interface of the stream link (`link_stream.pyx`)."""

from libc.stdint cimport uint32_t

from bucatini.datapath.counters cimport Counters
from bucatini.datapath.link cimport Link

# Makes `link` one for a stream socket, without a client yet; 0 or -errno.
cdef int stream_open(Link *link, Counters *counters) noexcept nogil
# Serves the client at `fd` (connected, SOCK_STREAM) from now on; -1: nobody. What waited for the one before is lost.
cdef void stream_attach(Link *link, int fd) noexcept nogil
# After `receive` failed with `error`: EPROTO: the length that cannot be, else how many bytes of a frame had come.
cdef uint32_t stream_rest(const Link *link, int error) noexcept nogil
cdef void stream_flush(Link *link) noexcept nogil
cdef void stream_close(Link *link) noexcept nogil  # frees the buffers; the descriptor is the caller's
