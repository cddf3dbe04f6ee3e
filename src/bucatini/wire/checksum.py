"""The Internet checksum (RFC 1071) and the pseudo-header of the protocols above IP."""

import struct


def ones_complement_sum(data: bytes, initial: int = 0) -> int:
    """Return the sum of `data` as 16-bit words, folded, not inverted; an odd last byte counts as the upper half of a word."""
    if len(data) % 2:
        data += b"\0"
    total: int = initial + sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes) -> int:
    """Return the header field, 0..0xFFFF, for `data` in which the field itself is zero."""
    return ones_complement_sum(data) ^ 0xFFFF


def pseudo_header(src: bytes, dst: bytes, protocol: int, length: int) -> bytes:
    """Return the pseudo-header for addresses of 4 bytes (RFC 9293 §3.1) or 16 (RFC 8200 §8.1)."""
    if len(src) == 4:
        return src + dst + struct.pack(">BBH", 0, protocol, length)
    return src + dst + struct.pack(">IHBB", length, 0, 0, protocol)
