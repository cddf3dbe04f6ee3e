"""Domain names as lists of labels (RFC 1035 §3.1), as DHCP, DHCPv6 and NDP carry them."""

from collections.abc import Iterable

from bucatini.errors import Malformed, Truncated

NAME_MAX = 255  # bytes, RFC 1035 §2.3.4


def encode(name: str) -> bytes:
    """Return a name, without compression, ended by the root. Raises Malformed for an empty or overlong label."""
    out = b""
    for label in name.rstrip(".").split("."):
        raw = label.encode()
        if not 0 < len(raw) < 64:
            raise Malformed(f"domain name {name!r}")
        out += bytes([len(raw)]) + raw
    if len(out) >= NAME_MAX:
        raise Malformed(f"domain name {name!r}")
    return out + b"\0"


def encode_list(names: Iterable[str]) -> bytes:
    """Return names one behind the other, each ended by the root (RFC 3397, RFC 3646 §4, RFC 8106 §5.2)."""
    return b"".join(encode(name) for name in names)


def decode(data: bytes, at: int = 0) -> tuple[str, int]:
    """Return the name at `at` and the offset behind it; compression is refused. Raises Truncated, Malformed."""
    labels: list[str] = []
    start = at
    while True:
        if at >= len(data):
            raise Truncated("domain name")
        length = data[at]
        at += 1
        if length == 0:
            return ".".join(labels), at
        if length > 63:
            raise Malformed("domain name: compression")
        if at + length > len(data):
            raise Truncated("domain name")
        labels.append(data[at : at + length].decode("ascii", "backslashreplace"))
        at += length
        if at - start >= NAME_MAX:
            raise Malformed("domain name: too long")
