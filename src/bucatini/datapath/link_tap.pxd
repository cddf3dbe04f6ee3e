"""Interface of the tap link (`link_tap.pyx`)."""

from libc.stdint cimport uint32_t

from bucatini.datapath.counters cimport Counters
from bucatini.datapath.link cimport Link

# Makes `link` speak to the tap `fd` (non-blocking, IFF_VNET_HDR, header of 10 bytes); 0 or -errno.
cdef int tap_open(Link *link, int fd, uint32_t features, Counters *counters) noexcept nogil
cdef void tap_close(Link *link) noexcept nogil  # frees the buffers; the descriptor is the caller's
