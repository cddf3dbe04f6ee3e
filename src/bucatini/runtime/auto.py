"""Ports that forward themselves: `auto` of -t, -u, -T and -U.

Every second the sockets that are bound in the namespace and on the host are compared with the forwards that follow
them: what is new is bound on the other side, what is gone is unbound; connections go on. UDP follows TCP's ports as
well.

Left out: our own sockets, known by their inodes, so that a forward never leads back to itself; the ports that the
kernel hands out (ip_local_port_range); what was excluded, or is forwarded by name anyway. Towards the namespace: what
is bound to its loopback alone, which is not to be reached from outside (L2), unless --host-lo-to-ns-lo leads there, and
then from the host's loopback only. From the namespace: what the host's loopback does not reach.

A port that somebody else has on the other side is tried again a second later.
"""

from __future__ import annotations

import os

from bucatini.errors import HostError
from bucatini.host.listeners import TABLES, ProcTables, SocketDiag, is_any, is_loopback, ports
from bucatini.lean import sockets
from bucatini.lean.record import TYPE_CHECKING, NamedTuple
from bucatini.plan.ports import ForwardRule, ForwardSpec
from bucatini.runtime.forwards import Bound, Versions, ask_in_namespace, ask_on_host, bind_on_host, made_by, serve

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bucatini.datapath.loop import DataPath
    from bucatini.guest.maker import Maker
    from bucatini.plan.settings import Settings

# syscalls auto: fstat newfstatat close

SECOND_NS = 1_000_000_000
ANY = {4: "0.0.0.0", 6: "::"}
LOOPBACKS = {4: "127.0.0.1", 6: "::1"}


Source = SocketDiag | ProcTables  # knows the bound sockets of a namespace


class Follower(NamedTuple):
    """An `auto` of one protocol and direction."""

    protocol: int
    guest: bool  # binds in the guest's namespace, what the host has
    spec: ForwardSpec


class Active(NamedTuple):
    """A forward that follows a port."""

    handle: int  # of the data path
    inode: int


def followers(settings: Settings) -> list[Follower]:
    """Return what was asked to be automatic."""
    asked = (
        (sockets.IPPROTO_TCP, False, settings.tcp_ports, settings.no_tcp),
        (sockets.IPPROTO_UDP, False, settings.udp_ports, settings.no_udp),
        (sockets.IPPROTO_TCP, True, settings.tcp_ns, settings.no_tcp),
        (sockets.IPPROTO_UDP, True, settings.udp_ns, settings.no_udp),
    )
    return [
        Follower(protocol, guest, spec)
        for protocol, guest, specs, off in asked
        if not off
        for spec in specs
        if spec.auto
    ]


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
        source.listeners()
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
        wanted: list[Follower],
        path: DataPath,
        maker: Maker,
        *,
        binder: Maker | None,
        versions: Versions,
        ephemeral: tuple[int, int],
        inward: list[ForwardRule],
        outward: list[ForwardRule],
        bound: Iterable[Bound],
        settings: Settings,
    ) -> None:
        self.wanted = wanted
        self.path = path
        self.maker = maker
        self.binder = binder
        self.versions = versions
        self.ephemeral = ephemeral
        self.settings = settings
        self.named = {False: inward, True: outward}
        self.ours = {False: {inode(e.fd) for e in bound if not e.guest}, True: {inode(e.fd) for e in bound if e.guest}}
        self.guest = guest_source(maker) if any(not follower.guest for follower in wanted) else None
        self.host = host_source() if any(follower.guest for follower in wanted) else None
        self.active: dict[tuple[bool, ForwardRule], Active] = {}
        self.asked: set[tuple[bool, ForwardRule]] = set()

    def scan(self) -> None:
        """Look what has changed, and follow."""
        desired: set[tuple[bool, ForwardRule]] = set()
        for guest, source in ((False, self.guest), (True, self.host)):
            if source is None:
                continue
            # What is bound on the other side: the namespace's for forwards on the host
            ours = self.ours[not guest]
            listeners = source.listeners()
            found = ports(listeners, loopback=guest, others=not guest, not_ours=ours)
            local: dict[tuple[int, int], int] = {}
            if not guest and self.settings.host_lo_to_ns_lo:
                alone = [entry for entry in listeners if not is_any(entry.address) and is_loopback(entry.address)]
                local = ports(alone, loopback=True, others=False, not_ours=ours)
            for follower in self.wanted:
                if follower.guest == guest:
                    desired |= {(guest, rule) for rule in self._rules(follower, found, ANY)}
                    left = {key: version for key, version in local.items() if key not in found}
                    desired |= {(guest, rule) for rule in self._rules(follower, left, LOOPBACKS)}
        for key in self.active.keys() - desired:
            self._drop(key)
        for guest, rule in sorted(desired - self.active.keys(), key=lambda entry: (entry[0], entry[1].first)):
            self._add(guest, rule)

    def _rules(
        self, follower: Follower, found: dict[tuple[int, int], int], address_of: dict[int, str]
    ) -> Iterable[ForwardRule]:
        """Return the forwards that an `auto` makes of the ports found."""
        spec = follower.spec
        mine = {port: version for (protocol, port), version in found.items() if protocol == follower.protocol}
        if follower.protocol == sockets.IPPROTO_UDP:  # as for ports that were named: HTTP/3 has the port of HTTP
            for (_, port), version in found.items():
                mine.setdefault(port, version)
        for port, version in mine.items():
            if self.ephemeral[0] <= port <= self.ephemeral[1]:
                continue
            if any(low <= port <= high for low, high in spec.excluded):
                continue
            named = self.named[follower.guest]
            if any(rule.protocol == follower.protocol and rule.first <= port <= rule.last for rule in named):
                continue
            for address in self._addresses(spec, version, address_of):
                yield ForwardRule(
                    follower.protocol, address, spec.interface, port, port, port, None, weak=True, text=spec.text
                )

    def _addresses(self, spec: ForwardSpec, version: int, address_of: dict[int, str]) -> list[str | None]:
        """Return what to bind for a port that is bound for an IP version (0: both)."""
        on = [number for number, enabled in ((4, self.versions.v4), (6, self.versions.v6)) if enabled]
        on = [number for number in on if version in {0, number}]
        if spec.address is not None:
            return [spec.address] if (6 if ":" in spec.address else 4) in on else []
        if len(on) == 2 and address_of is ANY:
            return [None]
        return [address_of[number] for number in on]

    def _drop(self, key: tuple[bool, ForwardRule]) -> None:
        active = self.active.pop(key)
        self.path.remove_listener(active.handle)
        self.ours[key[0]].discard(active.inode)

    def _add(self, guest: bool, rule: ForwardRule) -> None:
        if guest:
            if self._ask(self.maker, guest, rule):
                ask_in_namespace(rule, rule.first, self.versions, self.maker, lambda fd, _: self._made(True, rule, fd))
            return
        try:
            entry = bind_on_host(rule, rule.first, self.versions, self.settings.freebind)
        except PermissionError:
            if self.binder is not None and self._ask(self.binder, guest, rule):
                ask_on_host(rule, rule.first, self.versions, self.binder, lambda fd, _: self._made(False, rule, fd))
        except OSError:
            return
        else:
            self._serve(rule, entry)

    def _ask(self, maker: Maker, guest: bool, rule: ForwardRule) -> bool:
        """Whether to ask a maker for this port now."""
        if (guest, rule) in self.asked or not maker.has_room():
            return False
        self.asked.add((guest, rule))
        return True

    def _made(self, guest: bool, rule: ForwardRule, fd: int) -> None:
        self.asked.discard((guest, rule))
        if fd >= 0:
            self._serve(rule, made_by(rule, rule.first, self.versions, fd, guest=guest))

    def _serve(self, rule: ForwardRule, entry: Bound) -> None:
        try:
            handle = serve(self.path, entry, bypass=self.settings.bypass)
        except OSError:  # as many as there may be
            os.close(entry.fd)
            return
        self.active[entry.guest, rule] = Active(handle, inode(entry.fd))
        self.ours[entry.guest].add(inode(entry.fd))


def inode(fd: int) -> int:
    """Return the inode of a socket, as sock_diag(7) shows it."""
    return os.fstat(fd).st_ino
