"""One run of pasta, from settings to the end: each stage a function, in the order in which they must come.

1. `look_at_host`, `make_plan`: what the host has and what follows from it. Nothing is changed yet.
2. Files that the user named are opened, while paths still mean what they meant: pid file, capture, log.
3. The background, where asked for: forked early, so that everything later belongs to the process that serves; the
   parent waits. A failure up to readiness prints one line and leaves nothing behind.
4. `spawn` or `join`: the guest's namespaces and its tap, configured. A spawned command waits.
5. `bind_forwards`: as whoever started us, low ports included.
6. Root is given up (`become`), unless it is the root of somebody's user namespace or was asked for.
7. `build_data_path`: the compiled loop gets the plan, the tap, the listeners, and Python its four upcalls.
8. Readiness: pid file complete, the command told to go, the parent exits 0.
9. The loop, until SIGTERM or SIGQUIT, the end of the command, or the end of the namespace.
"""

import os
import signal
import socket
from collections.abc import Callable
from typing import Protocol

from bucatini.datapath.loop import FEATURE_TSO, FEATURE_USO, DataPath
from bucatini.errors import BucatiniError, HostError
from bucatini.guest.namespace import Guest, Identity, join, namespace_paths, spawn
from bucatini.guest.watch import NamespaceWatch
from bucatini.host import process
from bucatini.host.view import look_at_host
from bucatini.plan.plan import DEFAULT_MTU, Plan, PlanFamily, make_plan
from bucatini.plan.ports import ForwardRule, rules
from bucatini.plan.settings import Settings
from bucatini.runtime.forwards import Bound, bind_forwards, packed
from bucatini.services.responder import Responder, ServiceConfig

SECOND_NS = 1_000_000_000
SO_PEEK_OFF = 42  # asm-generic/socket.h


class Log(Protocol):
    """Where messages go (`bucatini.runtime.log`)."""

    def error(self, text: str) -> None: ...
    def warning(self, text: str) -> None: ...
    def info(self, text: str) -> None: ...
    def debug(self, text: str) -> None: ...
    def trace(self, text: str) -> None: ...
    def to_background(self) -> None: ...


class Instance:
    """A running pasta: what the loop calls back into."""

    def __init__(self, settings: Settings, plan: Plan, guest: Guest, responder: Responder, log: Log) -> None:
        self.settings = settings
        self.plan = plan
        self.guest = guest
        self.responder = responder
        self.log = log
        self.path: DataPath
        self.status = 0
        self.watch: NamespaceWatch | None = None
        self.next_look = 0  # ns, 0: never
        self.next_stats = 0
        self.last_counters: dict[str, int] = {}

    # The slow path, as `DataPath` calls it

    def on_frame(self, frame: bytes, now: int) -> list[bytes]:
        """Answer a frame of ARP, neighbour discovery, DHCP or DHCPv6."""
        return self.responder.on_frame(frame, now)

    def next_timeout(self) -> int | None:
        """Return when `on_timeout` wants to be called, ns, None: never."""
        times = [at for at in (self.responder.next_timeout(), self.next_look, self.next_stats) if at]
        return min(times) if times else None

    def on_timeout(self, now: int) -> list[bytes]:
        """Do what is due."""
        if self.next_look and now >= self.next_look and self.watch is not None:
            self.next_look = now + self.watch.poll_ns
            self.look()
        if self.next_stats and now >= self.next_stats:
            self.next_stats = now + (self.settings.stats or 1) * SECOND_NS
            self.show_counters()
        due = self.responder.next_timeout()
        return self.responder.on_timeout(now) if due is not None and now >= due else []

    # Events

    def look(self) -> None:
        """End when the namespace is gone."""
        if self.watch is not None and self.watch.gone():
            self.log.info("the network namespace is gone")
            self.path.stop()

    def on_child(self) -> None:
        """The command may have ended."""
        pid, status = os.waitpid(self.guest.child, os.WNOHANG)
        if pid:
            self.status = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
            self.path.stop()

    def show_counters(self) -> None:
        """Log the counters that moved since the last time; nothing when none did."""
        counters = self.path.counters()
        moved = [f"{name} {value}" for name, value in counters.items() if value != self.last_counters.get(name, 0)]
        self.last_counters = counters
        if moved:
            self.log.info(f"statistics: flows {self.path.flows}, " + ", ".join(moved))


def tell_family(path: DataPath, version: int, family: PlanFamily) -> None:
    """Give the data path the addresses of one IP version."""
    path.family(
        version,
        guest=packed(family.address),
        learn=not family.explicit,
        ours=packed(family.our_address),
        map_host_loopback=packed(family.map_host_loopback),
        map_guest_addr=packed(family.map_guest_addr),
        host=packed(family.host_address),
        dns_forward=packed(family.dns_forward if family.dns_host else None),
        dns_host=packed(family.dns_host),
        resolver_gateway=packed(family.gateway if family.resolver_is_gateway else None),
        outbound=packed(family.outbound),
        outbound_if=family.outbound_if or "",
        scope_id=family.scope_ifindex,
    )


def has_peek_off() -> bool:
    """Whether SO_PEEK_OFF works on TCP sockets (Linux 6.9)."""
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        except OSError:
            return False
    return True


def build_data_path(instance: Instance, bound: list[Bound], capture: int, show: Callable[[bytes], str] | None) -> None:
    """Set the compiled loop up."""
    settings, plan, guest = instance.settings, instance.plan, instance.guest
    path = instance.path = DataPath(listeners=max(1, len(bound)))
    path.settings(
        mtu=plan.mtu or DEFAULT_MTU,
        our_mac=plan.our_mac,
        no_tcp=settings.no_tcp,
        no_udp=settings.no_udp,
        no_icmp=settings.no_icmp,
        freebind=settings.freebind,
        peek_off=has_peek_off(),
    )
    for version, family in ((4, plan.v4), (6, plan.v6)):
        if family is not None:
            tell_family(path, version, family)
    if guest.mac != bytes(6):
        path.guest_mac(guest.mac)
    path.open_tap(guest.tap, (FEATURE_TSO if guest.tso else 0) | (FEATURE_USO if guest.uso else 0))
    if capture >= 0:
        path.capture(capture)
    if show is not None:
        path.set_trace(lambda sender, frame: instance.log.trace(f"{sender}: {show(frame)}"))
    for entry in bound:
        path.add_listener(
            entry.fd,
            entry.protocol,
            entry.version,
            entry.port,
            entry.to,
            address=entry.address,
            to_address=entry.to_address,
            scope_id=entry.scope_id,
        )
    path.set_slow_path(instance)


def describe(plan: Plan, guest: Guest, bound: list[Bound], log: Log) -> None:
    """Log what was made."""
    log.info(
        f"interface {plan.ifname} in the namespace, MAC address {guest.mac.hex(':')}, MTU {plan.mtu or 'as it is'}"
    )
    for name, family in (("IPv4", plan.v4), ("IPv6", plan.v6)):
        if family is None:
            log.info(f"{name}: off")
            continue
        address = "no address" if family.address is None else f"address {family.address}/{family.prefix}"
        loopback = f", {family.map_host_loopback} is the host's loopback" if family.map_host_loopback else ""
        log.info(f"{name}: {address}, gateway {family.gateway}{loopback}")
        if family.dns_forward and family.dns_host:
            log.info(f"DNS: {family.dns_forward} is {family.dns_host}")
    if bound:
        log.info(f"forwards: {len(bound)} sockets bound")
    for entry in bound if len(bound) < 64 else ():
        name = "TCP" if entry.protocol == socket.IPPROTO_TCP else "UDP"
        log.debug(f"forward: {name} port {entry.port} to {entry.to}")
    log.debug(f"offloads of the tap: TSO {guest.tso}, USO {guest.uso}; our MAC address {plan.our_mac.hex(':')}")


def forward_rules(settings: Settings) -> list[ForwardRule]:
    """Return the rules of -t and -u."""
    ephemeral = process.ephemeral_range()
    result: list[ForwardRule] = []
    if not settings.no_tcp:
        result += rules(settings.tcp_ports, socket.IPPROTO_TCP, ephemeral)
    if not settings.no_udp:
        follow = settings.udp_follows_tcp
        specs = settings.udp_ports
        if follow:  # the TCP ports, untranslated
            specs = tuple(
                spec._replace(ranges=tuple(r._replace(to=r.first, to_address=None) for r in spec.ranges))
                for spec in settings.tcp_ports
            )
        result += rules(specs, socket.IPPROTO_UDP, ephemeral, follow)
    return result


def _open_capture(path: str | None) -> int:
    if path is None:
        return -1
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"open the capture file {path}", error.errno or 0) from None


def _install_signals(instance: Instance) -> None:
    """Let SIGTERM and SIGQUIT end the loop, and a command's end be noticed."""
    reader, writer = os.pipe()
    for fd in (reader, writer):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def end(number: int, frame: object) -> None:
        instance.path.stop()

    def nothing(number: int, frame: object) -> None:
        pass

    def woken() -> None:
        try:
            os.read(reader, 4096)
        except BlockingIOError:
            pass
        if instance.guest.child:
            instance.on_child()

    signal.signal(signal.SIGTERM, end)
    if instance.guest.child:
        # The keyboard's signals are for the command; its end is ours
        signal.signal(signal.SIGCHLD, nothing)
        signal.signal(signal.SIGINT, nothing)
        signal.signal(signal.SIGQUIT, nothing)
    else:
        signal.signal(signal.SIGQUIT, end)
        signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    instance.path.watch(reader, woken)


def run(settings: Settings, log: Log, now: Callable[[], int]) -> int:
    """Run pasta; returns the exit status.

    Args:
        now: the monotonic clock, ns.

    Raises:
        BucatiniError: start-up failed.
    """
    spawning = settings.target_pid is None and settings.netns is None
    host = look_at_host(settings)
    plan = make_plan(settings, host)
    for text in plan.warnings:
        log.warning(text)
    root = process.is_real_root()
    identity = Identity(*process.identity_of(settings.runas)) if root else None
    if identity is not None and identity.uid == 0:
        identity = None
    pid_file = process.PidFile(settings.pid_file) if settings.pid_file is not None else None
    capture = _open_capture(settings.pcap)
    show: Callable[[bytes], str] | None = None
    if settings.trace:
        from bucatini.wire.summary import summarise

        show = summarise
    responder = Responder(ServiceConfig.from_plan(settings, plan), os.urandom)
    process.raise_descriptor_limit()
    background = process.Background()
    if not settings.foreground and not spawning:
        background.fork()
    guest = spawn(plan, settings, identity) if spawning else join(plan, settings)
    watch = None
    if not spawning and settings.netns_quit:
        watch = NamespaceWatch(namespace_paths(settings)[1])
    bound = bind_forwards(
        forward_rules(settings),
        v4=plan.v4 is not None,
        v6=plan.v6 is not None,
        freebind=settings.freebind,
        warn=log.warning,
    )
    if identity is not None:
        process.become(identity.uid, identity.gid)
    describe(plan, guest, bound, log)
    instance = Instance(settings, plan, guest, responder, log)
    instance.watch = watch
    if watch is not None and watch.poll_ns:
        instance.next_look = now() + watch.poll_ns
    if settings.stats:
        instance.next_stats = now() + settings.stats * SECOND_NS
    build_data_path(instance, bound, capture, show)
    _install_signals(instance)
    if watch is not None and watch.fd >= 0:
        instance.path.watch(watch.fd, instance.look)
    if pid_file is not None:
        pid_file.write()
    if guest.go >= 0:
        os.write(guest.go, b"+")
    if background.fd >= 0:
        log.to_background()
        background.ready()
    if guest.child:
        instance.on_child()
    try:
        instance.path.run()
    except OSError as error:
        raise BucatiniError(f"the tap failed: {error.strerror}") from None
    finally:
        if settings.stats:
            instance.show_counters()
    return instance.status
