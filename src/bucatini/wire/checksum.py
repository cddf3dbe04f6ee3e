"""The Internet checksum (RFC 1071), and the pseudo headers that TCP, UDP and ICMPv6 take into it.

Works on one number instead of a loop over words: the one's complement sum of 16-bit words is that number modulo 2^16
- 1.
"""

from __future__ import annotations

import struct


def internet(data: bytes) -> int:
    """Return the checksum of `data` as it stands in a header; 0 for data that contains its own correct checksum."""
    total = int.from_bytes(data + b"\0" if len(data) & 1 else data, "big")
    rest = total % 0xFFFF
    # A sum of words is 0 only when all of them are
    return 0xFFFF ^ (rest or (0xFFFF if total else 0))


def pseudo_header(src: bytes, dst: bytes, protocol: int, length: int) -> bytes:
    """Return the pseudo header of RFC 9293 §3.1 (4-byte addresses) or RFC 8200 §8.1 (16-byte addresses)."""
    if len(src) == 4:
        return src + dst + struct.pack("!BBH", 0, protocol, length)
    return src + dst + struct.pack("!II", length, protocol)


def transport(src: bytes, dst: bytes, protocol: int, data: bytes) -> int:
    """Return the checksum of a segment, datagram or ICMPv6 message `data`, header included."""
    return internet(pseudo_header(src, dst, protocol, len(data)) + data)
