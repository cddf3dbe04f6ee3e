"""TCP segments (RFC 9293 §3.1) with their options, over IPv4 and IPv6. The services never see one; the trace does."""

from __future__ import annotations

import struct

from bucatini.errors import Malformed, Truncated
from bucatini.lean.record import TYPE_CHECKING, NamedTuple
from bucatini.wire import checksum
from bucatini.wire.ipv4 import PROTOCOL_TCP

if TYPE_CHECKING:
    from typing import Self

HEADER = 20  # bytes, without options

FIN = 1
SYN = 2
RST = 4
PSH = 8
ACK = 16
URG = 32
ECE = 64  # RFC 3168 §6.1
CWR = 128

OPTION_END = 0  # RFC 9293 §3.2
OPTION_NOP = 1
OPTION_MSS = 2
OPTION_WINDOW_SCALE = 3  # RFC 7323 §2.2
OPTION_SACK_PERMITTED = 4  # RFC 2018 §2
OPTION_SACK = 5  # RFC 2018 §3
OPTION_TIMESTAMPS = 8  # RFC 7323 §3.2

_LETTERS = ((FIN, "F"), (SYN, "S"), (RST, "R"), (PSH, "P"), (ACK, "."), (URG, "U"), (ECE, "E"), (CWR, "W"))


class Tcp(NamedTuple):
    """A segment."""

    sport: int
    dport: int
    seq: int
    ack: int
    flags: int  # FIN to CWR
    window: int  # unscaled
    payload: bytes = b""
    urgent: int = 0
    options: tuple[tuple[int, bytes], ...] = ()  # kind and contents; NOPs are kept, what fills up the header is not

    @classmethod
    def parse(cls, data: bytes, src: bytes = b"", dst: bytes = b"") -> Self:
        """Parse a segment.

        Args:
            src, dst: addresses of the packet. Without them the checksum is not verified.
        """
        if len(data) < HEADER:
            raise Truncated(f"TCP header of {len(data)} bytes")
        sport, dport, seq, ack, offset, flags, window, _, urgent = struct.unpack_from("!HHIIBBHHH", data)
        header = (offset >> 4) * 4
        if header < HEADER:
            raise Malformed(f"TCP header length {header}")
        if header > len(data):
            raise Truncated(f"TCP header length {header} in {len(data)} bytes")
        if src and checksum.transport(src, dst, PROTOCOL_TCP, data):
            raise Malformed("TCP checksum")
        options = _parse_options(data[HEADER:header])
        return cls(sport, dport, seq, ack, flags, window, data[header:], urgent, options)

    def emit(self, src: bytes, dst: bytes) -> bytes:
        """Return the segment with its checksum; the addresses are those of the packet."""
        options = b"".join(
            bytes([kind]) if kind == OPTION_NOP else bytes([kind, len(data) + 2]) + data for kind, data in self.options
        )
        options += bytes(-len(options) % 4)
        offset = (HEADER + len(options)) // 4 << 4
        blank = struct.pack(
            "!HHIIBBHHH", self.sport, self.dport, self.seq, self.ack, offset, self.flags, self.window, 0, self.urgent
        )
        blank += options + self.payload
        return blank[:16] + struct.pack("!H", checksum.transport(src, dst, PROTOCOL_TCP, blank)) + blank[18:]

    def option(self, kind: int) -> bytes | None:
        """Return the contents of an option."""
        for candidate, data in self.options:
            if candidate == kind:
                return data
        return None

    def __str__(self) -> str:
        """Return the segment as tcpdump does; sequence numbers are absolute."""
        letters = "".join(letter for bit, letter in _LETTERS if self.flags & bit) or "none"
        parts = [f"Flags [{letters}]"]
        length = len(self.payload)
        if length or self.flags & (SYN | FIN | RST):
            parts.append(f"seq {self.seq}:{(self.seq + length) & 0xFFFFFFFF}" if length else f"seq {self.seq}")
        if self.flags & ACK:
            parts.append(f"ack {self.ack}")
        parts.append(f"win {self.window}")
        if self.flags & URG:
            parts.append(f"urg {self.urgent}")
        if self.options:
            parts.append(f"options [{','.join(_option_text(kind, data) for kind, data in self.options)}]")
        parts.append(f"length {length}")
        return ", ".join(parts)


def _parse_options(data: bytes) -> tuple[tuple[int, bytes], ...]:
    options = []
    position = 0
    while position < len(data) and data[position] != OPTION_END:
        kind = data[position]
        if kind == OPTION_NOP:
            options.append((kind, b""))
            position += 1
            continue
        if position + 1 >= len(data):
            raise Truncated(f"TCP option {kind}")
        size = data[position + 1]
        if size < 2:
            raise Malformed(f"TCP option {kind} of length {size}")
        if position + size > len(data):
            raise Truncated(f"TCP option {kind} of length {size} in {len(data) - position} bytes")
        options.append((kind, data[position + 2 : position + size]))
        position += size
    return tuple(options)


def _option_text(kind: int, data: bytes) -> str:
    if kind == OPTION_NOP:
        return "nop"
    if kind == OPTION_MSS and len(data) == 2:
        return f"mss {int.from_bytes(data, 'big')}"
    if kind == OPTION_WINDOW_SCALE and len(data) == 1:
        return f"wscale {data[0]}"
    if kind == OPTION_SACK_PERMITTED and not data:
        return "sackOK"
    if kind == OPTION_TIMESTAMPS and len(data) == 8:
        return "TS val {} ecr {}".format(*struct.unpack("!II", data))
    if kind == OPTION_SACK and data and len(data) % 8 == 0:
        edges = struct.unpack(f"!{len(data) // 4}I", data)
        blocks = "".join(f"{{{edges[at]}:{edges[at + 1]}}}" for at in range(0, len(edges), 2))
        return f"sack {len(edges) // 2} {blocks}"
    return f"unknown-{kind} {data.hex()}"
