"""The Internet checksum (RFC 1071), on 64-bit words, folded once.

Sums are kept in memory order: a folded sum is stored into a header as it is, on any host. The tap needs checksums only
for IP headers and ICMP; TCP and UDP frames leave with the sum of their pseudo-header and the kernel does the rest.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from bucatini.datapath.headers cimport addr_is_v4, htonl, htons


cdef uint64_t checksum_add(uint64_t sum, const uint8_t *data, size_t size) noexcept nogil:
    cdef uint64_t low = 0, high = 0, word
    cdef uint16_t half
    # Two 32-bit columns in 64-bit accumulators: no carry to look after below 2**32 words.
    while size >= 32:
        memcpy(&word, data, 8)
        low += word & 0xFFFFFFFFU
        high += word >> 32
        memcpy(&word, data + 8, 8)
        low += word & 0xFFFFFFFFU
        high += word >> 32
        memcpy(&word, data + 16, 8)
        low += word & 0xFFFFFFFFU
        high += word >> 32
        memcpy(&word, data + 24, 8)
        low += word & 0xFFFFFFFFU
        high += word >> 32
        data += 32
        size -= 32
    while size >= 2:
        memcpy(&half, data, 2)
        low += half
        data += 2
        size -= 2
    if size:
        half = 0
        memcpy(&half, data, 1)  # padded with zero on the right
        low += half
    # Bring everything below 2**34 or so, that sums can be added without a thought.
    sum = (sum & 0xFFFFFFFFU) + (sum >> 32)
    low = (low & 0xFFFFFFFFU) + (low >> 32)
    high = (high & 0xFFFFFFFFU) + (high >> 32)
    return sum + low + high


cdef uint16_t checksum_fold(uint64_t sum) noexcept nogil:
    sum = (sum & 0xFFFFFFFFU) + (sum >> 32)
    sum = (sum & 0xFFFF) + (sum >> 16)
    sum = (sum & 0xFFFF) + (sum >> 16)
    sum = (sum & 0xFFFF) + (sum >> 16)
    return <uint16_t> sum


cdef uint64_t checksum_pseudo(const addr_t *src, const addr_t *dst, uint8_t protocol, uint32_t length) noexcept nogil:
    cdef uint64_t sum = htons(protocol)
    sum += htonl(length)
    if addr_is_v4(src):
        return sum + src.w[3] + dst.w[3]
    sum += <uint64_t> src.w[0] + src.w[1] + src.w[2] + src.w[3]
    return sum + dst.w[0] + dst.w[1] + dst.w[2] + dst.w[3]


def sum16(bytes data not None, int initial=0):
    """Return the ones' complement sum of `data`, folded to 16 bits, not inverted (RFC 1071 §4.1): for tests.

    Args:
        data: n bytes; an odd last byte is padded with zero on the right.
        initial: an earlier sum to continue, host order, 0..0xFFFF.

    Returns:
        The sum in host order.
    """
    cdef const uint8_t* content = data
    return htons(checksum_fold(checksum_add(htons(<uint16_t> initial), content, len(data))))
