"""Fuzz targets of the packet path, compiled: 10 million inputs in minutes, every copy of the size it has to be.

Each takes bytes and raises AssertionError with what does not hold. The TCP model is a module of its own
(`fuzz_tcp`). Memory errors are the sanitizers' business: input lies in blocks of its own length, and all that a
`FrameRef` points at is read.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from bucatini.datapath.checksum cimport checksum_add, checksum_fold, checksum_pseudo
from bucatini.datapath.counters cimport (
    C_DROP_FRAGMENT, C_DROP_ICMP_TYPE, C_DROP_RUNT, C_FRAGMENTS_IN, C_REASSEMBLED, Counters,
)
from bucatini.datapath.headers cimport (
    FRAME_MAX, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, addr_from_v4, addr_is_broadcast, addr_is_loopback,
    addr_is_multicast, addr_t, be16, be32,
)
from bucatini.datapath.link cimport Frame, Link
from bucatini.datapath.link_stream cimport stream_attach, stream_open, stream_rest
from bucatini.datapath.parse cimport KIND_FRAGMENT, KIND_SLOW, KIND_TCP, KIND_UDP, FrameRef, parse_frame
from bucatini.datapath.reassemble cimport reassemble, reassemble_init
from bucatini.datapath.syscalls cimport MSG_DONTWAIT, recv, send, ssize_t
from bucatini.datapath.tcp cimport TF_SACK, TF_TIMESTAMPS, TF_WINDOW_SCALING, TcpConn
from bucatini.datapath.tcp_options cimport (
    BLOCKS_MAX, TCP_OPTIONS_MAX, SegmentOptions, tcp_options, tcp_read_options, tcp_read_syn, tcp_syn_options,
)
from bucatini.datapath.worker cimport Worker


cdef extern from "<errno.h>" nogil:
    int EPROTO

import socket

cdef uint64_t sink = 0  # so that what is read is read


cdef check(const char *wrong):
    if wrong != NULL:
        raise AssertionError((<bytes> wrong).decode())


cdef uint8_t *copied(const uint8_t *data, size_t size) noexcept nogil:
    """A block of exactly this size, to be freed."""
    cdef uint8_t *copy = <uint8_t *> malloc(size)
    if size:
        memcpy(copy, data, size)
    return copy


# Frames


cdef void put_checksum(uint8_t *at, uint64_t sum) noexcept nogil:
    cdef uint16_t folded = ~checksum_fold(sum)
    memcpy(at, &folded, 2)


cdef void complete(uint8_t *frame, uint32_t size) noexcept nogil:
    """Make the checksums right that can be, so that a mutation gets beyond them."""
    cdef addr_t src, dst
    cdef uint32_t header, length, at
    cdef uint32_t word
    cdef uint8_t protocol
    if size < 34:
        return
    if be16(frame + 12) == 0x0800:
        header = (frame[14] & 15) * 4
        if header < 20 or 14 + header > size:
            return
        memset(frame + 24, 0, 2)
        put_checksum(frame + 24, checksum_add(0, frame + 14, header))
        if be16(frame + 16) < header or 14 + be16(frame + 16) > size:
            return
        length = be16(frame + 16) - header
        protocol = frame[23]
        memcpy(&word, frame + 26, 4)
        addr_from_v4(&src, word)
        memcpy(&word, frame + 30, 4)
        addr_from_v4(&dst, word)
    elif be16(frame + 12) == 0x86DD and size >= 54 and 54 + be16(frame + 18) <= size:
        header = 40
        length = be16(frame + 18)
        protocol = frame[20]
        memcpy(&src, frame + 22, 16)
        memcpy(&dst, frame + 38, 16)
    else:
        return
    if protocol == PROTO_TCP:
        at = 16
    elif protocol == PROTO_UDP:
        at = 6
    elif protocol == PROTO_ICMP or protocol == PROTO_ICMPV6:
        at = 2
    else:
        return
    frame += 14 + header
    if length < at + 2:
        return
    if protocol == PROTO_UDP and 8 <= be16(frame + 4) < length:
        length = be16(frame + 4)
    memset(frame + at, 0, 2)
    put_checksum(frame + at, checksum_add(0 if protocol == PROTO_ICMP
                                          else checksum_pseudo(&src, &dst, protocol, length), frame, length))


cdef inline bint within(const uint8_t *p, uint32_t length, const uint8_t *start, const uint8_t *end) noexcept nogil:
    """Whether these bytes lie there; they are read."""
    global sink
    if p < start or p > end or length > <size_t> (end - p):
        return False
    sink += checksum_add(0, p, length)
    return True


cdef const char *check_ref(int verdict, FrameRef *ref, uint8_t *data, uint32_t size) noexcept nogil:
    cdef uint8_t *end
    if verdict < 0:
        if -verdict < C_DROP_RUNT or -verdict > C_DROP_ICMP_TYPE:
            return b"refused without a counter of its own"
        return NULL
    if verdict != ref.kind or verdict > KIND_FRAGMENT:
        return b"kind"
    if ref.version == 0:
        if verdict != KIND_SLOW:
            return b"a packet of no version"
        return NULL
    if not within(ref.l3, ref.l3_length, data, data + size):
        return b"the packet is not in the frame"
    end = ref.l3 + ref.l3_length
    if not within(ref.l4, ref.l4_length, ref.l3 + (20 if ref.version == 4 else 40), end):
        return b"what is in the packet is not"
    if addr_is_multicast(&ref.src) or addr_is_loopback(&ref.src) or addr_is_broadcast(&ref.src):
        return b"a source that cannot be"
    if verdict == KIND_FRAGMENT:
        if not within(ref.fragment_data, ref.fragment_length, ref.l4, end):
            return b"fragment"
        return NULL
    end = ref.l4 + ref.l4_length
    if not within(ref.payload, ref.payload_length, ref.l4 + 8, end) or ref.payload + ref.payload_length != end:
        return b"payload"
    if verdict == KIND_TCP:
        if not within(ref.options, ref.options_length, ref.l4 + 20, ref.payload) or ref.options_length > 40:
            return b"options"
        if ref.options + ref.options_length != ref.payload:
            return b"a gap behind the options"
    if (verdict == KIND_TCP or verdict == KIND_UDP) and (ref.sport == 0 or ref.dport == 0):
        return b"port 0"
    return NULL


def frame(bytes data):
    """A byte of bits (1: checksums left to offload, 2: they are completed), GSO type and size; then the frame."""
    cdef const uint8_t *p = data
    cdef uint32_t size = len(data)
    cdef Frame received
    cdef FrameRef ref
    cdef const char *wrong
    if size < 4:
        return
    memset(&received, 0, sizeof(received))
    received.length = size - 4
    received.data = copied(p + 4, size - 4)
    received.vnet.flags = p[0] & 1
    received.vnet.gso_type = p[1]
    received.vnet.gso_size = p[2] << 8 | p[3]
    if p[0] & 2:
        complete(received.data, received.length)
    memset(&ref, 0xA5, sizeof(ref))  # what is not set shows
    wrong = check_ref(parse_frame(&received, &ref), &ref, received.data, received.length)
    free(received.data)
    check(wrong)


def completed(bytes data):
    """The frame with its checksums made right, as `frame` does."""
    cdef bytearray copy = bytearray(data)
    complete(copy, len(data))
    return bytes(copy)


# Fragments


cdef enum:
    KEYS = 64
    PACKETS = 32  # that are kept at a time
    BLOCKS = 8192

cdef struct Packet:  # of the model
    bint used
    uint32_t received
    uint32_t end  # of what is furthest behind
    uint32_t total
    uint8_t blocks[BLOCKS]

cdef Worker worker
cdef Counters counters
cdef Packet packets[KEYS]
cdef uint8_t content[3 * 65536]

memset(&worker, 0, sizeof(worker))
memset(&counters, 0, sizeof(counters))
worker.counters = &counters
worker.now = 1000000000
if reassemble_init(&worker) < 0:
    raise MemoryError
for _i in range(3 * 65536):
    content[_i] = (_i * 2654435761 >> 13) & 0xFF


cdef inline uint8_t *expected(uint32_t key) noexcept nogil:
    """A packet's bytes; those of one are nowhere in another. UDP has a header without a checksum in each place."""
    return content + 512 * key


cdef const char *one_fragment(uint32_t key, uint32_t offset, uint32_t size, bint more, bint *loose) noexcept nogil:
    cdef FrameRef ref
    cdef Packet *m = &packets[key]
    cdef uint64_t before = counters[C_REASSEMBLED]
    cdef uint32_t i, limit = 65515 if key & 1 == 0 else 65535, total = 0, live = 0
    cdef bint whole = False, keep = False
    cdef uint8_t *data
    cdef const uint8_t *header = b"\x12\x34\x00\x35\x00\x08\x00\x00"
    cdef int verdict
    memset(&ref, 0, sizeof(ref))
    ref.version = 6 if key & 1 else 4
    ref.src.q[1] = ref.dst.q[1] = key >> 4
    if ref.version == 4:
        addr_from_v4(&ref.src, 0x010200C0)
        addr_from_v4(&ref.dst, 0x02640AC6 + (key >> 4))
    else:
        ref.src.b[0] = ref.dst.b[0] = 0x20
    ref.fragment_id = key & 15
    ref.fragment_protocol = PROTO_UDP if key & 2 else 253
    ref.fragment_offset = offset
    ref.fragment_more = more
    if size > limit:
        size = limit
    ref.fragment_length = size
    data = copied(expected(key) + offset, size)
    if key & 2 and offset == 0 and size >= 8:
        memcpy(data, header, 8)
    ref.fragment_data = data
    # What is to come of it
    if size and offset + size <= limit and not (more and size & 7):
        if not m.used:
            for i in range(KEYS):
                live += packets[i].used
            if live >= PACKETS:
                loose[0] = True  # which one gives way is not said
            memset(m, 0, sizeof(Packet))
            m.used = True
        keep = not (m.total and (offset + size > m.total or not more)) and (more or m.end <= offset)
        for i in range(offset // 8, (offset + size + 7) // 8):
            keep = keep and not m.blocks[i]
            m.blocks[i] = 1
        m.received += size
        m.end = offset + size if offset + size > m.end else m.end
        if not more:
            m.total = offset + size
        whole = keep and m.total and m.received == m.total
        total = m.total
        if whole or not keep:
            m.used = False
    verdict = reassemble(&worker, &ref)
    free(data)
    if counters[C_REASSEMBLED] != before:
        # Whatever went before: nothing but what was sent is in it
        if ref.version != (6 if key & 1 else 4):
            return b"version"
        i = 8 if key & 2 and memcmp(ref.l4, header, 8) == 0 else 0
        size = <uint32_t> (ref.l3 + ref.l3_length - ref.l4)
        if memcmp(ref.l4 + i, expected(key) + i, size - i if size > i else 0):
            return b"a byte that was not sent"
        if not loose[0] and (not whole or size != total):
            return b"put together too early"
        if verdict == KIND_FRAGMENT:
            return b"a fragment made of fragments"
    elif not loose[0]:
        if whole:
            return b"not put together"
        if verdict != (-C_FRAGMENTS_IN if keep else -C_DROP_FRAGMENT):
            return b"verdict"
    return NULL


def fragments(bytes data):
    """Three bytes a fragment: which packet (6 bits), more, wide; offset; size, in blocks of 256 bytes where wide."""
    cdef const uint8_t *p = data
    cdef uint32_t size = len(data), at = 0
    cdef const char *wrong = NULL
    cdef bint loose = False
    cdef uint32_t i
    worker.now += 61000000000  # all that was there is too old
    for i in range(KEYS):
        packets[i].used = False
    with nogil:
        while at + 3 <= size and at < 3 * 64 and wrong == NULL:
            if p[at] & 0x80:
                wrong = one_fragment(p[at] & 63, p[at + 1] * 256, p[at + 2] * 256, p[at] & 0x40, &loose)
            else:
                wrong = one_fragment(p[at] & 63, p[at + 1] * 8, p[at + 2], p[at] & 0x40, &loose)
            at += 3
    check(wrong)


# Options of TCP


cdef const char *check_options(const uint8_t *data, uint32_t size) noexcept nogil:
    cdef TcpConn c, d
    cdef SegmentOptions o, again
    cdef uint32_t at, mss = 536, ts = 0, n
    cdef int scale = -1, blocks = 0, i
    cdef bint sack = False, stamped = False
    cdef uint8_t *p
    cdef uint8_t[TCP_OPTIONS_MAX] out
    if size < 4:
        return NULL
    memset(&c, 0, sizeof(c))
    c.bound = 1 << 20
    c.our_mss = <uint16_t> (536 + (data[0] << 8 | data[1]) % 65000)
    c.iss = <uint32_t> data[2] << 24
    n = size - 4 if size < 4 + TCP_OPTIONS_MAX else TCP_OPTIONS_MAX
    p = copied(data + 4, n)
    tcp_read_syn(&c, p, n)
    tcp_read_options(&c, p, n, &o)
    # Read another way
    at = 0
    while at < n and p[at] != 0:
        if p[at] == 1:
            at += 1
            continue
        if n - at < 2 or p[at + 1] < 2 or p[at + 1] > n - at:
            break
        if p[at] == 2 and p[at + 1] == 4:
            mss = be16(p + at + 2)
        elif p[at] == 3 and p[at + 1] == 3:
            scale = p[at + 2]
        elif p[at] == 4 and p[at + 1] == 2:
            sack = True
        elif p[at] == 8 and p[at + 1] == 10:
            stamped = True
            ts = be32(p + at + 2)
        at += p[at + 1]
    free(p)
    mss = mss if mss > 88 else 88
    mss = mss if mss < c.our_mss else c.our_mss
    if c.mss != mss - (12 if stamped else 0):
        return b"MSS"
    if c.snd_wscale > 14 or (scale >= 0) != ((c.flags & TF_WINDOW_SCALING) != 0) or c.snd_wscale != (
            0 if scale < 0 else scale if scale < 14 else 14):
        return b"window scale"
    if scale < 0 and c.bound > 65535:
        return b"more promised than the field holds"
    if sack != ((c.flags & TF_SACK) != 0) or stamped != ((c.flags & TF_TIMESTAMPS) != 0):
        return b"what is in use"
    if stamped and (c.ts_recent != ts or not o.timestamp or o.value != ts):
        return b"timestamp"
    if o.blocks < 0 or o.blocks > BLOCKS_MAX or (o.blocks and not sack):
        return b"blocks"
    # Written and read again
    d = c
    n = tcp_syn_options(&c, data[3], out)
    if n > TCP_OPTIONS_MAX or n & 3:
        return b"size of our SYN's"
    tcp_read_syn(&d, out, n)
    if d.flags != c.flags or d.mss != c.our_mss - (12 if stamped else 0):
        return b"our own SYN is not understood"
    c.kept.count = 0
    for i in range(o.blocks):
        if <int> (o.end[i] - o.start[i]) > 0 and (c.kept.count == 0
                                                  or <int> (o.start[i] - c.kept.end[c.kept.count - 1]) > 0):
            c.kept.start[c.kept.count] = o.start[i]
            c.kept.end[c.kept.count] = o.end[i]
            c.kept.count += 1
    c.kept.latest = data[3] % c.kept.count if c.kept.count else 0
    n = tcp_options(&c, True, data[3], out)
    if n > TCP_OPTIONS_MAX or n & 3:
        return b"size"
    tcp_read_options(&c, out, n, &again)
    blocks = c.kept.count if not stamped or c.kept.count < 3 else 3
    if again.timestamp != stamped or again.blocks != blocks:
        return b"our own options are not understood"
    if blocks and (again.start[0] != c.kept.start[c.kept.latest] or again.end[0] != c.kept.end[c.kept.latest]):
        return b"the latest is not the first"
    return NULL


def options(bytes data):
    """Four bytes for the connection, then options."""
    check(check_options(data, len(data)))


# Frames out of a stream


cdef enum:
    STREAM_MAX = 100000

cdef Link link
cdef Counters link_counters
cdef uint8_t stream_bytes[STREAM_MAX]

memset(&link_counters, 0, sizeof(link_counters))
if stream_open(&link, &link_counters) < 0:
    raise MemoryError
_near, _far = socket.socketpair()
for _end in (_near, _far):
    _end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)
    _end.setblocking(False)
cdef int near_fd = _near.fileno(), far_fd = _far.fileno()


cdef uint32_t unrolled(const uint8_t *p, uint32_t size) noexcept nogil:
    """Write what is to be sent: runs of the input's own bytes, and frames with a length in front; returns how much."""
    cdef uint32_t at = 0, used = 0, n
    cdef bint great = False
    while at < size:
        if p[at] < 0x80:  # as they are
            n = p[at] & 0x3F
            at += 1
            if n > size - at:
                n = size - at
            if used + n > STREAM_MAX:
                return used
            memcpy(stream_bytes + used, p + at, n)
            used += n
            at += n
        else:  # a frame; of the size given, or near the greatest
            n = (p[at] & 0x3F) << 8 | (p[at + 1] if at + 1 < size else 0)
            if p[at] & 0x40:
                n = FRAME_MAX - 8 + (n & 15)
            at += 2
            if used + 4 + n > STREAM_MAX or n > FRAME_MAX + 7:
                return used
            stream_bytes[used] = 0
            stream_bytes[used + 1] = n >> 16
            stream_bytes[used + 2] = n >> 8 & 0xFF
            stream_bytes[used + 3] = n & 0xFF
            if great and n > 2048:  # one is enough, and takes as long as many small ones
                return used
            great = great or n > 2048
            memcpy(stream_bytes + used + 4, content + (used & 15), n)
            used += 4 + n
    return used


cdef const char *run_stream(const uint8_t *p, uint32_t size) noexcept nogil:
    cdef Frame frames[32]
    cdef uint32_t total, sent = 0, at = 0, n, step
    cdef ssize_t written
    cdef int got = 0, i
    cdef uint32_t cuts = p[0], limit = 1 + (p[1] & 31)
    total = unrolled(p + 2, size - 2)
    stream_attach(&link, near_fd)
    while True:
        # In pieces of sizes that the input chooses
        step = total - sent
        if cuts & 0x80:
            step = 1 + (cuts * 2654435761U >> 16) % (1 << (cuts & 15))
            cuts = 0x80 | ((cuts * 5 + 3) & 0x7F)
        if step > total - sent:
            step = total - sent
        if step:
            written = send(far_fd, stream_bytes + sent, step, MSG_DONTWAIT)
            if written > 0:
                sent += <uint32_t> written
        got = link.receive(&link, frames, limit)
        if got < 0:
            break
        for i in range(got):
            if at + 4 > sent:
                return b"a frame out of nothing"
            n = be32(stream_bytes + at)
            if n < 14 or n > FRAME_MAX or at + 4 + n > sent:
                return b"a frame that is not there"
            if frames[i].length != n or memcmp(frames[i].data, stream_bytes + at + 4, n):
                return b"another frame than was sent"
            at += 4 + n
        if got == 0 and sent == total:
            break
    if got == 0:  # nothing whole is left
        if at + 4 <= total:
            n = be32(stream_bytes + at)
            if n < 14 or n > FRAME_MAX:
                return b"a length that cannot be was overlooked"
            if at + 4 + n <= total:
                return b"a whole frame was left behind"
        if link.more:
            return b"there is no more"
    else:
        if at + 4 > total or got != -EPROTO:
            return b"failed without a reason"
        n = be32(stream_bytes + at)
        if 14 <= n <= FRAME_MAX or stream_rest(&link, EPROTO) != n:
            return b"failed at a length that can be"
    stream_attach(&link, -1)
    while recv(near_fd, stream_bytes, STREAM_MAX, MSG_DONTWAIT) > 0:
        pass
    return NULL


def stream(bytes data):
    """A byte for the pieces it comes in, one for how many frames are asked for; then what `unrolled` makes a stream."""
    if len(data) >= 2:
        check(run_stream(data, len(data)))
