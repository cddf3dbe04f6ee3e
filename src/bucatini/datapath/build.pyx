"""Headers towards the guest. Everything is written from the flow's key: from `remote` to `guest`.

IPv4 header and ICMP checksums are complete; TCP and UDP leave with the sum of their pseudo-header (not inverted) and
VNET_NEEDS_CSUM, the link does the rest. Superframes carry the length of the whole (RFC 791 total length <= 65535).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from bucatini.datapath.checksum cimport checksum_add, checksum_fold, checksum_pseudo
from bucatini.datapath.counters cimport C_ICMP_SENT
from bucatini.datapath.headers cimport (
    ETH_HLEN, ETH_P_IP, ETH_P_IPV6, ICMP_HLEN, IPV4_HLEN, IPV6_HLEN, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP,
    TCP_HLEN, UDP_HLEN, VNET_GSO_NONE, VNET_GSO_TCPV4, VNET_GSO_TCPV6, VNET_GSO_UDP_L4, VNET_NEEDS_CSUM, addr_equal,
    addr_is_unspecified, addr_is_v4, eth_hdr, htonl, htons, icmp_hdr, ipv4_hdr, ipv6_hdr, tcp_hdr, udp_hdr,
)
from bucatini.datapath.link cimport Link
from bucatini.datapath.sockaddr cimport sockaddr_any, sockaddr_read
from bucatini.datapath.syscalls cimport (
    CMSG_DATA, CMSG_FIRSTHDR, CMSG_NXTHDR, IP_RECVERR, IPPROTO_IP, IPPROTO_IPV6, IPV6_RECVERR, SO_EE_OFFENDER,
    SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, cmsghdr, sock_extended_err,
)
from bucatini.datapath.translate cimport translate_reporter
from bucatini.datapath.worker cimport count


cdef extern from "<errno.h>" nogil:
    int EACCES, EAGAIN, ECONNREFUSED, EMSGSIZE, ENETDOWN, ENETUNREACH, ENOBUFS, ENOMEM, ENOPROTOOPT, EPERM


cdef enum:
    TTL = 64  # of what we send, RFC 1700


cdef inline uint32_t ip_header(uint8_t *out, const addr_t *src, const addr_t *dst, uint8_t protocol, uint32_t l4_length,
                               uint8_t ttl) noexcept nogil:
    """Write an IP header; returns its size."""
    cdef ipv4_hdr *ip4 = <ipv4_hdr *> out
    cdef ipv6_hdr *ip6 = <ipv6_hdr *> out
    if addr_is_v4(dst):
        ip4.version_ihl = 0x45
        ip4.tos = 0
        ip4.length_be = htons(<uint16_t> (IPV4_HLEN + l4_length))
        ip4.id_be = 0  # never fragmented on our side: DF with identification 0 (RFC 6864 §4.1)
        ip4.fragment_be = htons(0x4000)
        ip4.ttl = ttl
        ip4.protocol = protocol
        ip4.checksum_be = 0
        ip4.src_be = src.w[3]
        ip4.dst_be = dst.w[3]
        ip4.checksum_be = ~checksum_fold(checksum_add(0, out, IPV4_HLEN))
        return IPV4_HLEN
    ip6.version_class_flow_be = htonl(<uint32_t> 0x60000000)
    ip6.payload_length_be = htons(<uint16_t> l4_length)
    ip6.next_header = protocol
    ip6.hop_limit = ttl
    memcpy(ip6.src, src, 16)
    memcpy(ip6.dst, dst, 16)
    return IPV6_HLEN


cdef uint32_t build_ip(Worker *w, uint8_t *out, const addr_t *src, const addr_t *dst, uint8_t protocol,
                       uint32_t l4_length, uint8_t ttl) noexcept nogil:
    cdef eth_hdr *eth = <eth_hdr *> out
    memcpy(eth.dst, w.guest_mac, 6)
    memcpy(eth.src, w.settings.our_mac, 6)
    eth.proto_be = htons(ETH_P_IP if addr_is_v4(dst) else ETH_P_IPV6)
    return ETH_HLEN + ip_header(out + ETH_HLEN, src, dst, protocol, l4_length, ttl)


cdef uint32_t build_udp(Worker *w, uint8_t *out, const FlowKey *key, uint32_t size, uint32_t total,
                        vnet_hdr *vnet) noexcept nogil:
    cdef uint32_t offset = build_ip(w, out, &key.remote, &key.guest, PROTO_UDP, UDP_HLEN + total, TTL)
    cdef udp_hdr *udp = <udp_hdr *> (out + offset)
    udp.sport_be = htons(key.rport)
    udp.dport_be = htons(key.gport)
    udp.length_be = htons(<uint16_t> (UDP_HLEN + total))
    udp.checksum_be = checksum_fold(checksum_pseudo(&key.remote, &key.guest, PROTO_UDP, UDP_HLEN + total))
    vnet.flags = VNET_NEEDS_CSUM
    vnet.csum_start = <uint16_t> offset
    vnet.csum_offset = 6
    if size and total > size:
        vnet.gso_type = VNET_GSO_UDP_L4
        vnet.gso_size = <uint16_t> size
        vnet.hdr_len = <uint16_t> (offset + UDP_HLEN)
    else:
        vnet.gso_type = VNET_GSO_NONE
        vnet.gso_size = 0
        vnet.hdr_len = 0
    return offset + UDP_HLEN


cdef uint32_t build_tcp(Worker *w, uint8_t *out, const FlowKey *key, uint32_t seq, uint32_t ack, uint16_t window,
                        uint8_t flags, uint32_t options, uint32_t length, uint16_t mss, vnet_hdr *vnet) noexcept nogil:
    cdef uint32_t header = TCP_HLEN + options
    cdef uint32_t offset = build_ip(w, out, &key.remote, &key.guest, PROTO_TCP, header + length, TTL)
    cdef tcp_hdr *tcp = <tcp_hdr *> (out + offset)
    tcp.sport_be = htons(key.rport)
    tcp.dport_be = htons(key.gport)
    tcp.seq_be = htonl(seq)
    tcp.ack_be = htonl(ack)
    tcp.offset = <uint8_t> ((header // 4) << 4)
    tcp.flags = flags
    tcp.window_be = htons(window)
    tcp.urgent_be = 0
    tcp.checksum_be = checksum_fold(checksum_pseudo(&key.remote, &key.guest, PROTO_TCP, header + length))
    vnet.flags = VNET_NEEDS_CSUM
    vnet.csum_start = <uint16_t> offset
    vnet.csum_offset = 16
    if length > mss:
        vnet.gso_type = VNET_GSO_TCPV4 if offset < ETH_HLEN + IPV6_HLEN else VNET_GSO_TCPV6
        vnet.gso_size = mss
        vnet.hdr_len = <uint16_t> (offset + header)
    else:
        vnet.gso_type = VNET_GSO_NONE
        vnet.gso_size = 0
        vnet.hdr_len = 0
    return offset + header


cdef void build_icmp_checksum(uint8_t *l4, uint32_t length, const addr_t *src, const addr_t *dst) noexcept nogil:
    cdef icmp_hdr *icmp = <icmp_hdr *> l4
    icmp.checksum_be = 0
    if addr_is_v4(dst):
        icmp.checksum_be = ~checksum_fold(checksum_add(0, l4, length))
    else:
        icmp.checksum_be = ~checksum_fold(checksum_add(checksum_pseudo(src, dst, PROTO_ICMPV6, length), l4, length))


cdef int icmp_error_of(int error_number) noexcept nogil:
    """Return the IcmpError that tells a guest of a failed host call."""
    if error_number == ECONNREFUSED or error_number == ENOPROTOOPT:
        return ICMP_PORT_UNREACHABLE
    if error_number == ENETUNREACH or error_number == ENETDOWN:
        return ICMP_NET_UNREACHABLE
    if error_number == EACCES or error_number == EPERM:
        return ICMP_PROHIBITED
    if error_number == EMSGSIZE:
        return ICMP_TOO_BIG
    return ICMP_HOST_UNREACHABLE


cdef bint icmp_is_silent(int error_number) noexcept nogil:
    return error_number == EAGAIN or error_number == ENOBUFS or error_number == ENOMEM


cdef int error_of(const sock_extended_err *found) noexcept nogil:
    """Return the IcmpError that tells a guest of an error from a socket's queue (ip(7), IP_RECVERR).

    Where the errno says less than the message did, that is asked: type and code of RFC 792 and RFC 1812 §5.2.7.1, and
    the type of RFC 4443. A prohibition has an errno of its own in IPv6 alone.
    """
    if found.ee_origin == SO_EE_ORIGIN_ICMP:
        if found.ee_type == 11:
            return ICMP_TTL_EXCEEDED
        if found.ee_type == 3 and (found.ee_code == 9 or found.ee_code == 10 or found.ee_code == 13):
            return ICMP_PROHIBITED
    elif found.ee_origin == SO_EE_ORIGIN_ICMP6 and found.ee_type == 3:
        return ICMP_TTL_EXCEEDED
    return icmp_error_of(<int> found.ee_errno)


cdef int icmp_error_reported(Worker *w, const Flow *flow, const msghdr *message, addr_t *reporter,
                             uint32_t *mtu) noexcept nogil:
    cdef cmsghdr *cmsg = CMSG_FIRSTHDR(<msghdr *> message)
    cdef sock_extended_err *found
    cdef int error
    while cmsg != NULL:
        if ((cmsg.cmsg_level == IPPROTO_IP and cmsg.cmsg_type == IP_RECVERR)
                or (cmsg.cmsg_level == IPPROTO_IPV6 and cmsg.cmsg_type == IPV6_RECVERR)):
            found = <sock_extended_err *> CMSG_DATA(cmsg)
            error = error_of(found)
            memcpy(reporter, &flow.key.remote, sizeof(addr_t))
            if found.ee_origin == SO_EE_ORIGIN_ICMP or found.ee_origin == SO_EE_ORIGIN_ICMP6:
                sockaddr_read(<sockaddr_any *> SO_EE_OFFENDER(found), reporter)
                if addr_is_unspecified(reporter) or addr_equal(reporter, &flow.target):
                    memcpy(reporter, &flow.key.remote, sizeof(addr_t))
                else:
                    translate_reporter(w, reporter)
            mtu[0] = found.ee_info if error == ICMP_TOO_BIG else 0
            return error
        cmsg = CMSG_NXTHDR(<msghdr *> message, cmsg)
    return -1


cdef inline void icmp_type(bint v4, int error, icmp_hdr *icmp) noexcept nogil:
    """Type and code of an error: RFC 792 and RFC 1812 §5.2.7 for IPv4, RFC 4443 §3 for IPv6."""
    if error == ICMP_TTL_EXCEEDED:
        icmp.type = 11 if v4 else 3
        icmp.code = 0
    elif error == ICMP_TOO_BIG:
        icmp.type = 3 if v4 else 2
        icmp.code = 4 if v4 else 0
    else:
        icmp.type = 3 if v4 else 1
        if error == ICMP_PORT_UNREACHABLE:
            icmp.code = 3 if v4 else 4
        elif error == ICMP_PROHIBITED:
            icmp.code = 13 if v4 else 1
        elif error == ICMP_NET_UNREACHABLE:
            icmp.code = 0
        else:
            icmp.code = 1 if v4 else 3


cdef void build_icmp_error(Worker *w, const FlowKey *key, const addr_t *reporter, int error, uint32_t mtu,
                           const uint8_t *l4, uint32_t quoted, uint32_t l4_length) noexcept nogil:
    cdef Link *link = w.link
    cdef uint8_t *out = link.reserve(link)
    cdef bint v4 = addr_is_v4(&key.guest)
    cdef uint32_t header = IPV4_HLEN if v4 else IPV6_HLEN
    # RFC 1812 §4.3.2.3: at most 576 bytes in all; RFC 4443 §2.4: at most 1280
    cdef uint32_t limit = (576 - IPV4_HLEN if v4 else 1280 - IPV6_HLEN) - ICMP_HLEN - header
    cdef uint32_t offset, length
    cdef icmp_hdr *icmp
    cdef vnet_hdr vnet
    if quoted > limit:
        quoted = limit
    length = ICMP_HLEN + header + quoted
    offset = build_ip(w, out, reporter, &key.guest, PROTO_ICMP if v4 else PROTO_ICMPV6, length, TTL)
    icmp = <icmp_hdr *> (out + offset)
    memset(icmp, 0, ICMP_HLEN)
    icmp_type(v4, error, icmp)
    if error == ICMP_TOO_BIG:
        if v4:
            icmp.seq_be = htons(<uint16_t> (mtu if mtu < 0xFFFF else 0xFFFF))  # RFC 1191 §4
        else:
            icmp.id_be = htons(<uint16_t> (mtu >> 16))
            icmp.seq_be = htons(<uint16_t> (mtu & 0xFFFF))
    ip_header(out + offset + ICMP_HLEN, &key.guest, &key.remote, key.protocol, l4_length, TTL)
    memcpy(out + offset + ICMP_HLEN + header, l4, quoted)
    build_icmp_checksum(out + offset, length, reporter, &key.guest)
    memset(&vnet, 0, sizeof(vnet))
    if link.commit(link, offset + length, &vnet) == 0:
        count(w, C_ICMP_SENT)
