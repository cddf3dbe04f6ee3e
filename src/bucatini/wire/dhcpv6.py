"""DHCPv6 messages between client and server (RFC 8415 §8), their options, and options inside options.

Options are pairs of code and bytes, in order; the same code may stand more than once. Relay messages (§9) have
another format and are malformed here.
"""

from __future__ import annotations

import struct

from bucatini.errors import Malformed, Truncated
from bucatini.lean.record import TYPE_CHECKING, NamedTuple
from bucatini.wire.ipv6 import text

if TYPE_CHECKING:
    from typing import Self

CLIENT_PORT = 546  # RFC 8415 §7.2
SERVER_PORT = 547
ALL_SERVERS = bytes.fromhex("ff020000000000000000000000010002")  # RFC 8415 §7.1, ff02::1:2
DUID_MAX = 130  # bytes, RFC 8415 §11.1: type and at most 128 more
INFINITE = 0xFFFFFFFF  # seconds, RFC 8415 §7.7

# RFC 8415 §7.3
SOLICIT = 1
ADVERTISE = 2
REQUEST = 3
CONFIRM = 4
RENEW = 5
REBIND = 6
REPLY = 7
RELEASE = 8
DECLINE = 9
RECONFIGURE = 10
INFORMATION_REQUEST = 11
RELAY_FORWARD = 12
RELAY_REPLY = 13
TYPES = (
    "", "solicit", "advertise", "request", "confirm", "renew", "rebind", "reply", "release", "decline", "reconfigure",
    "information-request",
)  # fmt: skip

# RFC 8415 §21
CLIENT_IDENTIFIER = 1
SERVER_IDENTIFIER = 2
IA_NA = 3
IA_TA = 4
IA_ADDRESS = 5
OPTION_REQUEST = 6
PREFERENCE = 7
ELAPSED_TIME = 8
STATUS_CODE = 13
RAPID_COMMIT = 14
DNS_SERVERS = 23  # RFC 3646
DOMAIN_LIST = 24
IA_PD = 25
CLIENT_FQDN = 39  # RFC 4704

# RFC 8415 §21.13
SUCCESS = 0
NO_ADDRS_AVAIL = 2
NO_BINDING = 3
NOT_ON_LINK = 4
USE_MULTICAST = 5
NO_PREFIX_AVAIL = 6

# RFC 4704 §4.1, flags of option 39
FQDN_S = 1
FQDN_O = 2
FQDN_N = 4

Options = tuple[tuple[int, bytes], ...]


def parse_options(data: bytes) -> Options:
    """Parse options until the end of `data`."""
    options = []
    position = 0
    while position < len(data):
        if position + 4 > len(data):
            raise Truncated("DHCPv6 option")
        code, size = struct.unpack_from("!HH", data, position)
        position += 4
        if position + size > len(data):
            raise Truncated(f"DHCPv6 option {code} of {size} bytes in {len(data) - position}")
        options.append((code, data[position : position + size]))
        position += size
    return tuple(options)


def emit_options(options: Options) -> bytes:
    return b"".join(struct.pack("!HH", code, len(data)) + data for code, data in options)


class Dhcpv6(NamedTuple):
    """A message of a client or a server."""

    type: int
    transaction: bytes  # 3 bytes
    options: Options = ()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        if len(data) < 4:
            raise Truncated(f"DHCPv6 message of {len(data)} bytes")
        if not SOLICIT <= data[0] <= INFORMATION_REQUEST:
            raise Malformed(f"DHCPv6 message type {data[0]}")
        return cls(data[0], data[1:4], parse_options(data[4:]))

    def emit(self) -> bytes:
        return bytes([self.type]) + self.transaction + emit_options(self.options)

    def option(self, code: int) -> bytes | None:
        """Return the contents of the first option of this code."""
        for candidate, data in self.options:
            if candidate == code:
                return data
        return None

    def requested(self, code: int) -> bool:
        """Whether the option request option lists `code` (RFC 8415 §21.7)."""
        data = self.option(OPTION_REQUEST) or b""
        if len(data) % 2:
            raise Malformed("DHCPv6 option request")
        return any(data[at : at + 2] == struct.pack("!H", code) for at in range(0, len(data), 2))

    def __str__(self) -> str:
        parts = [f"DHCPv6 {TYPES[self.type]}", f"xid 0x{self.transaction.hex()}"]
        return ", ".join(parts) + " (options " + " ".join(str(code) for code, _ in self.options) + ")"


class IdentityAssociation(NamedTuple):
    """Contents of IA_NA, IA_TA and IA_PD (RFC 8415 §21.4, §21.5, §21.21)."""

    kind: int  # the option's code
    iaid: bytes  # 4 bytes
    t1: int = 0  # seconds, not in IA_TA
    t2: int = 0
    options: Options = ()

    @classmethod
    def parse(cls, kind: int, data: bytes) -> Self:
        head = 4 if kind == IA_TA else 12
        if len(data) < head:
            raise Truncated(f"identity association of {len(data)} bytes")
        t1, t2 = (0, 0) if kind == IA_TA else struct.unpack_from("!II", data, 4)
        return cls(kind, data[:4], t1, t2, parse_options(data[head:]))

    def emit(self) -> bytes:
        times = b"" if self.kind == IA_TA else struct.pack("!II", self.t1, self.t2)
        return self.iaid + times + emit_options(self.options)

    def addresses(self) -> tuple[IaAddress, ...]:
        """Return the addresses inside."""
        return tuple(IaAddress.parse(data) for code, data in self.options if code == IA_ADDRESS)


class IaAddress(NamedTuple):
    """Contents of an IA address option (RFC 8415 §21.6)."""

    address: bytes
    preferred: int  # seconds
    valid: int
    options: Options = ()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        if len(data) < 24:
            raise Truncated(f"IA address of {len(data)} bytes")
        address, preferred, valid = struct.unpack_from("!16sII", data)
        return cls(address, preferred, valid, parse_options(data[24:]))

    def emit(self) -> bytes:
        return struct.pack("!16sII", self.address, self.preferred, self.valid) + emit_options(self.options)

    def __str__(self) -> str:
        return f"{text(self.address)} preferred {self.preferred} valid {self.valid}"


def status(code: int, message: str = "") -> tuple[int, bytes]:
    """Return a status code option (RFC 8415 §21.13)."""
    return STATUS_CODE, struct.pack("!H", code) + message.encode()


def duid_ll(mac: bytes) -> bytes:
    """Return the DUID of an Ethernet address (RFC 8415 §11.4)."""
    return struct.pack("!HH", 3, 1) + mac
