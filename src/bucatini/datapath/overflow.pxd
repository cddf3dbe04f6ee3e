"""Interface of the overflow (`overflow.pyx`)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from bucatini.datapath.flow cimport Flow, TcpFlow

cdef enum:
    CHUNK = 32768  # bytes
    CHUNKS = 8192  # 256 MiB of address space for all flows

cdef struct Chunk:
    uint32_t next  # of its chain, or of the free list; index + 1
    uint32_t seq  # number of its first byte, where it is out of order
    uint16_t first  # bytes in front that are gone already
    uint16_t end  # bytes in use, from the start of the block

cdef struct Chunks:
    uint8_t *memory
    Chunk chunks[CHUNKS]
    uint32_t free
    uint32_t fresh  # chunks never used yet start here
    uint32_t available

cdef int overflow_init(Chunks *c) noexcept nogil
cdef void overflow_free(Chunks *c) noexcept nogil
# Gives back what a flow keeps.
cdef void overflow_forget(Chunks *c, TcpFlow *t) noexcept nogil
# Gives back all that it holds and keeps.
cdef void overflow_drop(Chunks *c, TcpFlow *t) noexcept nogil
# Appends as much of `size` bytes as the pool takes; returns how many.
cdef uint32_t overflow_add(Chunks *c, TcpFlow *t, const uint8_t *data, uint32_t size) noexcept nogil
# Hands what is held to the socket and lowers `held`. 0, or -errno of a socket that is done for.
cdef int overflow_drain(Chunks *c, Flow *flow) noexcept nogil
# Keeps bytes that came out of order, none of which is kept yet; returns how many from the first on.
cdef uint32_t overflow_keep(Chunks *c, TcpFlow *t, uint32_t seq, const uint8_t *data, uint32_t size) noexcept nogil
# Moves what is kept below `end` to what is held; of it, what is below `start` is dropped.
cdef void overflow_fetch(Chunks *c, TcpFlow *t, uint32_t start, uint32_t end) noexcept nogil
