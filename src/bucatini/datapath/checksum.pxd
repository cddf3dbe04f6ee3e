"""Interface of the Internet checksum (`checksum.pyx`), RFC 1071."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from bucatini.datapath.headers cimport addr_t

# Ones' complement sum over `size` bytes, any alignment, continuing `sum`; not folded. Network order in and out.
cdef uint64_t checksum_add(uint64_t sum, const uint8_t *data, size_t size) noexcept nogil
# Folds a sum to 16 bits, not inverted; as it stands in memory (network order).
cdef uint16_t checksum_fold(uint64_t sum) noexcept nogil
# Sum of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1); v4-mapped addresses give the IPv4 one.
cdef uint64_t checksum_pseudo(const addr_t *src, const addr_t *dst, uint8_t protocol, uint32_t length) noexcept nogil
