"""Ethernet II frames (RFC 894): two addresses, an EtherType, a payload.

Departure: frames with a VLAN tag (IEEE 802.1Q) or an IEEE 802.3 length instead of an EtherType are malformed here,
because no guest has a use for them.
"""

from __future__ import annotations

import struct

from bucatini.errors import Malformed, Truncated
from bucatini.lean.record import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Self

HEADER = 14  # bytes
BROADCAST = b"\xff" * 6

ETHERTYPE_IPV4 = 0x0800  # IANA, EtherTypes
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV6 = 0x86DD
ETHERTYPE_VLAN = 0x8100
ETHERTYPE_SERVICE_VLAN = 0x88A8
ETHERTYPE_MIN = 0x0600  # below: a length


def mac_text(mac: bytes) -> str:
    """Return 6 bytes as 02:00:00:00:00:01."""
    return mac.hex(":")


def is_group(mac: bytes) -> bool:
    """Whether the address is a multicast or the broadcast address."""
    return bool(mac[0] & 1)


class Ethernet(NamedTuple):
    """A frame, without its frame check sequence; padding stays in the payload."""

    dst: bytes
    src: bytes
    ethertype: int
    payload: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        if len(data) < HEADER:
            raise Truncated(f"Ethernet header of {len(data)} bytes")
        (ethertype,) = struct.unpack_from("!H", data, 12)
        if ethertype < ETHERTYPE_MIN:
            raise Malformed(f"IEEE 802.3 length {ethertype} instead of an EtherType")
        if ethertype in {ETHERTYPE_VLAN, ETHERTYPE_SERVICE_VLAN}:
            raise Malformed("VLAN tag")
        return cls(data[:6], data[6:12], ethertype, data[HEADER:])

    def emit(self) -> bytes:
        return struct.pack("!6s6sH", self.dst, self.src, self.ethertype) + self.payload

    def __str__(self) -> str:
        return (
            f"{mac_text(self.src)} > {mac_text(self.dst)}, ethertype 0x{self.ethertype:04x}, length {len(self.payload)}"
        )
