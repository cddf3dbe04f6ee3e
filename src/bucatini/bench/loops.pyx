"""The packet path's inner pieces, each in a loop: `f(loops)` returns the seconds that `loops` calls took (pyperf)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from bucatini.datapath.build cimport build_tcp
from bucatini.datapath.checksum cimport checksum_add, checksum_fold
from bucatini.datapath.flow cimport FLOW_TCP, FlowKey, FlowTable, flow_find, flow_new, flow_table_free, flow_table_init
from bucatini.datapath.headers cimport TH_ACK, TH_PSH, vnet_hdr
from bucatini.datapath.link cimport Frame
from bucatini.datapath.parse cimport KIND_TCP, FrameRef, parse_frame
from bucatini.datapath.syscalls cimport CLOCK_MONOTONIC, clock_gettime, timespec
from bucatini.datapath.tcp cimport (
    TCP_ESTABLISHED, TcpActions, TcpConn, TcpSegment, tcp_connected, tcp_from_guest, tcp_held, tcp_segment,
)
from bucatini.datapath.worker cimport Worker


cdef enum:
    FLOWS = 10000
    BIGGEST = 65536


cdef inline double seconds() noexcept nogil:
    cdef timespec value
    clock_gettime(CLOCK_MONOTONIC, &value)
    return value.tv_sec + value.tv_nsec * 1e-9


def checksum(uint64_t loops, uint32_t size):
    """The Internet checksum of `size` bytes, at most 65536."""
    cdef uint8_t[BIGGEST] data
    cdef uint64_t _i
    cdef uint16_t found = 0
    cdef double begin
    if size > BIGGEST:
        raise ValueError("size")
    memset(data, 0x5A, size)
    with nogil:
        begin = seconds()
        for _i in range(loops):
            found ^= checksum_fold(checksum_add(found, data, size))
        begin = seconds() - begin
    return begin


def flow_lookup(uint64_t loops):
    """The flow of a key among 10,000, another one each time."""
    cdef FlowTable table
    cdef FlowKey key
    cdef uint8_t[32] secret
    cdef uint64_t i, found = 0
    cdef double begin
    memset(secret, 7, 32)
    memset(&key, 0, sizeof(key))
    if flow_table_init(&table, FLOWS, secret) < 0:
        raise MemoryError
    for i in range(FLOWS):
        key.gport = <uint16_t> i
        flow_new(&table, &key, FLOW_TCP)
    with nogil:
        begin = seconds()
        for i in range(loops):
            key.gport = <uint16_t> (i * 7919 % FLOWS)
            found += flow_find(&table, &key) != NULL
        begin = seconds() - begin
    flow_table_free(&table)
    if found != loops:
        raise RuntimeError("a flow was not found")
    return begin


def parse(uint64_t loops, bytes frame, bint offloaded):
    """Checking of a TCP frame; not `offloaded`: with its checksum."""
    cdef Frame received
    cdef FrameRef ref
    cdef uint64_t _i, good = 0
    cdef double begin
    received.data = <uint8_t *> <char *> frame
    received.length = <uint32_t> len(frame)
    memset(&received.vnet, 0, sizeof(vnet_hdr))
    received.vnet.flags = offloaded
    with nogil:
        begin = seconds()
        for _i in range(loops):
            good += parse_frame(&received, &ref) == KIND_TCP
        begin = seconds() - begin
    if good != loops:
        raise RuntimeError("the frame is not a TCP segment")
    return begin


def build(uint64_t loops):
    """The headers of a TCP segment to the guest."""
    cdef Worker w
    cdef FlowKey key
    cdef vnet_hdr vnet
    cdef uint8_t[256] out
    cdef uint64_t i, size = 0
    cdef double begin
    memset(&w, 0, sizeof(w))
    memset(&key, 0, sizeof(key))
    key.guest.b[10] = key.guest.b[11] = 0xFF  # an IPv4 address
    memcpy(&key.remote, &key.guest, sizeof(key.guest))
    with nogil:
        begin = seconds()
        for i in range(loops):
            size += build_tcp(&w, out, &key, <uint32_t> i, 1, 65535, TH_ACK | TH_PSH, 0, 1448, 1460, &vnet)
        begin = seconds() - begin
    return begin


def machine(uint64_t loops):
    """A segment with 1000 bytes through the TCP machine, all of it accepted by the host."""
    cdef TcpConn c
    cdef TcpSegment s
    cdef TcpActions a
    cdef uint64_t i
    cdef double begin
    memset(&s, 0, sizeof(s))
    s.seq = 1000
    s.window = 65535
    tcp_from_guest(&c, &s, 1, 1460, 1048576, 1)
    tcp_connected(&c, 2, &a)
    s.seq = 1001
    s.ack = 2
    s.flags = TH_ACK
    tcp_segment(&c, &s, 3, &a)
    if c.state != TCP_ESTABLISHED:
        raise RuntimeError("the connection is not established")
    s.length = 1000
    with nogil:
        begin = seconds()
        for i in range(loops):
            c.rcv_adv = c.rcv_nxt + 65535
            tcp_segment(&c, &s, i, &a)
            tcp_held(&c, 0, &a)
            s.seq += 1000
        begin = seconds() - begin
    if c.rcv_nxt != s.seq:
        raise RuntimeError("data was not accepted")
    return begin
