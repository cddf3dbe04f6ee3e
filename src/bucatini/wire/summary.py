"""One line about any frame, for --trace."""

from __future__ import annotations

import struct

from bucatini.errors import WireError
from bucatini.lean.sockets import AF_INET, AF_INET6, inet_ntop
from bucatini.wire import arp, ethernet, ipv4, ipv6

_FLAGS = "FSRPAUEC"
_SIX = {
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbour solicitation",
    136: "neighbour advertisement",
}


def summarise(frame: bytes) -> str:
    """Return a line about a frame; never raises."""
    try:
        outer = ethernet.Ethernet.parse(frame)
        if outer.ethertype == ethernet.ETHERTYPE_ARP:
            return str(arp.Arp.parse(outer.payload))
        if outer.ethertype == ethernet.ETHERTYPE_IPV4:
            four = ipv4.IPv4.parse(outer.payload)
            src, dst = (inet_ntop(AF_INET, a) for a in (four.src, four.dst))
            if four.is_fragment:
                return str(four)
            return _above("IP", src, dst, four.protocol, four.payload)
        if outer.ethertype == ethernet.ETHERTYPE_IPV6:
            six = ipv6.IPv6.parse(outer.payload)
            src, dst = (inet_ntop(AF_INET6, a) for a in (six.src, six.dst))
            return _above("IP6", src, dst, six.next_header, six.payload)
        return str(outer)
    except WireError as error:
        return f"malformed: {error}, {len(frame)} bytes"


def _above(ip: str, src: str, dst: str, protocol: int, data: bytes) -> str:
    if protocol == 6 and len(data) >= 20:
        sport, dport, seq, ack, offset, flags, window = struct.unpack_from(">HHIIBBH", data)
        names = "".join(letter for bit, letter in enumerate(_FLAGS) if flags >> bit & 1)
        length = len(data) - (offset >> 4) * 4
        return f"{ip} {src}.{sport} > {dst}.{dport} [{names}] seq {seq} ack {ack} win {window} length {length}"
    if protocol == 17 and len(data) >= 8:
        sport, dport = struct.unpack_from(">HH", data)
        return f"{ip} {src}.{sport} > {dst}.{dport} UDP length {len(data) - 8}"
    if protocol in (1, 58) and len(data) >= 8:
        what = _SIX.get(data[0]) if protocol == 58 else None
        return f"{ip} {src} > {dst} ICMP {what or f'type {data[0]} code {data[1]}'} length {len(data)}"
    return f"{ip} {src} > {dst} protocol {protocol} length {len(data)}"
