"""Ports that forward themselves: `auto` of -t, -u, -T and -U.

Every second the sockets that are bound in the namespace and on the host are compared with the forwards that follow
them: what is new is bound on the other side, what is gone is unbound; connections go on. UDP follows TCP's ports as
well.

Left out: our own sockets, known by their inodes, so that a forward never leads back to itself; unless they are named
beside `auto`, the ports that the kernel hands out (ip_local_port_range); what was excluded, or is forwarded anyway.
Towards the namespace: what is bound to its loopback alone, which is not to be reached from outside (L2), unless
--host-lo-to-ns-lo leads there, and then from the host's loopback only. From the namespace: what the host's loopback
does not reach. Where another address was asked for (FIRST:TOADDR), what is bound neither there nor to all.

A port that somebody else has on the other side is tried again a second later.

The guest decides how many ports there are to follow, and all of this is done between turns of the loop. So a look goes
on over several turns if it must: `scan` does what fits into one (`TURN_NS`) and says when the next may come (`SHARE`).
What is kept of a socket is its port. There are so many forwards and no more: those that there are stay, and while
there is no room, nothing is bound. Where more sockets are bound than are looked at, no forward is given up for not
having been seen. Each of these is told once.
"""

from __future__ import annotations

import errno
import os
import time
from bisect import bisect_right

from bucatini.errors import HostError
from bucatini.host.listeners import TABLES, Ports, ProcTables, SocketDiag, add_ports, is_any, is_loopback, no_ports
from bucatini.host.netlink import pack
from bucatini.lean import sockets
from bucatini.lean.record import TYPE_CHECKING, NamedTuple
from bucatini.plan.ports import ForwardRule
from bucatini.runtime.forwards import (
    LOOPBACK,
    Bound,
    Versions,
    ask_in_namespace,
    ask_on_host,
    bind_on_host,
    made_by,
    serve,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from bucatini.datapath.loop import DataPath
    from bucatini.guest.maker import Maker
    from bucatini.plan.settings import Settings

# syscalls auto: fstat newfstatat close

SECOND_NS = 1_000_000_000
TURN_NS = 4_000_000  # of our own processor time, for one turn: some 150 forwards, or 2,000 sockets looked at
SHARE = 20  # looking for ports takes one part in so many of the time at most
PAUSE_NS = 10_000_000  # between turns at least, when a maker has to answer
PAUSES = 100  # that are made for its answers
TRIES = 4096  # to bind a port, for each side, until what is bound is looked at again
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
ANY = {4: "0.0.0.0", 6: "::"}
LOOPBACKS = {4: "127.0.0.1", 6: "::1"}


Source = SocketDiag | ProcTables  # knows the bound sockets of a namespace


class Active(NamedTuple):
    """A forward that follows a port."""

    handle: int  # of the data path
    inode: int


class Seen(NamedTuple):
    """What is bound on one side."""

    found: Ports
    alone: Ports  # to its loopback alone, where that is reached
    addressed: dict[str, Ports]  # to one of the addresses that were asked for, or to all
    whole: bool  # all of it was looked at


class Leads:
    """Which rules lead to a port of the other side."""

    def __init__(self, rules: list[ForwardRule]) -> None:
        begin: dict[int, list[ForwardRule]] = {}
        end: dict[int, list[ForwardRule]] = {}
        for rule in rules:
            begin.setdefault(rule.to, []).append(rule)
            end.setdefault(rule.to + rule.last - rule.first + 1, []).append(rule)
        self.bounds = sorted({0, *begin, *end})
        self.groups: list[tuple[ForwardRule, ...]] = []  # from each of the bounds on
        now: dict[ForwardRule, None] = {}
        for port in self.bounds:
            for rule in end.get(port, ()):
                del now[rule]
            now |= dict.fromkeys(begin.get(port, ()))
            self.groups.append(tuple(now))
        self.addresses = {rule.to_address: pack(rule.to_address) for rule in rules if rule.to_address is not None}

    def to(self, port: int) -> tuple[ForwardRule, ...]:
        return self.groups[bisect_right(self.bounds, port) - 1]


def host_source() -> Source:
    """Return what knows the host's sockets."""
    return _working() or ProcTables()


def _working(fd: int | None = None) -> SocketDiag | None:
    """Return what asks the kernel, if that works."""
    try:
        source = SocketDiag(fd)
    except HostError:
        return None
    try:
        for _ in source.parts():
            pass
    except HostError:
        source.close()
        return None
    return source


def guest_source(maker: Maker) -> Source:
    """Return what knows the sockets of the guest's namespace; HostError."""
    answers: list[tuple[int, int]] = []
    maker.diagnostics(lambda fd, error: answers.append((fd, error)))
    maker.wait()
    if answers[0][0] >= 0:
        source = _working(answers[0][0])
        if source is not None:
            return source
    fds: dict[tuple[int, int], int] = {}
    for key in TABLES:
        maker.table(lambda fd, _, key=key: fds.__setitem__(key, fd), *key)  # type: ignore[misc]
        maker.wait()
    return ProcTables({key: fd for key, fd in fds.items() if fd >= 0})


class AutoForwards:
    """The forwards that follow ports."""

    def __init__(
        self,
        path: DataPath,
        maker: Maker,
        *,
        binder: Maker | None,
        versions: Versions,
        inward: list[ForwardRule],
        outward: list[ForwardRule],
        bound: Iterable[Bound],
        settings: Settings,
        most: int,
        notice: Callable[[str], None],
    ) -> None:
        """Open what knows the bound sockets; HostError.

        Args:
            inward: rules for the host's ports to follow the namespace's, all of them with `auto`; outward: and back.
            bound: what was bound at the start.
            most: forwards that there may be at the same time.
            notice: tells what has run out, once.
        """
        self.path = path
        self.maker = maker
        self.binder = binder
        self.versions = versions
        self.settings = settings
        self.most = most
        self.notice = notice
        self.leads = {False: Leads(inward), True: Leads(outward)}
        self.ours = {False: {inode(e.fd) for e in bound if not e.guest}, True: {inode(e.fd) for e in bound if e.guest}}
        self.guest = guest_source(maker) if inward else None
        self.host = host_source() if outward else None
        self.active: dict[tuple[bool, ForwardRule], Active] = {}
        self.asked: set[tuple[bool, ForwardRule]] = set()
        self.look: Iterator[bool] | None = None  # that is under way
        self.full = False  # nothing more could be bound or served
        self.last = {False: 0, True: 0}  # port that was tried

    def scan(self) -> int:
        """Look what has changed, and follow, as far as one turn may take; returns ns until the next one.

        The time is that of our own thread: what the kernel gave to somebody else is not taken for work.
        """
        look, self.look = self.look or self._look(), None  # one that fails is begun anew
        begin = time.thread_time_ns()
        for wait in look:
            took = time.thread_time_ns() - begin
            if wait or took >= TURN_NS:
                self.look = look
                return max(PAUSE_NS, SHARE * took)
        return max(SECOND_NS, SHARE * (time.thread_time_ns() - begin))

    def _look(self) -> Iterator[bool]:
        """Look at both sides, and follow; yields wherever the turn may end, and True where it has to."""
        unfinished = True
        while unfinished:
            pauses = 0
            while self.asked and pauses < PAUSES:  # else what was asked for could be seen before we know it for ours
                pauses += 1
                yield True
            seen: dict[bool, Seen] = {}
            for guest, source in ((False, self.guest), (True, self.host)):
                if source is not None:
                    seen[guest] = yield from self._see(guest, source)
            for key in list(self.active):
                yield False
                if key in self.active and self._is_gone(key, seen[key[0]]):
                    self._drop(key)
            self.full = False
            unfinished = False
            for guest, side in seen.items():
                unfinished |= yield from self._follow(guest, side)

    def _see(self, guest: bool, source: Source) -> Generator[bool, None, Seen]:
        """Read what is bound on the other side: the namespace's for forwards on the host."""
        leads = self.leads[guest]
        seen = Seen(no_ports(), no_ports(), {address: no_ports() for address in leads.addresses}, whole=True)
        ours = self.ours[not guest]
        local = not guest and self.settings.host_lo_to_ns_lo
        for part in source.parts():
            if part is None:
                seen = seen._replace(whole=False)
                self.notice("sockets")
            else:
                usable = [entry for entry in part if leads.to(entry.port)]
                add_ports(seen.found, usable, loopback=guest, others=not guest, not_ours=ours)
                for address, raw in leads.addresses.items():
                    there = [entry for entry in usable if is_any(entry.address) or entry.address == raw]
                    add_ports(seen.addressed[address], there, loopback=True, others=True, not_ours=ours)
                if local:
                    usable = [entry for entry in usable if not is_any(entry.address) and is_loopback(entry.address)]
                    add_ports(seen.alone, usable, loopback=True, others=False, not_ours=ours)
            yield False
        return seen

    def _is_gone(self, key: tuple[bool, ForwardRule], seen: Seen) -> bool:
        """Whether there is no reason any more for a forward."""
        guest, made = key
        return seen.whole and not any(
            made in self._of(rule, made.to, seen)
            for rule in self.leads[guest].to(made.to)
            if rule.protocol == made.protocol and rule.first + made.to - rule.to == made.first
        )

    def _follow(self, guest: bool, seen: Seen) -> Generator[bool, None, bool]:
        """Add what is new, beginning behind the last port that was tried; returns whether that was not all."""
        tries = 0
        last = self.last[guest]
        kinds = (seen.found, seen.alone, *seen.addressed.values())
        ports = {port for kind in kinds for of in kind.values() for port in of}
        for port in sorted(ports, key=lambda port: (port - last - 1) % (1 << 16)):
            yield False
            if tries >= TRIES:
                return True
            for rule in self.leads[guest].to(port):
                for made in self._of(rule, port, seen):
                    if (guest, made) in self.active or (guest, made) in self.asked:
                        continue
                    if self.full or len(self.active) + len(self.asked) >= self.most:
                        self.notice("forwards")
                        return False
                    tries += 1
                    self.last[guest] = port
                    pauses = 0
                    while self._add(guest, made):
                        if pauses == PAUSES:
                            return False
                        pauses += 1
                        yield True
        return False

    def _of(self, rule: ForwardRule, port: int, seen: Seen) -> list[ForwardRule]:
        """Return the forwards that a rule makes of a port of the other side, as it is bound there."""
        address_of = ANY
        if rule.to_address is not None:
            version = _version(seen.addressed[rule.to_address], rule.protocol, port)
        else:
            version = _version(seen.found, rule.protocol, port)
            if version is None:
                version, address_of = _version(seen.alone, rule.protocol, port), LOOPBACKS
        if version is None:
            return []
        first = rule.first + port - rule.to
        return [
            ForwardRule(
                rule.protocol, address, rule.interface, first, first, port, rule.to_address, weak=True, text=rule.text
            )
            for address in self._addresses(rule, version, address_of)
        ]

    def _addresses(self, rule: ForwardRule, version: int, address_of: dict[int, str]) -> list[str | None]:
        """Return what to bind for a port that is bound for an IP version (0: both)."""
        on = [number for number, enabled in ((4, self.versions.v4), (6, self.versions.v6)) if enabled]
        on = [number for number in on if version in {0, number}]
        if rule.address is not None:
            on = [number for number in on if number == (6 if ":" in rule.address else 4)]
            if address_of is ANY or is_loopback(pack(rule.address)):
                return [rule.address] if on else []
            if not is_any(pack(rule.address)):
                return []
        if address_of is not ANY and rule.interface not in {None, LOOPBACK}:
            return []
        if len(on) == 2 and address_of is ANY:
            return [None]
        return [address_of[number] for number in on]

    def _drop(self, key: tuple[bool, ForwardRule]) -> None:
        active = self.active.pop(key)
        self.path.remove_listener(active.handle)
        self.ours[key[0]].discard(active.inode)

    def _add(self, guest: bool, rule: ForwardRule) -> bool:
        """Bind a port, or have a maker bind it; returns whether that has no room for the request now."""
        if guest:
            return self._ask(self.maker, guest, rule)
        try:
            entry = bind_on_host(rule, rule.first, self.versions, self.settings.freebind)
        except PermissionError:
            return self.binder is not None and self._ask(self.binder, guest, rule)
        except OSError as error:
            self.full |= error.errno in NO_ROOM
        else:
            self._serve(rule, entry)
        return False

    def _ask(self, maker: Maker, guest: bool, rule: ForwardRule) -> bool:
        """Have a maker bind a port; returns whether it has no room for the request now."""
        if not maker.has_room():
            return not maker.gone
        key = guest, rule
        self.asked.add(key)
        ask = ask_in_namespace if guest else ask_on_host
        try:
            ask(rule, rule.first, self.versions, maker, lambda fd, _: self._made(guest, rule, fd))
        except OSError:  # the interface is gone
            self.asked.discard(key)
        return False

    def _made(self, guest: bool, rule: ForwardRule, fd: int) -> None:
        self.asked.discard((guest, rule))
        if fd < 0:
            return
        try:
            entry = made_by(rule, rule.first, self.versions, fd, guest=guest)
        except OSError:  # the interface is gone
            os.close(fd)
        else:
            self._serve(rule, entry)

    def _serve(self, rule: ForwardRule, entry: Bound) -> None:
        try:
            handle = serve(self.path, entry, bypass=self.settings.bypass)
        except OSError:  # as many as there may be
            self.full = True
            os.close(entry.fd)
            return
        self.active[entry.guest, rule] = Active(handle, inode(entry.fd))
        self.ours[entry.guest].add(inode(entry.fd))


def _version(of: Ports, protocol: int, port: int) -> int | None:
    """Return the IP versions for which to forward a port, None: it is not to be.

    UDP as for ports that were named: HTTP/3 has the port of HTTP.
    """
    version = of[protocol].get(port)
    return of[sockets.IPPROTO_TCP].get(port) if version is None and protocol == sockets.IPPROTO_UDP else version


def inode(fd: int) -> int:
    """Return the inode of a socket, as sock_diag(7) shows it."""
    return os.fstat(fd).st_ino
