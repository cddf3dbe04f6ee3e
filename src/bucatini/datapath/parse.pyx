"""Checking and taking apart the guest's frames. The guest is hostile: nothing behind this module looks at a raw length.

Purpose. `parse_frame` walks Ethernet, IP and L4 headers once, checks every length against what is really there, and
fills a `FrameRef` with pointers and numbers in host order. What it does not do: it knows no flow, keeps no state and
counts nothing; a fault is returned as the negative number of the counter that names it.

Checksums. A frame with VNET_NEEDS_CSUM carries only the pseudo-header's sum and never left this machine's memory: it
is not looked at. Any other TCP, UDP or ICMP checksum is verified in software; so is every IPv4 header's.

Departure: IPv6 extension headers other than hop-by-hop, destination options, routing and fragment are dropped, as are
packets with more than eight of them. VLAN tags are not accepted.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from bucatini.datapath.checksum cimport checksum_add, checksum_fold, checksum_pseudo
from bucatini.datapath.counters cimport (
    C_DROP_ETHERTYPE, C_DROP_EXTENSION, C_DROP_FRAGMENT, C_DROP_ICMP_HEADER, C_DROP_ICMP_TYPE,
    C_DROP_IP_ADDRESS, C_DROP_IP_CHECKSUM, C_DROP_IP_HEADER, C_DROP_IP_PROTOCOL, C_DROP_L4_CHECKSUM,
    C_DROP_OVERSIZE, C_DROP_PORT_ZERO, C_DROP_RUNT, C_DROP_TCP_HEADER, C_DROP_UDP_HEADER,
)
from bucatini.datapath.headers cimport (
    ETH_HLEN, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, ICMP_HLEN, IPV4_HLEN, IPV6_FRAME_MAX, IPV6_HLEN, PROTO_ICMP,
    PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, TCP_HLEN, UDP_HLEN, VNET_GSO_ECN, VNET_GSO_NONE, VNET_NEEDS_CSUM,
    addr_from_v4, addr_is_broadcast, addr_is_loopback, addr_is_multicast, be16, be32, icmp_hdr, ipv4_hdr,
    ipv6_hdr, ntohl, ntohs, tcp_hdr, udp_hdr,
)

cdef enum:
    IP_MF = 0x2000  # RFC 791 §3.1
    IP_OFFSET = 0x1FFF
    EXT_HOP_BY_HOP = 0  # RFC 8200 §4.1
    EXT_ROUTING = 43
    EXT_FRAGMENT = 44
    EXT_NONE = 59
    EXT_DESTINATION = 60
    EXT_LIMIT = 8
    UDP_SEGMENTS = 128  # datagrams of a superframe: UDP_MAX_SEGMENTS of linux/udp.h
    BOOTPS = 67  # RFC 2131 §4.1
    DHCPV6_SERVER = 547  # RFC 8415 §7.2
    ICMP_ECHO = 8  # RFC 792
    ICMPV6_ECHO = 128  # RFC 4443 §4.1
    ND_FIRST = 133  # router solicitation, RFC 4861 §4
    ND_LAST = 137


cdef int parse_l4(FrameRef *ref, bint checked) noexcept nogil:
    """Take the L4 header apart; `checked`: its checksum needs no look."""
    cdef uint32_t header
    cdef uint8_t *p = ref.l4
    cdef tcp_hdr *tcp
    if ref.protocol == PROTO_TCP:
        if ref.l4_length < TCP_HLEN:
            return -C_DROP_TCP_HEADER
        tcp = <tcp_hdr *> p
        header = (tcp.offset >> 4) * 4
        if header < TCP_HLEN or header > ref.l4_length:
            return -C_DROP_TCP_HEADER
        ref.sport = ntohs(tcp.sport_be)
        ref.dport = ntohs(tcp.dport_be)
        ref.seq = ntohl(tcp.seq_be)
        ref.ack = ntohl(tcp.ack_be)
        ref.flags = tcp.flags
        ref.window = ntohs(tcp.window_be)
        ref.options = p + TCP_HLEN
        ref.options_length = header - TCP_HLEN
        ref.kind = KIND_TCP
    elif ref.protocol == PROTO_UDP:
        if ref.l4_length < UDP_HLEN:
            return -C_DROP_UDP_HEADER
        header = ntohs((<udp_hdr *> p).length_be)
        if header < UDP_HLEN or header > ref.l4_length:
            return -C_DROP_UDP_HEADER
        if ref.gso_type == VNET_GSO_NONE:
            ref.l4_length = header
        elif ref.l4_length - UDP_HLEN > ref.gso_size * UDP_SEGMENTS:
            return -C_DROP_OVERSIZE
        if (<udp_hdr *> p).checksum_be == 0:
            if ref.version == 6:  # RFC 8200 §8.1
                return -C_DROP_L4_CHECKSUM
            checked = True
        ref.sport = ntohs((<udp_hdr *> p).sport_be)
        ref.dport = ntohs((<udp_hdr *> p).dport_be)
        header = UDP_HLEN
        ref.kind = KIND_UDP
        if ref.dport == (BOOTPS if ref.version == 4 else DHCPV6_SERVER):
            ref.kind = KIND_SLOW
    elif ref.protocol == (PROTO_ICMP if ref.version == 4 else PROTO_ICMPV6):
        if ref.l4_length < ICMP_HLEN:
            return -C_DROP_ICMP_HEADER
        checked = False  # not offloaded
        header = ICMP_HLEN
        ref.sport = ntohs((<icmp_hdr *> p).id_be)
        ref.dport = ntohs((<icmp_hdr *> p).seq_be)
        if p[0] == (ICMP_ECHO if ref.version == 4 else ICMPV6_ECHO) and p[1] == 0:
            ref.kind = KIND_ECHO
        elif ref.version == 6 and ND_FIRST <= p[0] <= ND_LAST:
            ref.kind = KIND_SLOW
        else:
            return -C_DROP_ICMP_TYPE
    else:
        return -C_DROP_IP_PROTOCOL
    if not checked:
        if ref.version == 4 and ref.protocol == PROTO_ICMP:
            if checksum_fold(checksum_add(0, p, ref.l4_length)) != 0xFFFF:
                return -C_DROP_L4_CHECKSUM
        elif checksum_fold(checksum_add(checksum_pseudo(&ref.src, &ref.dst, ref.protocol, ref.l4_length), p,
                                        ref.l4_length)) != 0xFFFF:
            return -C_DROP_L4_CHECKSUM
    if ref.kind <= KIND_UDP and (ref.sport == 0 or ref.dport == 0):
        return -C_DROP_PORT_ZERO
    ref.payload = p + header
    ref.payload_length = ref.l4_length - header
    return ref.kind


cdef int parse_ipv4(FrameRef *ref, bint checked) noexcept nogil:
    """Check the IPv4 header at `l3`, of which `l3_length` bytes are there."""
    cdef ipv4_hdr *ip = <ipv4_hdr *> ref.l3
    cdef uint32_t header, total
    cdef uint16_t fragment
    if ref.l3_length < IPV4_HLEN or ip.version_ihl >> 4 != 4:
        return -C_DROP_IP_HEADER
    header = (ip.version_ihl & 0xF) * 4
    total = ntohs(ip.length_be)
    if header < IPV4_HLEN or total < header or total > ref.l3_length:
        return -C_DROP_IP_HEADER
    if checksum_fold(checksum_add(0, ref.l3, header)) != 0xFFFF:
        return -C_DROP_IP_CHECKSUM
    ref.l3_length = total
    ref.version = 4
    ref.tos = ip.tos
    ref.ttl = ip.ttl
    ref.protocol = ip.protocol
    addr_from_v4(&ref.src, ip.src_be)
    addr_from_v4(&ref.dst, ip.dst_be)
    # RFC 1122 §3.2.1.3: never a source, never on the wire
    if addr_is_multicast(&ref.src) or addr_is_broadcast(&ref.src) or addr_is_loopback(&ref.src):
        return -C_DROP_IP_ADDRESS
    ref.l4 = ref.l3 + header
    ref.l4_length = total - header
    fragment = ntohs(ip.fragment_be)
    if fragment & (IP_MF | IP_OFFSET):
        ref.fragment_id = ntohs(ip.id_be)
        ref.fragment_offset = <uint32_t> (fragment & IP_OFFSET) * 8
        ref.fragment_more = (fragment & IP_MF) != 0
        ref.fragment_protocol = ip.protocol
        ref.fragment_data = ref.l4
        ref.fragment_length = ref.l4_length
        ref.kind = KIND_FRAGMENT
        return KIND_FRAGMENT
    return parse_l4(ref, checked)


cdef int parse_ipv6(FrameRef *ref, bint checked) noexcept nogil:
    """Check the IPv6 header at `l3`, of which `l3_length` bytes are there, and walk the extension headers."""
    cdef int _i
    cdef ipv6_hdr *ip = <ipv6_hdr *> ref.l3
    cdef uint32_t length, size
    cdef uint8_t *p
    cdef uint8_t next_header
    if ref.l3_length < IPV6_HLEN or ref.l3[0] >> 4 != 6:
        return -C_DROP_IP_HEADER
    length = ntohs(ip.payload_length_be)
    if length + IPV6_HLEN > ref.l3_length:
        return -C_DROP_IP_HEADER
    ref.l3_length = length + IPV6_HLEN
    ref.version = 6
    ref.tos = <uint8_t> (ntohl(ip.version_class_flow_be) >> 20)
    ref.ttl = ip.hop_limit
    memcpy(&ref.src, ip.src, 16)
    memcpy(&ref.dst, ip.dst, 16)
    # v4-mapped addresses never stand in an IPv6 header (RFC 4038 §4.2), and here they would mean IPv4
    if (addr_is_multicast(&ref.src) or addr_is_loopback(&ref.src)
            or (ref.src.q[0] == 0 and ref.src.b[10] == 0xFF) or (ref.dst.q[0] == 0 and ref.dst.b[10] == 0xFF)):
        return -C_DROP_IP_ADDRESS
    p = ref.l3 + IPV6_HLEN
    next_header = ip.next_header
    for _i in range(EXT_LIMIT):
        if next_header == EXT_HOP_BY_HOP or next_header == EXT_DESTINATION or next_header == EXT_ROUTING:
            if length < 8:
                return -C_DROP_EXTENSION
            size = (<uint32_t> p[1] + 1) * 8
            if size > length or (next_header == EXT_ROUTING and p[3] != 0):  # segments left: not for us
                return -C_DROP_EXTENSION
            next_header = p[0]
            p += size
            length -= size
        elif next_header == EXT_FRAGMENT:
            if length < 8:
                return -C_DROP_FRAGMENT
            ref.fragment_protocol = p[0]
            ref.fragment_offset = be16(p + 2) & 0xFFF8
            ref.fragment_more = p[3] & 1
            ref.fragment_id = be32(p + 4)
            ref.fragment_data = p + 8
            ref.fragment_length = length - 8
            ref.protocol = next_header
            ref.l4 = p
            ref.l4_length = length
            ref.kind = KIND_FRAGMENT
            return KIND_FRAGMENT
        else:
            ref.protocol = next_header
            ref.l4 = p
            ref.l4_length = length
            return parse_l4(ref, checked)
    return -C_DROP_EXTENSION


cdef int parse_frame(const Frame *frame, FrameRef *ref) noexcept nogil:
    cdef uint16_t proto
    cdef bint checked = (frame.vnet.flags & VNET_NEEDS_CSUM) != 0
    ref.frame = frame.data
    ref.length = frame.length
    if frame.length < ETH_HLEN:
        return -C_DROP_RUNT
    if frame.length > IPV6_FRAME_MAX:
        return -C_DROP_OVERSIZE
    ref.gso_type = frame.vnet.gso_type & ~VNET_GSO_ECN
    ref.gso_size = frame.vnet.gso_size
    if ref.gso_type != VNET_GSO_NONE and ref.gso_size == 0:
        return -C_DROP_OVERSIZE
    ref.l3 = frame.data + ETH_HLEN
    ref.l3_length = frame.length - ETH_HLEN
    proto = be16(frame.data + 12)
    if proto == ETH_P_IP:
        return parse_ipv4(ref, checked)
    if proto == ETH_P_IPV6:
        return parse_ipv6(ref, checked)
    if proto == ETH_P_ARP:
        ref.kind = KIND_SLOW
        ref.version = 0
        ref.protocol = 0
        return KIND_SLOW
    return -C_DROP_ETHERTYPE


cdef int parse_packet(uint8_t *l3, uint32_t length, uint8_t version, FrameRef *ref) noexcept nogil:
    ref.frame = NULL
    ref.length = 0
    ref.gso_type = VNET_GSO_NONE
    ref.gso_size = 0
    ref.l3 = l3
    ref.l3_length = length
    return parse_ipv4(ref, False) if version == 4 else parse_ipv6(ref, False)


def parse_bytes(bytes data, int vnet_flags=0, int gso_type=0, int gso_size=0):
    """Return what `parse_frame` makes of a frame, as a dict, or the (positive) number of its counter: for tests."""
    cdef Frame frame
    cdef FrameRef ref
    cdef int verdict
    cdef bytearray copy = bytearray(data)
    frame.data = copy
    frame.length = len(data)
    frame.vnet.flags = vnet_flags
    frame.vnet.gso_type = gso_type
    frame.vnet.gso_size = gso_size
    verdict = parse_frame(&frame, &ref)
    if verdict < 0:
        return -verdict
    result = {"kind": verdict, "version": ref.version}
    if ref.version:
        result["src"] = bytes(ref.src.b[:16])
        result["dst"] = bytes(ref.dst.b[:16])
        result["protocol"] = ref.protocol
        result["ttl"] = ref.ttl
        result["tos"] = ref.tos
    if verdict == KIND_FRAGMENT:
        result["id"] = ref.fragment_id
        result["offset"] = ref.fragment_offset
        result["more"] = bool(ref.fragment_more)
        result["protocol"] = ref.fragment_protocol
        result["data"] = ref.fragment_data[:ref.fragment_length]
    elif ref.version:
        result["sport"] = ref.sport
        result["dport"] = ref.dport
        result["payload"] = ref.payload[:ref.payload_length]
        if ref.protocol == PROTO_TCP:
            result["seq"] = ref.seq
            result["ack"] = ref.ack
            result["flags"] = ref.flags
            result["window"] = ref.window
            result["options"] = ref.options[:ref.options_length]
    return result
