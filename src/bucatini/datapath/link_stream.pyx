"""A stream socket as the guest's link: what `-netdev stream` of QEMU speaks, each frame behind its length.

Purpose. The length is 32 bits in network byte order. One recv(2) takes many frames, which are parsed where they lie;
the frames of a whole turn leave with one send(2) (`stream_flush`). The other end knows nothing of offloads: superframes
are cut into segments here, in their place in the buffer, and checksums completed on the way.

Data. Two buffers, mapped once. Of what is to be sent, `[sent, used)` waits for the socket. A stream cannot leave out
half a frame, so what was begun is kept. Where `HIGH` bytes wait, the link is `blocked`: TCP leaves its data in the
host's sockets, where it slows their senders down; other frames still find `SPARE` bytes of room, and are lost beyond
(`drop_link_full`).

States. Down: no client (fd -1). Everything is lost (`link_down`), and the link is blocked, so that TCP keeps its data
for when a client comes back. Up, from `stream_attach` with a client to `stream_attach` without one.

Failure. A length that no frame can have is the client's end: where the next frame begins is unknown. `receive` returns
-EPROTO for it, -ENOTCONN at the end of the stream, -errno for an error of the socket; `stream_rest` says more.
"""

# syscalls passt: recvfrom sendto

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from bucatini.datapath.checksum cimport checksum_add, checksum_fold
from bucatini.datapath.counters cimport (
    C_BYTES_IN, C_BYTES_OUT, C_DROP_LINK_ERROR, C_DROP_LINK_FULL, C_FRAMES_IN, C_FRAMES_OUT, C_LINK_DOWN,
)
from bucatini.datapath.headers cimport (
    ETH_HLEN, ETH_MIN, FRAME_MAX, IPV4_HLEN, PROTO_TCP, PROTO_UDP, TH_FIN, TH_PSH, VNET_GSO_NONE,
    VNET_GSO_UDP_L4, VNET_NEEDS_CSUM, be32, htonl, htons, ipv4_hdr, ipv6_hdr, ntohl, tcp_hdr, udp_hdr,
    vnet_hdr,
)
from bucatini.datapath.link cimport LINK_ROOM, LINK_TSO, LINK_USO, Frame
from bucatini.datapath.syscalls cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, MSG_DONTWAIT, MSG_NOSIGNAL, PROT_READ, PROT_WRITE, iovec,
    mmap, munmap, recv, send,
)


cdef extern from "<errno.h>" nogil:
    int errno, EAGAIN, EINTR, EIO, ENOMEM, ENOTCONN, EPROTO


cdef enum:
    UDP_CHECKSUM = 6  # offset of the field, as `build_udp` names it
    PREFIX = 4  # bytes of a length
    RECEIVE = 1048576  # bytes; more than a frame, so that there is always progress
    ROOM = 196767  # 3 * LINK_ROOM: of a superframe that is cut, at the smallest of segments
    HIGH = 262144  # bytes that wait
    SPARE = 1048576  # bytes beyond, for what cannot wait
    SEND = 1507487  # HIGH + SPARE + ROOM
    EAGER = 262144  # bytes that are offered to the socket before the turn is over

cdef struct StreamState:
    uint8_t *receive  # RECEIVE bytes
    uint32_t begin  # of what is not yet delivered
    uint32_t end
    uint8_t *send  # SEND bytes
    uint32_t sent
    uint32_t used
    uint8_t *lost  # ROOM bytes, where frames go that there is no room for


cdef inline StreamState *stream(Link *link) noexcept nogil:
    return <StreamState *> link.state


# From the guest


cdef inline bint is_whole(const StreamState *s) noexcept nogil:
    """Whether there is something to say about what comes next: a whole frame, or a length that cannot be."""
    cdef uint32_t length
    if s.end - s.begin < PREFIX:
        return False
    length = be32(s.receive + s.begin)
    return length < ETH_HLEN or length > FRAME_MAX or s.end - s.begin - PREFIX >= length


cdef int take(Link *link, Frame *frames, int limit) noexcept nogil:
    """Take whole frames out of the buffer; returns how many, or -EPROTO when the first is none."""
    cdef StreamState *s = stream(link)
    cdef uint32_t length
    cdef int n = 0
    while n < limit and is_whole(s):
        length = be32(s.receive + s.begin)
        if length < ETH_HLEN or length > FRAME_MAX:
            if n == 0:
                return -EPROTO
            break
        frames[n].data = s.receive + s.begin + PREFIX
        frames[n].length = length
        memset(&frames[n].vnet, 0, sizeof(vnet_hdr))
        link.counters[0][C_BYTES_IN] += length
        s.begin += PREFIX + length
        n += 1
    link.counters[0][C_FRAMES_IN] += n
    link.more = is_whole(s)
    return n


cdef int stream_receive(Link *link, Frame *frames, int limit) noexcept nogil:
    cdef StreamState *s = stream(link)
    cdef ssize_t got
    cdef int n = take(link, frames, limit)
    if n != 0 or link.fd < 0:
        return n
    if s.begin:
        memmove(s.receive, s.receive + s.begin, s.end - s.begin)
        s.end -= s.begin
        s.begin = 0
    while True:
        got = recv(link.fd, s.receive + s.end, RECEIVE - s.end, MSG_DONTWAIT)
        if got > 0:
            s.end += <uint32_t> got
            return take(link, frames, limit)
        if got == 0:
            return -ENOTCONN
        if errno == EAGAIN:
            return 0
        if errno != EINTR:
            return -errno


cdef uint32_t stream_rest(const Link *link, int error) noexcept nogil:
    cdef StreamState *s = <StreamState *> link.state
    return be32(s.receive + s.begin) if error == EPROTO else s.end - s.begin


# To the guest


cdef inline uint8_t *place(Link *link) noexcept nogil:
    """Where the next frame goes, behind its length; `lost` when there is no room."""
    cdef StreamState *s = stream(link)
    if SEND - s.used < ROOM and s.sent:
        memmove(s.send, s.send + s.sent, s.used - s.sent)
        s.used -= s.sent
        s.sent = 0
    return (s.send + s.used if SEND - s.used >= ROOM else s.lost) + PREFIX


cdef uint8_t *stream_reserve(Link *link) noexcept nogil:
    return place(link)


cdef inline void finish_checksum(uint8_t *frame, uint32_t length, const vnet_hdr *vnet) noexcept nogil:
    """Complete a checksum whose field holds the sum of the pseudo-header."""
    cdef uint32_t start = vnet.csum_start
    cdef uint16_t sum
    sum = ~checksum_fold(checksum_add(0, frame + start, length - start))
    if sum == 0 and vnet.csum_offset == UDP_CHECKSUM:  # there zero means that there is none (RFC 768)
        sum = 0xFFFF
    memcpy(frame + start + vnet.csum_offset, &sum, 2)


cdef inline uint32_t put_length(uint8_t *frame, uint32_t length) noexcept nogil:
    """Pad a frame and write its length before it; returns how many bytes the two take."""
    cdef uint32_t length_be
    if length < ETH_MIN:
        memset(frame + length, 0, ETH_MIN - length)
        length = ETH_MIN
    length_be = htonl(length)
    memcpy(frame - PREFIX, &length_be, PREFIX)
    return PREFIX + length


cdef void finish_segment(uint8_t *frame, const vnet_hdr *vnet, uint32_t payload, uint32_t offset,
                         bint last) noexcept nogil:
    """Make headers that were those of a superframe right for `payload` bytes from `offset` on."""
    cdef uint32_t l4_length = vnet.hdr_len - vnet.csum_start + payload
    cdef uint8_t *l4 = frame + vnet.csum_start
    cdef ipv4_hdr *ip4 = <ipv4_hdr *> (frame + ETH_HLEN)
    cdef ipv6_hdr *ip6 = <ipv6_hdr *> (frame + ETH_HLEN)
    cdef tcp_hdr *tcp = <tcp_hdr *> l4
    cdef uint64_t sum
    cdef uint16_t folded
    cdef bint is_udp = vnet.gso_type == VNET_GSO_UDP_L4
    if ip4.version_ihl >> 4 == 4:
        ip4.length_be = htons(<uint16_t> (IPV4_HLEN + l4_length))
        ip4.checksum_be = 0
        ip4.checksum_be = ~checksum_fold(checksum_add(0, frame + ETH_HLEN, IPV4_HLEN))
        sum = checksum_add(0, <uint8_t *> &ip4.src_be, 8)
    else:
        ip6.payload_length_be = htons(<uint16_t> l4_length)
        sum = checksum_add(0, ip6.src, 32)
    sum += htons(PROTO_UDP if is_udp else PROTO_TCP)
    sum += htonl(l4_length)
    if is_udp:
        (<udp_hdr *> l4).length_be = htons(<uint16_t> l4_length)
    else:
        tcp.seq_be = htonl(ntohl(tcp.seq_be) + offset)
        if not last:
            tcp.flags &= ~(TH_FIN | TH_PSH)
    folded = checksum_fold(sum)
    memcpy(l4 + vnet.csum_offset, &folded, 2)
    finish_checksum(frame, vnet.hdr_len + payload, vnet)


cdef uint32_t cut(uint8_t *frame, uint32_t length, const vnet_hdr *vnet, uint32_t *count) noexcept nogil:
    """Cut a superframe into segments in its place, the last one first; returns the bytes they take, 0: no room.

    A segment lies behind all that is still to be moved, since headers and a length were added before it.
    """
    cdef uint32_t header = vnet.hdr_len, size = vnet.gso_size, payload = length - header
    cdef uint32_t n = (payload + size - 1) // size, i, part, total = 0
    cdef uint32_t stride = PREFIX + header + size if header + size > ETH_MIN else PREFIX + ETH_MIN
    cdef uint8_t *segment
    if n * stride > ROOM - PREFIX:
        return 0
    i = n
    while i > 0:
        i -= 1
        part = payload - i * size if i == n - 1 else size
        segment = frame + i * stride
        if i:
            memmove(segment + header, frame + header + i * size, part)
            memcpy(segment, frame, header)
        finish_segment(segment, vnet, part, i * size, i == n - 1)
        part = put_length(segment, header + part)
        if i == n - 1:
            total = i * stride + part
    count[0] = n
    return total


cdef int stream_commit(Link *link, uint32_t length, const vnet_hdr *vnet) noexcept nogil:
    cdef StreamState *s = stream(link)
    cdef uint8_t *frame = place(link)
    cdef uint32_t taken, frames = 1
    if link.fd < 0:
        link.counters[0][C_LINK_DOWN] += 1
        return -EIO
    if frame == s.lost + PREFIX:
        link.counters[0][C_DROP_LINK_FULL] += 1
        return -EAGAIN
    if vnet.gso_type != VNET_GSO_NONE and length > <uint32_t> vnet.hdr_len + vnet.gso_size:
        taken = cut(frame, length, vnet, &frames)
        if taken == 0:
            link.counters[0][C_DROP_LINK_ERROR] += 1
            return -EIO
    else:
        if vnet.flags & VNET_NEEDS_CSUM:
            finish_checksum(frame, length, vnet)
        taken = put_length(frame, length)
    s.used += taken
    link.counters[0][C_FRAMES_OUT] += frames
    link.counters[0][C_BYTES_OUT] += taken - PREFIX * frames
    if s.used - s.sent >= EAGER and not link.waiting:
        stream_flush(link)
    link.blocked = s.used - s.sent >= HIGH
    return 0


cdef int stream_send(Link *link, iovec *iov, int count, const vnet_hdr *vnet) noexcept nogil:
    cdef uint8_t *out = place(link)
    cdef uint32_t length = 0
    cdef int i
    for i in range(1, count):
        if length + iov[i].iov_len > LINK_ROOM:
            link.counters[0][C_DROP_LINK_ERROR] += 1
            return -EIO
        memcpy(out + length, iov[i].iov_base, iov[i].iov_len)
        length += <uint32_t> iov[i].iov_len
    return stream_commit(link, length, vnet)


cdef void stream_flush(Link *link) noexcept nogil:
    cdef StreamState *s = stream(link)
    cdef ssize_t n
    link.waiting = False
    while s.sent < s.used:
        n = send(link.fd, s.send + s.sent, s.used - s.sent, MSG_DONTWAIT | MSG_NOSIGNAL)
        if n >= 0:
            s.sent += <uint32_t> n
        elif errno == EAGAIN:
            link.waiting = True
            break
        elif errno != EINTR:
            s.sent = s.used  # `receive` will tell
            link.counters[0][C_DROP_LINK_ERROR] += 1
    if s.sent == s.used:
        s.sent = 0
        s.used = 0
    link.blocked = link.fd < 0 or s.used - s.sent >= HIGH


# A client comes and goes


cdef void stream_attach(Link *link, int fd) noexcept nogil:
    cdef StreamState *s = stream(link)
    link.fd = fd
    s.begin = 0
    s.end = 0
    s.sent = 0
    s.used = 0
    link.more = False
    link.waiting = False
    link.blocked = fd < 0


cdef int stream_open(Link *link, Counters *counters) noexcept nogil:
    cdef size_t size = RECEIVE + SEND + ROOM + sizeof(StreamState)
    cdef uint8_t *memory = <uint8_t *> mmap(NULL, size, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    cdef StreamState *s
    if memory == <uint8_t *> MAP_FAILED:
        return -ENOMEM
    # The state first: it is aligned, and the buffers need not be
    s = <StreamState *> memory
    s.receive = memory + sizeof(StreamState)
    s.send = s.receive + RECEIVE
    s.lost = s.send + SEND
    memset(link, 0, sizeof(Link))
    link.features = LINK_TSO | LINK_USO
    link.receive = stream_receive
    link.reserve = stream_reserve
    link.commit = stream_commit
    link.send = stream_send
    link.flush = stream_flush
    link.counters = counters
    link.state = s
    stream_attach(link, -1)
    return 0


cdef void stream_close(Link *link) noexcept nogil:
    munmap(link.state, RECEIVE + SEND + ROOM + sizeof(StreamState))
