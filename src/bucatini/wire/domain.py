r"""Domain names as labels with lengths in front (RFC 1035 §3.1), alone and in lists, with and without compression.

DHCP options 81 and 119, DHCPv6 options 24 and 39 and the DNSSL option of router advertisements carry them. A name is
text as in a zone file, without the dot of the root at its end: a dot or backslash inside a label is written `\\.` or
`\\\\`, a byte that is no printable ASCII `\\ddd` (RFC 1035 §5.1). The root itself is the empty text.
"""

from __future__ import annotations

from bucatini.errors import Malformed, Truncated

LABEL_MAX = 63  # bytes, RFC 1035 §2.3.4
NAME_MAX = 255  # bytes, lengths and the root's zero byte included
_POINTER = 0xC0  # RFC 1035 §4.1.4
_OFFSET_MAX = 0x3FFF  # that a pointer can hold


def _labels(name: str) -> list[bytes]:
    """Split text into labels.

    Raises:
        Malformed: an empty label, one of more than 63 bytes, or a broken escape.
    """
    if not name:
        return []
    labels = [bytearray()]
    position = 0
    while position < len(name):
        char = name[position]
        position += 1
        if char == ".":
            labels.append(bytearray())
        elif char != "\\":
            labels[-1] += char.encode("utf-8", "surrogateescape")
        elif name[position : position + 1].isdigit():
            digits = name[position : position + 3]
            if len(digits) < 3 or not (digits.isascii() and digits.isdigit()) or int(digits) > 255:
                raise Malformed(f"escape in the name '{name}'")
            labels[-1].append(int(digits))
            position += 3
        elif position < len(name):
            labels[-1] += name[position].encode("utf-8", "surrogateescape")
            position += 1
        else:
            raise Malformed(f"escape in the name '{name}'")
    if any(not 0 < len(label) <= LABEL_MAX for label in labels):
        raise Malformed(f"length of a label in the name '{name}'")
    return [bytes(label) for label in labels]


def _text(label: bytes) -> str:
    return "".join(
        f"\\{chr(byte)}" if byte in b".\\" else chr(byte) if 0x20 < byte < 0x7F else f"\\{byte:03}" for byte in label
    )


def emit(name: str) -> bytes:
    """Return the name in wire format, uncompressed; a dot at its end makes no difference.

    Raises:
        Malformed: a label or the whole is too long, or there is an empty label.
    """
    trimmed = name.removesuffix(".")
    # A dot behind an odd number of backslashes is one of the label
    if (len(trimmed) - len(trimmed.rstrip("\\"))) % 2:
        trimmed = name
    data = b"".join(bytes([len(label)]) + label for label in _labels(trimmed)) + b"\0"
    if len(data) > NAME_MAX:
        raise Malformed(f"length of the name '{name}'")
    return data


def parse_at(data: bytes, position: int = 0, *, compressed: bool = False) -> tuple[str, int]:
    """Parse the name at `position`; returns it and the position behind it.

    Args:
        compressed: pointers to earlier names in `data` are followed; else they are malformed.
    """
    labels: list[str] = []
    length = 1
    end = -1  # behind the first pointer
    bound = position  # each pointer must go further back than the one before: no loops
    while True:
        if position >= len(data):
            raise Truncated("domain name")
        size = data[position]
        if size & _POINTER == _POINTER and compressed:
            if position + 1 >= len(data):
                raise Truncated("domain name")
            if end < 0:
                end = position + 2
            position = (size & ~_POINTER) << 8 | data[position + 1]
            if position >= bound:
                raise Malformed("pointer of a domain name does not point back")
            bound = position
            continue
        if size > LABEL_MAX:
            raise Malformed(f"length {size} of a label")
        position += 1
        if size == 0:
            return ".".join(labels), position if end < 0 else end
        if position + size > len(data):
            raise Truncated("domain name")
        length += 1 + size
        if length > NAME_MAX:
            raise Malformed("length of a domain name")
        labels.append(_text(data[position : position + size]))
        position += size


def parse(data: bytes) -> str:
    """Parse one uncompressed name that fills `data`."""
    name, end = parse_at(data)
    if end != len(data):
        raise Malformed(f"{len(data) - end} bytes behind a domain name")
    return name


def emit_list(names: tuple[str, ...]) -> bytes:
    """Return names one behind the other, each ended by its own zero byte."""
    return b"".join(map(emit, names))


def emit_compressed(names: tuple[str, ...]) -> bytes:
    """Return names one behind the other, where ends that occurred before are pointers (RFC 3397 §2)."""
    data = bytearray()
    known: dict[bytes, int] = {}
    for name in names:
        rest = emit(name)
        while rest != b"\0":
            if rest in known:
                data += (_POINTER << 8 | known[rest]).to_bytes(2, "big")
                break
            if len(data) <= _OFFSET_MAX:
                known[rest] = len(data)
            size = rest[0] + 1
            data += rest[:size]
            rest = rest[size:]
        else:
            data += b"\0"
    return bytes(data)


def parse_list(data: bytes, *, compressed: bool = False) -> tuple[str, ...]:
    """Parse names until the end of `data`."""
    names = []
    position = 0
    while position < len(data):
        name, position = parse_at(data, position, compressed=compressed)
        names.append(name)
    return tuple(names)
