"""DHCPv6 messages (RFC 8415) between client and server; relays are not spoken to."""

import struct
from typing import NamedTuple

from bucatini.errors import Truncated

CLIENT_PORT, SERVER_PORT = 546, 547

SOLICIT, ADVERTISE, REQUEST, CONFIRM, RENEW, REBIND, REPLY, RELEASE, DECLINE = range(1, 10)
INFORMATION_REQUEST = 11

OPT_CLIENT_ID = 1
OPT_SERVER_ID = 2
OPT_IA_NA = 3
OPT_IA_TA = 4
OPT_IA_ADDRESS = 5
OPT_STATUS = 13
OPT_RAPID_COMMIT = 14
OPT_DNS = 23  # RFC 3646
OPT_SEARCH = 24
OPT_IA_PD = 25
OPT_FQDN = 39  # RFC 4704

SUCCESS, UNSPECIFIED, NO_ADDRESSES, NO_BINDING, NOT_ON_LINK, USE_MULTICAST, NO_PREFIXES = range(7)
INFINITE = 0xFFFFFFFF

Options = tuple[tuple[int, bytes], ...]


class Dhcpv6(NamedTuple):
    """A message; options in order, repeated ones kept."""

    type: int
    transaction: int  # 24 bits
    options: Options

    def option(self, code: int) -> bytes | None:
        """Return the value of the first option of this code."""
        return next((value for found, value in self.options if found == code), None)

    @classmethod
    def parse(cls, data: bytes) -> "Dhcpv6":
        """Raises Truncated."""
        if len(data) < 4:
            raise Truncated("DHCPv6")
        return cls(data[0], int.from_bytes(data[1:4], "big"), parse_options(data[4:]))

    def emit(self) -> bytes:
        """Return the message."""
        return bytes([self.type]) + self.transaction.to_bytes(3, "big") + emit_options(self.options)

    def __str__(self) -> str:
        names = "? Solicit Advertise Request Confirm Renew Rebind Reply Release Decline Reconfigure Information".split()
        return f"DHCPv6 {names[self.type] if self.type < len(names) else self.type} xid {self.transaction:#08x}"


def parse_options(data: bytes) -> Options:
    """Return code and value of each option. Raises Truncated."""
    options = []
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise Truncated("DHCPv6 option")
        code, length = struct.unpack_from(">HH", data, at)
        at += 4
        if at + length > len(data):
            raise Truncated("DHCPv6 option")
        options.append((code, data[at : at + length]))
        at += length
    return tuple(options)


def emit_options(options: Options) -> bytes:
    """Return options one behind the other."""
    return b"".join(struct.pack(">HH", code, len(value)) + value for code, value in options)


def status(code: int, text: str) -> tuple[int, bytes]:
    """Return a status code option (RFC 8415 §21.13)."""
    return OPT_STATUS, struct.pack(">H", code) + text.encode()


def address_option(address: bytes) -> tuple[int, bytes]:
    """Return an address that is valid for ever, for inside an IA (RFC 8415 §21.6)."""
    return OPT_IA_ADDRESS, address + struct.pack(">II", INFINITE, INFINITE)
