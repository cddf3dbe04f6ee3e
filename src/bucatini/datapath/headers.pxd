"""Packed headers of the packet path, byte order helpers and the constants of the protocols it speaks.

Fields ending in `_be` are in network byte order. `wire/` is the readable reference of the same formats.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from bucatini.datapath.syscalls cimport htonl, htons, ntohl, ntohs

ctypedef union addr_t:  # an IPv6 address, or an IPv4 one as ::ffff:a.b.c.d (RFC 4291 §2.5.5.2)
    uint8_t b[16]
    uint32_t w[4]
    uint64_t q[2]

cdef packed struct eth_hdr:  # IEEE 802.3, Ethernet II
    uint8_t dst[6]
    uint8_t src[6]
    uint16_t proto_be

cdef packed struct ipv4_hdr:  # RFC 791 §3.1
    uint8_t version_ihl
    uint8_t tos
    uint16_t length_be
    uint16_t id_be
    uint16_t fragment_be
    uint8_t ttl
    uint8_t protocol
    uint16_t checksum_be
    uint32_t src_be
    uint32_t dst_be

cdef packed struct ipv6_hdr:  # RFC 8200 §3
    uint32_t version_class_flow_be
    uint16_t payload_length_be
    uint8_t next_header
    uint8_t hop_limit
    uint8_t src[16]
    uint8_t dst[16]

cdef packed struct tcp_hdr:  # RFC 9293 §3.1
    uint16_t sport_be
    uint16_t dport_be
    uint32_t seq_be
    uint32_t ack_be
    uint8_t offset  # upper four bits: header length in 32-bit words
    uint8_t flags
    uint16_t window_be
    uint16_t checksum_be
    uint16_t urgent_be

cdef packed struct udp_hdr:  # RFC 768
    uint16_t sport_be
    uint16_t dport_be
    uint16_t length_be
    uint16_t checksum_be

cdef packed struct icmp_hdr:  # RFC 792, RFC 4443 §2.1; echo and error alike
    uint8_t type
    uint8_t code
    uint16_t checksum_be
    uint16_t id_be  # echo: identifier; errors: unused, or the upper half of an IPv6 MTU
    uint16_t seq_be  # echo: sequence; errors: the (lower half of the) MTU

cdef packed struct vnet_hdr:  # struct virtio_net_hdr, linux/virtio_net.h; little endian = host order on what we run on
    uint8_t flags
    uint8_t gso_type
    uint16_t hdr_len
    uint16_t gso_size
    uint16_t csum_start
    uint16_t csum_offset

cdef enum:
    VNET_NEEDS_CSUM = 1  # VIRTIO_NET_HDR_F_NEEDS_CSUM
    VNET_GSO_NONE = 0
    VNET_GSO_TCPV4 = 1
    VNET_GSO_TCPV6 = 4
    VNET_GSO_UDP_L4 = 5
    VNET_GSO_ECN = 0x80

cdef enum:
    ETH_HLEN = 14
    ETH_P_IP = 0x0800
    ETH_P_ARP = 0x0806
    ETH_P_IPV6 = 0x86DD
    ETH_MIN = 60  # shortest frame without FCS
    IPV4_HLEN = 20
    IPV6_HLEN = 40
    TCP_HLEN = 20
    UDP_HLEN = 8
    ICMP_HLEN = 8
    IP_LEN_MAX = 65535
    FRAME_MAX = 65549  # ETH_HLEN + IP_LEN_MAX
    IPV6_FRAME_MAX = 65589  # ETH_HLEN + IPV6_HLEN + 65535

cdef enum:  # IP protocol numbers
    PROTO_ICMP = 1
    PROTO_TCP = 6
    PROTO_UDP = 17
    PROTO_ICMPV6 = 58

cdef enum:  # TCP flags, RFC 9293 §3.1
    TH_FIN = 0x01
    TH_SYN = 0x02
    TH_RST = 0x04
    TH_PSH = 0x08
    TH_ACK = 0x10
    TH_URG = 0x20

cdef inline uint16_t be16(const uint8_t *p) noexcept nogil:
    return (<uint16_t> p[0] << 8) | p[1]

cdef inline uint32_t be32(const uint8_t *p) noexcept nogil:
    return (<uint32_t> p[0] << 24) | (<uint32_t> p[1] << 16) | (<uint32_t> p[2] << 8) | p[3]

cdef inline bint addr_equal(const addr_t *a, const addr_t *b) noexcept nogil:
    return a.q[0] == b.q[0] and a.q[1] == b.q[1]

cdef inline bint addr_is_v4(const addr_t *a) noexcept nogil:
    return a.q[0] == 0 and a.w[2] == htonl(0xFFFF)

cdef inline void addr_from_v4(addr_t *a, uint32_t v4_be) noexcept nogil:
    a.q[0] = 0
    a.w[2] = htonl(0xFFFF)
    a.w[3] = v4_be

cdef inline bint addr_is_unspecified(const addr_t *a) noexcept nogil:
    """0.0.0.0 or ::."""
    return a.q[0] == 0 and ((a.w[2] == htonl(0xFFFF) and a.w[3] == 0) or a.q[1] == 0)

cdef inline bint addr_is_loopback(const addr_t *a) noexcept nogil:
    """127.0.0.0/8 or ::1."""
    if addr_is_v4(a):
        return a.b[12] == 127
    return a.q[0] == 0 and a.w[2] == 0 and a.w[3] == htonl(1)

cdef inline bint addr_is_multicast(const addr_t *a) noexcept nogil:
    """224.0.0.0/4 or ff00::/8."""
    if addr_is_v4(a):
        return (a.b[12] & 0xF0) == 0xE0
    return a.b[0] == 0xFF

cdef inline bint addr_is_broadcast(const addr_t *a) noexcept nogil:
    """255.255.255.255."""
    return addr_is_v4(a) and a.w[3] == 0xFFFFFFFFU

cdef inline bint addr_is_linklocal6(const addr_t *a) noexcept nogil:
    """fe80::/10."""
    return a.b[0] == 0xFE and (a.b[1] & 0xC0) == 0x80
