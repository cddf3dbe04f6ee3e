"""SipHash (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012) over whole 8-byte words.

SipHash-1-3 serves the flow table, SipHash-2-4 the initial sequence numbers (RFC 6528). Input is `count` words in host
order; on little-endian hosts the result equals the reference function's over the same bytes.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy


cdef inline uint64_t rotl(uint64_t x, int b) noexcept nogil:
    return (x << b) | (x >> (64 - b))


cdef inline void round_(uint64_t *v) noexcept nogil:
    v[0] += v[1]
    v[1] = rotl(v[1], 13) ^ v[0]
    v[0] = rotl(v[0], 32)
    v[2] += v[3]
    v[3] = rotl(v[3], 16) ^ v[2]
    v[0] += v[3]
    v[3] = rotl(v[3], 21) ^ v[0]
    v[2] += v[1]
    v[1] = rotl(v[1], 17) ^ v[2]
    v[2] = rotl(v[2], 32)


cdef inline uint64_t siphash(const siphash_key *key, const uint64_t *words, int count, int c, int d) noexcept nogil:
    cdef uint64_t[4] v
    cdef uint64_t last = <uint64_t> (count * 8) << 56
    cdef int i, _r
    v[0] = key.k0 ^ <uint64_t> 0x736F6D6570736575
    v[1] = key.k1 ^ <uint64_t> 0x646F72616E646F6D
    v[2] = key.k0 ^ <uint64_t> 0x6C7967656E657261
    v[3] = key.k1 ^ <uint64_t> 0x7465646279746573
    for i in range(count):
        v[3] ^= words[i]
        for _r in range(c):
            round_(v)
        v[0] ^= words[i]
    v[3] ^= last
    for _r in range(c):
        round_(v)
    v[0] ^= last
    v[2] ^= 0xFF
    for _r in range(d):
        round_(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


cdef uint64_t siphash13(const siphash_key *key, const uint64_t *words, int count) noexcept nogil:
    return siphash(key, words, count, 1, 3)


cdef uint64_t siphash24(const siphash_key *key, const uint64_t *words, int count) noexcept nogil:
    return siphash(key, words, count, 2, 4)


def siphash24_of(bytes key, bytes data):
    """Return SipHash-2-4 of `data` (a multiple of 8 bytes, at most 64) under a 16-byte key: for tests."""
    cdef siphash_key k
    cdef uint64_t[8] words
    if len(key) != 16 or len(data) % 8 or len(data) > 64:
        raise ValueError("key of 16 bytes, data of 0, 8 .. 64 bytes")
    memcpy(&k, <const char *> key, 16)
    memcpy(words, <const char *> data, len(data))
    return siphash24(&k, words, len(data) // 8)
