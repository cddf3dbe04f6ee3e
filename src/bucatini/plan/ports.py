"""Port specifications of -t and -u, as data, and the forward rules they become.

A specification (`ForwardSpec`) keeps what the user wrote; `rules` turns the specifications of one protocol into
`ForwardRule`s: which host address, interface and port is listened on, and which guest address and port it goes to.
"""

from typing import NamedTuple


class PortRange(NamedTuple):
    """Host ports `first`..`last` to guest ports `to`.. (same count), optionally to a guest address of their own."""

    first: int
    last: int
    to: int  # guest port that `first` goes to
    to_address: str | None = None
    weak: bool = False  # from "all" or an exclusion-only list: a port that cannot be bound is no error


class ForwardSpec(NamedTuple):
    """One -t or -u option: where to listen, and which ports go where."""

    text: str  # as given, for messages
    address: str | None = None  # listen on this host address; None: any
    interface: str | None = None  # listen on this host interface; None: any
    ranges: tuple[PortRange, ...] = ()  # exclusions already taken out; disjoint, ascending


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
