"""Port specifications of -t and -u: from text to data, and to the forward rules they become.

A specification keeps where to listen and which ports go where; `rules` turns those of one protocol into
`ForwardRule`s.

    none | all | auto | [ADDR][%IF]/PORTS | PORTS
    PORTS: a comma list of  FIRST[-LAST][:[TOADDR/]TO[-TOLAST]]   FIRST[-LAST]:TOADDR   ~FIRST[-LAST]   all[:TOADDR]

Exclusions win over everything else in their list; a list of nothing but exclusions means all other ports. Neither
that nor `all` includes the ports that the kernel hands out itself (ip_local_port_range), and neither insists on
every port (`weak`).
"""

import socket
from collections.abc import Iterable
from typing import NamedTuple

from bucatini.errors import UsageError

PORT_MAX = 65535


class PortRange(NamedTuple):
    """Host ports `first`..`last` to guest ports from `to` on (same count), perhaps to a guest address of their own."""

    first: int
    last: int
    to: int
    to_address: str | None = None
    weak: bool = False  # a port that cannot be bound is no error


class ForwardSpec(NamedTuple):
    """One -t or -u option: where to listen, and which ports go where."""

    text: str  # as given, for messages: "-t 8080"
    address: str | None = None  # listen on this host address; None: any
    interface: str | None = None  # listen on this host interface; None: any
    ranges: tuple[PortRange, ...] = ()  # ascending, disjoint
    excluded: tuple[tuple[int, int], ...] = ()
    auto: bool = False  # those bound on the other side


class ForwardRule(NamedTuple):
    """One contiguous run of host ports, ready to be bound."""

    protocol: int  # 6 or 17
    address: str | None  # None: any address of the enabled versions
    interface: str | None
    first: int
    last: int
    to: int
    to_address: str | None
    weak: bool
    text: str


def canonical(address: str) -> str | None:
    """Return an address in canonical text, scope id kept; None when it is not one."""
    bare, percent, zone = address.partition("%")
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            text = socket.inet_ntop(family, socket.inet_pton(family, bare))
        except (OSError, ValueError):
            continue
        return text + percent + zone
    return None


class _Fault(Exception):
    """What is wrong with a specification."""


def parse_forward(option: str, value: str) -> ForwardSpec:
    """Parse the value of a forward option ("-t", "-u", "-T", "-U"); `none` gives no ranges.

    Raises:
        UsageError: names the option, the value and what is wrong with it.
    """
    text = f"{option} {value}"
    try:
        return _parse(text, value)
    except _Fault as fault:
        raise UsageError(f"{option}: invalid port specification '{value}': {fault}") from None


def _parse(text: str, value: str) -> ForwardSpec:
    if value == "none":
        return ForwardSpec(text)
    address, interface, ports = _listen_on(value)
    if ports == "auto":
        return ForwardSpec(text, address, interface, auto=True)
    ranges: list[PortRange] = []
    excluded: list[tuple[int, int]] = []
    everything: PortRange | None = None
    for element in ports.split(","):
        if not element:
            raise _Fault("an empty element")
        if element == "all" or element.startswith("all:"):
            to_address = None
            if element != "all":
                to_address = _guest_address(element[4:])
            everything = PortRange(1, PORT_MAX, 1, to_address, weak=True)
        elif element[0] == "~":
            excluded.append(_range(element[1:]))
        elif element == "auto":
            raise _Fault("'auto' stands alone")
        elif element == "none":
            raise _Fault("'none' stands alone")
        else:
            ranges.append(_mapping(element))
    if everything is None and not ranges:
        everything = PortRange(1, PORT_MAX, 1, weak=True)
    ranges.sort()
    for at, entry in enumerate(ranges[1:]):
        if entry.first <= ranges[at].last:
            raise _Fault(f"port {entry.first} is given twice")
    if everything is not None:
        ranges = [*ranges, everything]
    return ForwardSpec(text, address, interface, tuple(ranges), tuple(excluded))


def _listen_on(value: str) -> tuple[str | None, str | None, str]:
    """Split off the address and interface in front of the first slash that is not behind a colon of a mapping."""
    head, slash, ports = value.partition("/")
    if not slash:
        return None, None, value
    # FIRST:TOADDR/TO has a slash too: then what stands before it is no address
    if head.startswith("["):
        inner, closed, rest = head[1:].partition("]")
        if not closed:
            raise _Fault("a bracket is not closed")
        head = inner + rest
    address, percent, interface = head.partition("%")
    if address and canonical(address) is None:
        if ":" in head and not percent:
            return None, None, value
        raise _Fault(f"'{address}' is no address")
    if percent and not (0 < len(interface.encode()) < 16):
        raise _Fault(f"'{interface}' is no interface name")
    if not address and not percent:
        raise _Fault("nothing in front of the slash")
    if not ports:
        raise _Fault("no ports behind the slash")
    return (canonical(address) if address else None), interface if percent else None, ports


def _guest_address(text: str) -> str:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    address = canonical(bare)
    if address is None:
        raise _Fault(f"'{text}' is no address")
    return address


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 5:
        raise _Fault(f"'{text}' is no port")
    port = int(text)
    if not 0 < port <= PORT_MAX:
        raise _Fault(f"port {port} is not in 1..{PORT_MAX}")
    return port


def _range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    low = _port(first)
    high = _port(last) if dash else low
    if high < low:
        raise _Fault(f"range '{text}' runs backwards")
    return low, high


def _mapping(element: str) -> PortRange:
    """Parse FIRST[-LAST][:[TOADDR/]TO[-TOLAST]] or FIRST[-LAST]:TOADDR."""
    ports, colon, target = element.partition(":")
    first, last = _range(ports)
    if not colon:
        return PortRange(first, last, first)
    to_address = None
    where, slash, to_ports = target.rpartition("/")
    if slash:
        to_address = _guest_address(where)
    elif canonical(target.strip("[]")) is not None:
        return PortRange(first, last, first, _guest_address(target))
    to, to_last = _range(to_ports)
    if "-" in to_ports and to_last - to != last - first:
        raise _Fault(f"'{ports}' and '{to_ports}' are not of one length")
    if to + last - first > PORT_MAX:
        raise _Fault(f"'{element}' goes beyond port {PORT_MAX}")
    return PortRange(first, last, to, to_address)


def _without(first: int, last: int, holes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what is left of first..last without the holes."""
    left = [(first, last)]
    for low, high in holes:
        left = [
            piece
            for a, b in left
            for piece in ((a, min(b, low - 1)), (max(a, high + 1), b))
            if piece[0] <= piece[1] and not (low <= piece[0] and piece[1] <= high)
        ]
        left = sorted(set(left))
    return left


def rules(
    specs: Iterable[ForwardSpec], protocol: int, ephemeral: tuple[int, int], tolerant: bool = False
) -> tuple[ForwardRule, ...]:
    """Return the rules of one protocol's specifications.

    Args:
        ephemeral: first and last port that the kernel hands out itself.
        tolerant: every port may fail to bind: UDP ports that only follow TCP's.

    Raises:
        UsageError: two specifications send the same port of the same address to different places.
    """
    result: list[ForwardRule] = []
    for spec in specs:
        named = [(r.first, r.last) for r in spec.ranges if not r.weak]
        for entry in spec.ranges:
            holes = list(spec.excluded)
            if entry.weak:
                holes += [ephemeral, *named]
            for first, last in _without(entry.first, entry.last, holes):
                rule = ForwardRule(
                    protocol,
                    spec.address,
                    spec.interface,
                    first,
                    last,
                    entry.to + first - entry.first,
                    entry.to_address,
                    entry.weak or tolerant,
                    spec.text,
                )
                if not _merge(result, rule):
                    result.append(rule)
    return tuple(result)


def _merge(known: list[ForwardRule], rule: ForwardRule) -> bool:
    """Whether the rule is there already; a contradiction is an error."""
    for other in known:
        if (other.address, other.interface) != (rule.address, rule.interface):
            continue
        if other.last < rule.first or rule.last < other.first:
            continue
        same = other.to - other.first == rule.to - rule.first and other.to_address == rule.to_address
        if same and other.first <= rule.first and rule.last <= other.last:
            return True
        if other.weak or rule.weak:
            continue  # what is bound first stays; the other one tolerates it
        what = "is also" if same else "goes elsewhere"
        raise UsageError(f"{rule.text}: port {max(other.first, rule.first)} {what} in '{other.text}'")
    return False
