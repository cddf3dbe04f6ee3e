"""SipHash-1-3 and 2-4 (Aumasson, Bernstein 2012) over whole 8-byte words, for tables an attacker must not aim at."""

from libc.stdint cimport uint8_t, uint64_t

cdef struct siphash_key:
    uint64_t k0
    uint64_t k1

cdef uint64_t siphash13(const siphash_key *key, const uint64_t *words, int count) noexcept nogil
cdef uint64_t siphash24(const siphash_key *key, const uint64_t *words, int count) noexcept nogil
