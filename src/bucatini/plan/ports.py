"""Port specifications of -t, -u, -T and -U: from text to data, and to the forward rules they become.

A specification keeps where to listen and which ports go where; `rules` turns those of one protocol into
`ForwardRule`s.

    none | [ADDR][%IF]/PORTS | PORTS
    PORTS: a comma list of  FIRST[-LAST][:[TOADDR/]TO[-TOLAST]]   FIRST[-LAST]:TOADDR   ~FIRST[-LAST]
                            all[:TOADDR]   auto

Exclusions win over everything else in their list; a list of nothing but exclusions means all other ports. Neither
that nor `all` includes the ports that the kernel hands out itself (ip_local_port_range), and neither insists on
every port (`weak`). With `auto` in it, a list means those of its ports to which something is bound on the other side
(`runtime/auto`); `auto` alone stands for `all,auto`. Several specifications add up; named ports take precedence over
those of `all`, whatever the order. IPv6 addresses may stand in brackets, and behind a colon must where FIRST:TOADDR
could be read as an address.

What is wrong with a specification is a UsageError in one line, names and values of the user's made printable.
"""

from __future__ import annotations

from bucatini.errors import UsageError
from bucatini.lean import sockets
from bucatini.lean.record import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

PORT_MAX = 65535
OUTWARD = ("-T", "-U")  # from the namespace to the host
WILDCARDS = ("0.0.0.0", "::")


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
    auto: bool = False  # of all these, those bound on the other side


class ForwardRule(NamedTuple):
    """One contiguous run of host ports, ready to be bound."""

    protocol: int  # 6 or 17
    address: str | None  # None: any address of the enabled versions
    interface: str | None
    first: int
    last: int
    to: int
    to_address: str | None
    weak: bool  # a port that cannot be bound is no error
    text: str
    follows: bool = False  # a UDP port that only follows TCP's: not even one of the rule has to be bound
    auto: bool = False  # bound, each port by itself, while something is bound on the other side


def shown(text: str) -> str:
    """Return what a user gave as it may stand in a message of one line."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= 200 else text[:200] + "..."


def is_interface_name(text: str) -> bool:
    """Whether this is printable and the kernel takes it as the name of an interface (dev_valid_name)."""
    return (
        text.isprintable()
        and 0 < len(text.encode()) < 16  # IFNAMSIZ
        and text not in {".", ".."}
        and not any(c in "/: " for c in text)
    )


def canonical(address: str) -> str | None:
    """Return an address in canonical text, scope id kept; None when it is not one."""
    bare, percent, zone = address.partition("%")
    for family in (sockets.AF_INET, sockets.AF_INET6):
        try:
            text = sockets.inet_ntop(family, sockets.inet_pton(family, bare))
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
    text = f"{option} {shown(value)}"
    try:
        spec = _parse(text, value)
        if option not in OUTWARD:
            for entry in spec.ranges:
                if entry.to_address is not None and is_loopback(entry.to_address):
                    raise _Fault(f"'{entry.to_address}' cannot be reached from outside the namespace")
        return spec
    except _Fault as fault:
        raise UsageError(f"{option}: invalid port specification '{shown(value)}': {fault}") from None


def _parse(text: str, value: str) -> ForwardSpec:
    if value == "none":
        return ForwardSpec(text)
    address, interface, ports = _listen_on(value)
    ranges: list[PortRange] = []
    excluded: list[tuple[int, int]] = []
    everything: PortRange | None = None
    auto = False
    for element in ports.split(","):
        if not element:
            raise _Fault("an empty element")
        if element == "all" or element.startswith("all:"):
            if everything is not None:
                raise _Fault("'all' is given twice")
            to_address = None if element == "all" else _guest_address(element[4:])
            everything = PortRange(1, PORT_MAX, 1, to_address, weak=True)
        elif element[0] == "~":
            excluded.append(_range(element[1:]))
        elif element == "auto":
            auto = True
        elif element == "none":
            raise _Fault("'none' stands alone")
        else:
            ranges.append(_mapping(element))
    if everything is None and not ranges:
        everything = PortRange(1, PORT_MAX, 1, weak=True)
    ranges.sort(key=_first)
    for at, entry in enumerate(ranges[1:]):
        if entry.first <= ranges[at].last:
            raise _Fault(f"port {entry.first} is given twice")
    if everything is not None:
        ranges = [*ranges, everything]
    if address is not None:
        for entry in ranges:
            if entry.to_address is not None and _is_v6(entry.to_address) != _is_v6(address):
                raise _Fault(f"'{address}' and '{entry.to_address}' are not of one IP version")
    return ForwardSpec(text, address, interface, tuple(ranges), tuple(excluded), auto)


def _first(entry: PortRange) -> int:
    return entry.first


def _is_v6(address: str) -> bool:
    return ":" in address


def _listen_on(value: str) -> tuple[str | None, str | None, str]:
    """Split off the address and interface in front of the first slash that is not behind a colon of a mapping."""
    head, slash, ports = value.partition("/")
    if not slash:
        return None, None, value
    if head.startswith("["):
        inner, closed, rest = head[1:].partition("]")
        if not closed:
            raise _Fault("a bracket is not closed")
        if not _is_v6(inner):
            raise _Fault(f"'{shown(inner)}' is no IPv6 address")
        if rest and not rest.startswith("%"):
            raise _Fault(f"'{shown(rest)}' behind the bracket")
        head = inner + rest
    address, percent, interface = head.partition("%")
    if address and canonical(address) is None:
        # FIRST:TOADDR/TO has a slash too: then what stands before it is no address
        if ":" in head and not percent and not value.startswith("["):
            return None, None, value
        raise _Fault(f"'{shown(address)}' is no address")
    if percent and not is_interface_name(interface):
        raise _Fault(f"'{shown(interface)}' is no interface name")
    if not address and not percent:
        raise _Fault("nothing in front of the slash")
    if not ports:
        raise _Fault("no ports behind the slash")
    if address and _is_multicast(address):
        raise _Fault(f"'{address}' is a multicast address")
    return (canonical(address) if address else None), interface if percent else None, ports


def _is_multicast(address: str) -> bool:
    family = sockets.AF_INET6 if _is_v6(address) else sockets.AF_INET
    first = sockets.inet_pton(family, address)[0]
    return first == 0xFF if family == sockets.AF_INET6 else 224 <= first < 240


def is_loopback(address: str) -> bool:
    """Whether this is an address of loopback, in canonical text."""
    return address == "::1" or address.startswith("127.")


def _guest_address(text: str) -> str:
    """Return the address that a mapping names."""
    bracketed = text.startswith("[") and text.endswith("]")
    address = canonical(text[1:-1] if bracketed else text)
    if address is None or "%" in address or (bracketed and not _is_v6(address)):
        raise _Fault(f"'{shown(text)}' is no address")
    if _is_multicast(address) or address in {*WILDCARDS, "255.255.255.255"}:
        raise _Fault(f"'{address}' is no address of a single host")
    return address


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 5:
        raise _Fault(f"'{shown(text)}' is no port")
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
    elif target.startswith("[") or canonical(target) is not None:
        return PortRange(first, last, first, _guest_address(target))
    to, to_last = _range(to_ports)
    if "-" in to_ports and to_last - to != last - first:
        raise _Fault(f"'{ports}' and '{to_ports}' are not of one length")
    if to + last - first > PORT_MAX:
        raise _Fault(f"'{element}' goes beyond port {PORT_MAX}")
    return PortRange(first, last, to, to_address)


def _without(first: int, last: int, holes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what is left of first..last without the holes, ascending."""
    left = []
    for low, high in sorted(holes):
        if low > last:
            break
        if first < low:
            left.append((first, low - 1))
        first = max(first, high + 1)
    if first <= last:
        left.append((first, last))
    return left


def rules(
    specs: Iterable[ForwardSpec], protocol: int, ephemeral: tuple[int, int], tolerant: bool = False
) -> tuple[ForwardRule, ...]:
    """Return the rules of one protocol's specifications: those of named ports first, none overlapping another.

    What a specification says again, a broader one before or behind it included, counts once; what one says without
    `auto` counts for one with it.

    Args:
        ephemeral: first and last port that the kernel hands out itself.
        tolerant: every port may fail to bind: UDP ports that only follow TCP's.

    Raises:
        UsageError: two specifications send the same port of the same address to different places.
    """
    specs = sorted(specs, key=_is_auto)
    named: list[ForwardRule] = []
    others: list[ForwardRule] = []
    for known, weak in ((named, False), (others, True)):
        for spec in specs:
            for entry in spec.ranges:
                if entry.weak != weak:
                    continue
                rule = _rule(spec, entry, protocol, tolerant)
                holes = list(spec.excluded)
                has = [other for other in named if weak and other.auto and not rule.auto and _says(rule, other)]
                if weak:
                    holes += [ephemeral, *((r.first, r.last) for r in named if r not in has and _meet(r, rule))]
                parts = _without(entry.first, entry.last, holes)
                for other in has:  # it has their ports in any case
                    _replace(named, other, parts)
                for first, last in parts:
                    _add(known, _part(rule, first, last))
    return (*named, *others)


def _is_auto(spec: ForwardSpec) -> bool:
    return spec.auto


def _rule(spec: ForwardSpec, entry: PortRange, protocol: int, tolerant: bool) -> ForwardRule:
    address = spec.address
    if address is None and entry.to_address is not None:
        # A connection cannot change its IP version on the way
        address = "::" if _is_v6(entry.to_address) else "0.0.0.0"
    return ForwardRule(
        protocol=protocol,
        address=address,
        interface=spec.interface,
        first=entry.first,
        last=entry.last,
        to=entry.to,
        to_address=entry.to_address,
        weak=entry.weak or tolerant,
        text=spec.text,
        follows=tolerant,
        auto=spec.auto,
    )


def _part(rule: ForwardRule, first: int, last: int) -> ForwardRule:
    return rule._replace(first=first, last=last, to=rule.to + first - rule.first)


def _covers(rule: ForwardRule, other: ForwardRule) -> bool:
    """Whether whatever arrives for the address and interface of `other` arrives for those of `rule`."""
    if rule.interface is not None and rule.interface != other.interface:
        return False
    if rule.address is None or rule.address == other.address:
        return True
    if other.address is None:
        return False
    return rule.address == ("::" if _is_v6(other.address) else "0.0.0.0")


def _says(rule: ForwardRule, other: ForwardRule) -> bool:
    """Whether, for the ports that both have, a rule says what another says, and perhaps more."""
    return _covers(rule, other) and not _goes_elsewhere(rule, other)


def _goes_elsewhere(rule: ForwardRule, other: ForwardRule) -> bool:
    return rule.to - rule.first != other.to - other.first or rule.to_address != other.to_address


def _meet(rule: ForwardRule, other: ForwardRule) -> bool:
    """Whether the kernel would refuse to bind one port for both."""
    if rule.interface is not None and other.interface is not None and rule.interface != other.interface:
        return False
    rule, other = rule._replace(interface=None), other._replace(interface=None)
    return _covers(rule, other) or _covers(other, rule)


def _add(known: list[ForwardRule], new: ForwardRule) -> None:
    """Add what is not there yet; a contradiction is an error."""
    gone = []  # to those that have the port in any case
    for other in known if new.auto else ():
        if not other.auto and (both := _shared(other, new)):
            if _goes_elsewhere(other, new) and not new.weak:
                raise UsageError(f"{new.text}: port {both[0]} goes elsewhere in '{other.text}'")
            gone.append(both)
    for first, last in _without(new.first, new.last, gone):
        _add_part(known, _part(new, first, last))


def _add_part(known: list[ForwardRule], new: ForwardRule) -> None:
    gone = []
    for other in tuple(known):
        if other.auto != new.auto or not (both := _shared(other, new)):
            continue
        if _goes_elsewhere(other, new):
            raise UsageError(f"{new.text}: port {both[0]} goes elsewhere in '{other.text}'")
        if _covers(other, new):
            gone.append(both)
        elif _covers(new, other):
            _replace(known, other, [both])
        elif new.weak:  # it does not insist
            gone.append(both)
        else:
            raise UsageError(f"{new.text}: port {both[0]} is also in '{other.text}'")
    known += [_part(new, first, last) for first, last in _without(new.first, new.last, gone)]


def _shared(rule: ForwardRule, other: ForwardRule) -> tuple[int, int] | None:
    """Return first and last of the ports that only one of two rules can have; None: there are none."""
    low, high = max(rule.first, other.first), min(rule.last, other.last)
    return (low, high) if low <= high and _meet(rule, other) else None


def _replace(known: list[ForwardRule], rule: ForwardRule, gone: Iterable[tuple[int, int]]) -> None:
    """Put what is left of a rule in its place."""
    at = known.index(rule)
    known[at : at + 1] = [_part(rule, first, last) for first, last in _without(rule.first, rule.last, gone)]
