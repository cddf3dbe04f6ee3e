"""TCP's options, both ways: maximum segment size, window scale, timestamps, selective acknowledgement.

We offer all of them, and use those that the guest's SYN had too. A malformed list ends where it is malformed.

Our timestamps count milliseconds (2**20 ns) from a start that the connection's initial sequence number hides (RFC
7323 §5.4). What the guest echoes is not looked at: nothing here estimates a round trip.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from bucatini.datapath.tcp cimport TCP_SYN_SENT, TCP_WSCALE, TF_SACK, TF_TIMESTAMPS, TF_WINDOW_SCALING

cdef enum:
    MSS_MIN = 88  # below it a guest only wants us to work
    SCALE_MAX = 14  # RFC 7323 §2.3
    OPT_END = 0  # RFC 9293 §3.1
    OPT_NOP = 1
    OPT_MSS = 2
    OPT_SCALE = 3
    OPT_SACK_PERMITTED = 4  # RFC 2018 §2
    OPT_SACK = 5
    OPT_TIMESTAMPS = 8  # RFC 7323 §3.2
    TICK_SHIFT = 20  # ns -> about ms


cdef inline uint32_t minimum(uint32_t a, uint32_t b) noexcept nogil:
    return a if a < b else b


cdef inline uint32_t word(const uint8_t *p) noexcept nogil:
    return <uint32_t> p[0] << 24 | <uint32_t> p[1] << 16 | <uint32_t> p[2] << 8 | p[3]


cdef inline void put_word(uint8_t *p, uint32_t value) noexcept nogil:
    p[0] = value >> 24
    p[1] = value >> 16 & 0xFF
    p[2] = value >> 8 & 0xFF
    p[3] = value & 0xFF


cdef inline uint32_t option_at(const uint8_t *p, uint32_t size, uint32_t i) noexcept nogil:
    """Size of the option at `i`, 0: the list ends here."""
    if p[i] == OPT_END:
        return 0
    if p[i] == OPT_NOP:
        return 1
    if i + 1 >= size or p[i + 1] < 2 or i + p[i + 1] > size:
        return 0
    return p[i + 1]


cdef void tcp_read_syn(TcpConn *c, const uint8_t *p, uint32_t size) noexcept nogil:
    cdef uint32_t mss = MSS_DEFAULT
    cdef uint32_t i = 0, length
    c.flags &= ~(TF_WINDOW_SCALING | TF_TIMESTAMPS | TF_SACK)
    c.snd_wscale = 0
    while i < size:
        length = option_at(p, size, i)
        if length == 0:
            break
        if p[i] == OPT_MSS and length == 4:
            mss = (<uint32_t> p[i + 2] << 8) | p[i + 3]
        elif p[i] == OPT_SCALE and length == 3:
            c.flags |= TF_WINDOW_SCALING
            c.snd_wscale = p[i + 2] if p[i + 2] < SCALE_MAX else SCALE_MAX
        elif p[i] == OPT_SACK_PERMITTED and length == 2:
            c.flags |= TF_SACK
        elif p[i] == OPT_TIMESTAMPS and length == 10:
            c.flags |= TF_TIMESTAMPS
            c.ts_recent = word(p + i + 2)
        i += length
    if mss < MSS_MIN:
        mss = MSS_MIN
    c.mss = <uint16_t> minimum(mss, c.our_mss)
    if c.flags & TF_TIMESTAMPS:
        c.mss -= TCP_TIMESTAMPS_SIZE  # RFC 6691 §2
    if c.flags & TF_WINDOW_SCALING:
        c.rcv_wscale = TCP_WSCALE
    else:
        c.rcv_wscale = 0
        c.bound = minimum(c.bound, 65535)


cdef void tcp_read_options(const TcpConn *c, const uint8_t *p, uint32_t size, SegmentOptions *o) noexcept nogil:
    cdef uint32_t i = 0, length, at
    o.timestamp = False
    o.blocks = 0
    if not c.flags & (TF_TIMESTAMPS | TF_SACK):
        return
    while i < size:
        length = option_at(p, size, i)
        if length == 0:
            return
        if p[i] == OPT_TIMESTAMPS and length == 10 and c.flags & TF_TIMESTAMPS:
            o.timestamp = True
            o.value = word(p + i + 2)
        elif p[i] == OPT_SACK and c.flags & TF_SACK:
            at = i + 2
            while at + 8 <= i + length and o.blocks < BLOCKS_MAX:
                o.start[o.blocks] = word(p + at)
                o.end[o.blocks] = word(p + at + 4)
                o.blocks += 1
                at += 8
        i += length


cdef inline uint32_t put_timestamps(const TcpConn *c, uint64_t now, uint8_t *out) noexcept nogil:
    out[0] = OPT_NOP
    out[1] = OPT_NOP
    out[2] = OPT_TIMESTAMPS
    out[3] = 10
    put_word(out + 4, <uint32_t> (now >> TICK_SHIFT) + c.iss)
    put_word(out + 8, c.ts_recent)
    return TCP_TIMESTAMPS_SIZE


cdef uint32_t tcp_syn_options(const TcpConn *c, uint64_t now, uint8_t *out) noexcept nogil:
    cdef uint16_t flags = c.flags
    cdef uint32_t size = 4
    if c.state == TCP_SYN_SENT:
        flags = TF_WINDOW_SCALING | TF_TIMESTAMPS | TF_SACK
    out[0] = OPT_MSS
    out[1] = 4
    out[2] = c.our_mss >> 8
    out[3] = c.our_mss & 0xFF
    if flags & TF_WINDOW_SCALING:
        out[size] = OPT_NOP
        out[size + 1] = OPT_SCALE
        out[size + 2] = 3
        out[size + 3] = TCP_WSCALE
        size += 4
    if flags & TF_SACK:
        out[size] = OPT_NOP
        out[size + 1] = OPT_NOP
        out[size + 2] = OPT_SACK_PERMITTED
        out[size + 3] = 2
        size += 4
    if flags & TF_TIMESTAMPS:
        size += put_timestamps(c, now, out + size)
    return size


cdef uint32_t tcp_options(const TcpConn *c, bint blocks, uint64_t now, uint8_t *out) noexcept nogil:
    cdef uint32_t size = 0, i, count, index
    if c.flags & TF_TIMESTAMPS:
        size = put_timestamps(c, now, out)
    if not blocks or c.kept.count == 0 or not c.flags & TF_SACK:
        return size
    count = minimum(c.kept.count, (TCP_OPTIONS_MAX - 4 - size) // 8)
    out[size] = OPT_NOP
    out[size + 1] = OPT_NOP
    out[size + 2] = OPT_SACK
    out[size + 3] = <uint8_t> (2 + 8 * count)
    size += 4
    for i in range(count):
        # The latest first, then the others from the left
        index = c.kept.latest if i == 0 else (i - 1 if i - 1 < c.kept.latest else i)
        put_word(out + size, c.kept.start[index])
        put_word(out + size + 4, c.kept.end[index])
        size += 8
    return size
