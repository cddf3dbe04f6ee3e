"""Binding forwards: rules in, bound sockets out.

On the host a port without address goes on one dual-stack socket where both versions are on. Ports that were named must
bind; those of all ports and of exclusion-only lists (`weak`) may be taken already, as long as one of a specification's
could be bound; where UDP only follows TCP (`follows`) none has to be. UDP sockets are bound without SO_REUSEPORT, so
that a port in use is noticed, and get it afterwards, so that the sockets of their flows can share the port, and those
of nobody else: the kernel lets one user share a port with itself. So what root has bound is given to the user that it
becomes, who makes those of the flows (`give_to`). A port that somebody else has at another address is not shared.

In the namespace (-T, -U) the maker binds: to its loopback interface, unless an address or interface was given.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from resource import RLIMIT_NOFILE, getrlimit

from bucatini.datapath.syscall_numbers import SIOCGIFINDEX
from bucatini.errors import HostError
from bucatini.lean import sockets
from bucatini.lean.record import TYPE_CHECKING, NamedTuple
from bucatini.plan.ports import WILDCARDS, ForwardRule, ForwardSpec, is_loopback, rules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bucatini.datapath.loop import DataPath
    from bucatini.guest.maker import Maker
    from bucatini.plan.settings import Settings

# After the seal only where they are bound by themselves
# syscalls auto: socket ioctl setsockopt bind listen close

BACKLOG = 4096  # connections waiting to be accepted; net.core.somaxconn cuts it
SPARE_DESCRIPTORS = 1024  # left for flows when a weak rule would take them all, or half where there are few
IP_FREEBIND = 15  # linux/in.h
IP_PKTINFO = 8
RECEIVE_BUFFER = 1 << 22  # bytes of datagrams that wait on a forward; net.core.rmem_max cuts it
LOOPBACK = "lo"


class Bound(NamedTuple):
    """A bound socket and where it leads."""

    fd: int
    protocol: int  # 6 or 17
    version: int  # 4, 6, 0: dual stack
    port: int
    to: int
    address: bytes  # 16 bytes, b"": any
    to_address: bytes
    scope_id: int
    guest: bool = False  # bound in the guest's namespace


class Versions(NamedTuple):
    """IP versions that are on."""

    v4: bool
    v6: bool


def forward_rules(settings: Settings, ephemeral: tuple[int, int]) -> list[ForwardRule]:
    """Return the rules of -t and -u."""
    result: list[ForwardRule] = []
    if not settings.no_tcp:
        result += rules(settings.tcp_ports, sockets.IPPROTO_TCP, ephemeral)
    if not settings.no_udp:
        follow = settings.udp_follows_tcp
        specs = settings.udp_ports
        if follow:  # the TCP ports, untranslated
            specs += tuple(
                spec._replace(ranges=tuple(r._replace(to=r.first, to_address=None) for r in spec.ranges))
                for spec in settings.tcp_ports
                if not spec.auto
            )
        result += rules(specs, sockets.IPPROTO_UDP, ephemeral, follow)
    return result


def namespace_rules(settings: Settings, ephemeral: tuple[int, int]) -> list[ForwardRule]:
    """Return the rules of -T and -U."""
    result: list[ForwardRule] = []
    if not settings.no_tcp:
        result += rules(map(_inside, settings.tcp_ns), sockets.IPPROTO_TCP, ephemeral)
    if not settings.no_udp:
        result += rules(map(_inside, settings.udp_ns), sockets.IPPROTO_UDP, ephemeral)
    return result


def _inside(spec: ForwardSpec) -> ForwardSpec:
    """Return where to listen in the namespace: on its loopback, unless an interface or an address is named."""
    anywhere = spec.address in {None, *WILDCARDS} or is_loopback(spec.address or "")
    return spec._replace(interface=LOOPBACK) if anywhere and spec.interface is None else spec


def packed(address: str | None) -> bytes:
    """Return an address as 16 bytes (IPv4: ::ffff:a.b.c.d), b"" for None. A scope id is cut off."""
    if address is None:
        return b""
    if ":" in address:
        return sockets.inet_pton(sockets.AF_INET6, address.partition("%")[0])
    return bytes(10) + b"\xff\xff" + sockets.inet_pton(sockets.AF_INET, address)


def bind_forwards(
    wanted: Iterable[tuple[ForwardRule, Callable[[ForwardRule, int], Bound]]], warn: Callable[[str], None]
) -> list[Bound]:
    """Bind every port of every rule without `auto`; what stands beside it binds one, or raises OSError.

    Raises:
        HostError: a port that was named cannot be bound, or none of a weak specification's could.
    """
    bound: list[Bound] = []
    wanted = [(rule, bind) for rule, bind in wanted if not rule.auto]
    files = getrlimit(RLIMIT_NOFILE)[0]
    # Weak ones share what descriptors there are; each is one or more rules
    waiting = list(dict.fromkeys((rule.protocol, rule.text) for rule, _ in wanted if rule.weak))
    stops: dict[tuple[int, str], int] = {}  # descriptor at which it has had its part
    stopped: set[tuple[int, str]] = set()
    some: set[tuple[int, str]] = set()  # of which a port could be bound
    failures: dict[tuple[int, str], OSError] = {}  # the last of each that must have one
    for rule, bind in wanted:
        weak = rule.protocol, rule.text
        if weak in stopped:
            continue
        if rule.weak and weak not in stops:
            used = bound[-1].fd if bound else 0
            left = files - used
            left -= min(SPARE_DESCRIPTORS, left // 2)
            stops[weak] = used + left // (len(waiting) - len(stops))
        for port in range(rule.first, rule.last + 1):
            try:
                entry = bind(rule, port)
            except OSError as error:
                if not rule.weak:
                    name = "TCP" if rule.protocol == sockets.IPPROTO_TCP else "UDP"
                    raise HostError(
                        f"cannot listen on {name} port {port} for '{rule.text}'", error.errno or 0, _advice(error, port)
                    ) from None
                if not rule.follows:
                    failures[weak] = error
                continue
            bound.append(entry)
            if not rule.weak:
                continue
            some.add(weak)
            if entry.fd >= stops[weak]:
                name = "TCP" if rule.protocol == sockets.IPPROTO_TCP else "UDP"
                warn(f"'{rule.text}': stopped at {name} port {port}, the limit of open files is near")
                stopped.add(weak)
                break
    for weak, failure in failures.items():
        if weak not in some:
            raise HostError(f"cannot listen on any port for '{weak[1]}'", failure.errno or 0)
    return bound


def _advice(error: OSError, port: int) -> str:
    if error.errno == errno.EACCES and port < 1024:
        return "ports below net.ipv4.ip_unprivileged_port_start need privilege"
    return ""


def _version(address: str, versions: Versions) -> int:
    """Return the IP version of a socket for an address, "": any; 0: dual stack."""
    if address:
        return 6 if ":" in address else 4
    if versions.v4 and versions.v6:
        return 0
    return 4 if versions.v4 else 6


def bind_in_namespace(rule: ForwardRule, port: int, versions: Versions, maker: Maker) -> Bound:
    """Have one port bound in the guest's namespace, and wait for it; raises OSError."""
    made: list[tuple[int, int]] = []
    ask_in_namespace(rule, port, versions, maker, lambda fd, error: made.append((fd, error)))
    maker.wait()
    fd, error = made[0]
    if fd < 0:
        raise OSError(error, "")
    return made_by(rule, port, versions, fd, guest=True)


def ask_in_namespace(
    rule: ForwardRule, port: int, versions: Versions, maker: Maker, done: Callable[[int, int], None]
) -> None:
    """Have one port bound in the guest's namespace; `done` gets the descriptor, or -1, and the error number."""
    address = (rule.address or "").partition("%")[0]
    maker.bind(
        done,
        rule.protocol,
        _version(address, versions),
        port,
        address=packed(address or None),
        interface=rule.interface or "",
    )


def ask_on_host(
    rule: ForwardRule, port: int, versions: Versions, maker: Maker, done: Callable[[int, int], None]
) -> None:
    """Have one port bound on the host, by a maker that may; `done` as for `ask_in_namespace`."""
    address, _, zone = (rule.address or "").partition("%")
    maker.bind(
        done,
        rule.protocol,
        _version(address, versions),
        port,
        address=packed(address or None),
        scope_id=_scope(rule, zone),
        interface=rule.interface or "",
    )


def made_by(rule: ForwardRule, port: int, versions: Versions, fd: int, *, guest: bool) -> Bound:
    """Return what a maker has bound, in the guest's namespace or on the host."""
    address, _, zone = (rule.address or "").partition("%")
    return Bound(
        fd,
        rule.protocol,
        _version(address, versions),
        port,
        rule.to + port - rule.first,
        packed(address or None),
        packed(rule.to_address),
        0 if guest else _scope(rule, zone),
        guest=guest,
    )


def _scope(rule: ForwardRule, zone: str) -> int:
    """Return the index of the interface that a rule or its address names, 0 without one; raises OSError.

    The C library's function opens a UNIX socket for it, which the filter forbids to ports that forward themselves.
    """
    name = rule.interface or zone
    if not name:
        return 0
    with sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM) as sock:  # netdevice(7): struct ifreq
        answer = fcntl.ioctl(sock, SIOCGIFINDEX, struct.pack("16si20x", name.encode()[:15], 0))
    return int(struct.unpack_from("16xi", answer)[0])


def _is_nobodys(port: int, version: int) -> bool:
    """Whether nobody but our user has a port of UDP, at any address.

    Asked before a forward gets one of them: a flow of the port, bound to all, would then be let in beside the forward,
    and the kernel looks no further.
    """
    with sockets.socket(sockets.AF_INET if version == 4 else sockets.AF_INET6, sockets.SOCK_DGRAM) as sock:
        if version == 6:
            sock.setsockopt(sockets.IPPROTO_IPV6, sockets.IPV6_V6ONLY, 1)
        sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEPORT, 1)
        try:
            sock.bind(("0.0.0.0" if version == 4 else "::", port))
        except OSError:
            return False
    return True


def bind_on_host(rule: ForwardRule, port: int, versions: Versions, freebind: bool) -> Bound:
    """Bind one port; raises OSError."""
    address, _, zone = (rule.address or "").partition("%")
    scope = _scope(rule, zone)
    version = _version(address, versions)
    kind = sockets.SOCK_STREAM if rule.protocol == sockets.IPPROTO_TCP else sockets.SOCK_DGRAM
    try:
        sock = sockets.socket(sockets.AF_INET if version == 4 else sockets.AF_INET6, kind | sockets.SOCK_NONBLOCK)
    except OSError as error:
        if version or error.errno != errno.EAFNOSUPPORT:
            raise
        version = 4
        sock = sockets.socket(sockets.AF_INET, kind | sockets.SOCK_NONBLOCK)
    try:
        share = (address in {"", "0.0.0.0", "::"} and rule.interface is None) or (
            rule.protocol == sockets.IPPROTO_UDP and _is_nobodys(port, version)
        )
        if version != 4:
            sock.setsockopt(sockets.IPPROTO_IPV6, sockets.IPV6_V6ONLY, version == 6)
        if freebind:
            sock.setsockopt(sockets.IPPROTO_IP, IP_FREEBIND, 1)
        if rule.interface is not None:
            sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_BINDTODEVICE, rule.interface.encode() + b"\0")
        if rule.protocol == sockets.IPPROTO_TCP:
            sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
            # Accepted ones inherit these, which the packet path sets where it opens a socket (T28, T31)
            sock.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
            sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_OOBINLINE, 1)
        if version == 4:
            sock.bind((address, port))
        else:
            sock.bind((address or "::", port, 0, scope if address.startswith("fe80") else 0))
        if rule.protocol == sockets.IPPROTO_TCP:
            sock.listen(BACKLOG)
        else:
            sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEPORT, share)
            sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, RECEIVE_BUFFER)
            if version == 4:
                sock.setsockopt(sockets.IPPROTO_IP, IP_PKTINFO, 1)
            else:
                sock.setsockopt(sockets.IPPROTO_IPV6, sockets.IPV6_RECVPKTINFO, 1)
    except OSError:
        sock.close()
        raise
    return Bound(
        sock.detach(),
        rule.protocol,
        version,
        port,
        rule.to + port - rule.first,
        packed(address or None),
        packed(rule.to_address),
        scope,
    )


def give_to(uid: int, gid: int, bound: Iterable[Bound]) -> None:
    """Have what root has bound on the host belong to the user that it is about to become."""
    for entry in bound:
        if entry.protocol == sockets.IPPROTO_UDP and not entry.guest:
            try:
                os.fchown(entry.fd, uid, gid)
            except OSError:  # a container without CAP_CHOWN: flows from the port leave from another
                return


def serve(path: DataPath, entry: Bound, *, bypass: bool) -> int:
    """Give a bound socket to the data path; returns its handle."""
    return path.add_listener(
        entry.fd,
        entry.protocol,
        entry.version,
        entry.port,
        entry.to,
        address=entry.address,
        to_address=entry.to_address,
        scope_id=entry.scope_id,
        guest=entry.guest,
        bypass=bypass,
    )
