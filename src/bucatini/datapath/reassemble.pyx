"""Reassembly of the guest's fragments, within a fixed budget (RFC 791 §3.2, RFC 815, RFC 8200 §4.5).

Data. `PACKETS` buffers of 64 KiB and a map of the 8-byte blocks each has received, mapped once. A packet is found
by its addresses, identification and protocol. When all buffers are in use the oldest packet gives way
(`drop_fragment_budget`).

Overlaps discard the whole packet (RFC 5722 §4, and for IPv4 likewise): nobody honest makes them. So does data behind
the last fragment. A fragment that would end beyond 65535 bytes, or one other than the last whose length is no multiple
of 8, is left out. A packet that is not complete after `TIMEOUT4_NS` or `TIMEOUT6_NS` is forgotten. Departure: no
"time exceeded" is sent about it.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from bucatini.datapath.checksum cimport checksum_add, checksum_fold
from bucatini.datapath.counters cimport C_DROP_FRAGMENT, C_DROP_FRAGMENT_BUDGET, C_FRAGMENTS_IN, C_REASSEMBLED
from bucatini.datapath.headers cimport (
    IPV4_HLEN, IPV6_HLEN, addr_equal, addr_t, htonl, htons, ipv4_hdr, ipv6_hdr,
)
from bucatini.datapath.parse cimport parse_packet
from bucatini.datapath.syscalls cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap,
)
from bucatini.datapath.worker cimport count


cdef extern from "<errno.h>" nogil:
    int ENOMEM


cdef enum:
    PACKETS = 32
    DATA_MAX = 65535
    BLOCKS = 8192  # of 8 bytes

cdef uint64_t SECOND = 1000000000
cdef uint64_t TIMEOUT4_NS = 30 * SECOND  # RFC 1122 §3.3.2 asks for 60 to 120 s; RFC 791 §3.2 begins with 15
cdef uint64_t TIMEOUT6_NS = 60 * SECOND  # RFC 8200 §4.5

cdef struct Packet:
    bint used
    addr_t src
    addr_t dst
    uint32_t id
    uint8_t protocol
    uint8_t version
    uint8_t tos
    uint8_t ttl
    uint64_t born  # ns
    uint32_t received  # bytes
    uint32_t end  # of the data that is furthest behind
    uint32_t total  # bytes, 0: the last fragment is not here yet
    uint64_t blocks[128]  # bit map of BLOCKS
    uint8_t bytes[IPV6_HLEN + DATA_MAX + 9]  # the data, behind room for an IP header

cdef struct Reassembly:
    Packet packets[PACKETS]
    Packet *done  # complete and handed out: free at the next call


cdef inline uint8_t *data_of(Packet *p) noexcept nogil:
    return p.bytes + IPV6_HLEN


cdef int reassemble_init(Worker *w) noexcept nogil:
    cdef void *memory = mmap(NULL, sizeof(Reassembly), PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if memory == MAP_FAILED:
        return -ENOMEM
    w.reassembly = memory
    return 0


cdef void reassemble_free(Worker *w) noexcept nogil:
    munmap(w.reassembly, sizeof(Reassembly))


cdef Packet *packet_of(Worker *w, const FrameRef *ref) noexcept nogil:
    """Return the packet that a fragment belongs to, a fresh one if there is none."""
    cdef Reassembly *r = <Reassembly *> w.reassembly
    cdef Packet *p
    cdef Packet *free_ = NULL
    cdef Packet *oldest = &r.packets[0]
    cdef int i
    for i in range(PACKETS):
        p = &r.packets[i]
        if p.used and w.now - p.born > (TIMEOUT4_NS if p.version == 4 else TIMEOUT6_NS):
            p.used = False
            count(w, C_DROP_FRAGMENT_BUDGET)
        if not p.used:
            free_ = p
        elif (p.id == ref.fragment_id and p.version == ref.version and p.protocol == ref.fragment_protocol
              and addr_equal(&p.src, &ref.src) and addr_equal(&p.dst, &ref.dst)):
            return p
        elif p.born < oldest.born or not oldest.used:
            oldest = p
    if free_ == NULL:
        free_ = oldest
        count(w, C_DROP_FRAGMENT_BUDGET)
    p = free_
    p.used = True
    memcpy(&p.src, &ref.src, sizeof(addr_t))
    memcpy(&p.dst, &ref.dst, sizeof(addr_t))
    p.id = ref.fragment_id
    p.protocol = ref.fragment_protocol
    p.version = ref.version
    p.tos = ref.tos
    p.ttl = ref.ttl
    p.born = w.now
    p.received = 0
    p.end = 0
    p.total = 0
    memset(p.blocks, 0, sizeof(p.blocks))
    return p


cdef bint mark(Packet *p, uint32_t first, uint32_t blocks) noexcept nogil:
    """Mark blocks as received; whether none of them was."""
    cdef uint32_t i
    for i in range(first, first + blocks):
        if p.blocks[i >> 6] >> (i & 63) & 1:
            return False
        p.blocks[i >> 6] |= <uint64_t> 1 << (i & 63)
    return True


cdef uint8_t *put_header(Packet *p) noexcept nogil:
    """Write the IP header of the whole packet in front of its data; returns where it begins."""
    cdef ipv4_hdr *ip4
    cdef ipv6_hdr *ip6
    if p.version == 4:
        ip4 = <ipv4_hdr *> (data_of(p) - IPV4_HLEN)
        memset(ip4, 0, IPV4_HLEN)
        ip4.version_ihl = 0x45
        ip4.tos = p.tos
        ip4.length_be = htons(<uint16_t> (IPV4_HLEN + p.total))
        ip4.ttl = p.ttl
        ip4.protocol = p.protocol
        ip4.src_be = p.src.w[3]
        ip4.dst_be = p.dst.w[3]
        ip4.checksum_be = ~checksum_fold(checksum_add(0, <uint8_t *> ip4, IPV4_HLEN))
        return <uint8_t *> ip4
    ip6 = <ipv6_hdr *> p.bytes
    ip6.version_class_flow_be = htonl(<uint32_t> 0x60000000 | (<uint32_t> p.tos << 20))
    ip6.payload_length_be = htons(<uint16_t> p.total)
    ip6.next_header = p.protocol
    ip6.hop_limit = p.ttl
    memcpy(ip6.src, &p.src, 16)
    memcpy(ip6.dst, &p.dst, 16)
    return <uint8_t *> ip6


cdef int reassemble(Worker *w, FrameRef *ref) noexcept nogil:
    cdef Reassembly *r = <Reassembly *> w.reassembly
    cdef uint32_t offset = ref.fragment_offset, size = ref.fragment_length
    cdef uint32_t header = IPV4_HLEN if ref.version == 4 else IPV6_HLEN
    cdef uint32_t limit = DATA_MAX - (IPV4_HLEN if ref.version == 4 else 0)
    cdef Packet *p
    if r.done != NULL:
        r.done.used = False
        r.done = NULL
    if size == 0 or offset + size > limit or (ref.fragment_more and size & 7):
        return -C_DROP_FRAGMENT
    p = packet_of(w, ref)
    if (not mark(p, offset // 8, (size + 7) // 8) or (p.total and (offset + size > p.total or not ref.fragment_more))
            or (not ref.fragment_more and p.end > offset)):
        p.used = False
        return -C_DROP_FRAGMENT
    memcpy(data_of(p) + offset, ref.fragment_data, size)
    p.received += size
    if offset + size > p.end:
        p.end = offset + size
    if not ref.fragment_more:
        p.total = offset + size
    if p.total == 0 or p.received != p.total:
        return -C_FRAGMENTS_IN
    count(w, C_REASSEMBLED)
    r.done = p
    return parse_packet(put_header(p), header + p.total, p.version, ref)
