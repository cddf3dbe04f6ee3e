"""The running instance: what the compiled loop is given, and what it calls back into.

Loaded while the child makes the namespaces (`runtime/pasta.py`), with the packet path and the services.
"""

from __future__ import annotations

import gc
import os
import time

from bucatini.datapath.loop import DataPath
from bucatini.errors import BucatiniError, HostError
from bucatini.host import isolation, resolv
from bucatini.host.process import Background, has_terminal, let_go_of_streams
from bucatini.host.view import Own, own
from bucatini.lean import signals, sockets
from bucatini.lean.record import TYPE_CHECKING
from bucatini.plan.plan import DEFAULT_MTU, HostView, Plan, PlanFamily, make_plan
from bucatini.runtime.forwards import Bound, Versions, packed, serve
from bucatini.runtime.lookout import Lookout
from bucatini.services.responder import Responder, ServiceConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from bucatini.guest.maker import Maker
    from bucatini.host.process import Made, PidFile
    from bucatini.host.resolv import Resolvers
    from bucatini.plan.ports import ForwardRule
    from bucatini.plan.settings import Settings
    from bucatini.runtime.auto import AutoForwards
    from bucatini.runtime.log import Log

# Signals and what they write to; random bytes for the services; the time, to look for ports
# syscalls serve: rt_sigreturn read getrandom clock_gettime
# syscalls pasta: wait4

SECOND_NS = 1_000_000_000
SO_PEEK_OFF = 42  # asm-generic/socket.h
NOTICES = {
    "flows": "the table of flows is full: what is not in use gives way, else new ones are refused",
    "descriptors": "file descriptors have run out (ulimit -n): what is unused gives way, else new flows are refused",
    "half-open": "too many connections or pings wait for an answer: the oldest of them give way",
    "data-after-fin": "the guest sends data behind the end of a connection: it is ignored",
    "forwards": "too many ports are to forward themselves: those that do stay, others wait for room",
    "sockets": "more sockets are bound than are looked at for ports that forward themselves: no forward ends meanwhile",
}


class Instance:
    """A running pasta or passt: what the loop calls back into."""

    def __init__(
        self, settings: Settings, plan: Plan, log: Log, ephemeral: tuple[int, int], listeners: int, child: int = 0
    ) -> None:
        """Set the compiled loop up, without listeners and link.

        Args:
            ephemeral: first and last port that the host's kernel hands out itself.
            listeners: how many there may be.
            child: the process of the guest's command, 0: there is none.
        """
        self.settings = settings
        self.plan = plan
        self.child = child
        self.responder: Responder | None = None  # after `load_services`
        self.log = log
        self.host: HostView  # after `follow_lookout`
        self.own: dict[int, Own]  # by IP version, after it too
        self.path = DataPath(listeners=listeners)
        self.status = 0
        self.next_stats = 0  # ns, 0: never
        self.auto: AutoForwards | None = None
        self.next_scan = 0
        self.last_counters: dict[str, int] = {}
        self.path.tell_notices(self.on_notice)
        self._tell(ephemeral)

    def _tell(self, ephemeral: tuple[int, int]) -> None:
        """Give the compiled loop what holds for the whole run."""
        settings, plan = self.settings, self.plan
        self.path.settings(
            mtu=plan.mtu or DEFAULT_MTU,
            our_mac=plan.our_mac,
            no_tcp=settings.no_tcp,
            no_udp=settings.no_udp,
            no_icmp=settings.no_icmp,
            freebind=settings.freebind,
            peek_off=has_peek_off(),
            host_lo_to_ns_lo=settings.host_lo_to_ns_lo,
            ports=ephemeral[1] - ephemeral[0] + 1,
        )
        for version, family in ((4, plan.v4), (6, plan.v6)):
            if family is not None:
                tell_family(self.path, version, family)

    def serve_forwards(self, bound: list[Bound]) -> None:
        """Give the compiled loop what was bound."""
        for entry in bound:
            serve(self.path, entry, bypass=self.settings.bypass)

    def wrap_link(self, capture: int, show: Callable[[bytes], str] | None) -> None:
        """Put what was asked for around the link: faults, a capture to a descriptor (-1: none), a trace."""
        if self.settings.fault:
            faults = dict(self.settings.fault)
            self.path.make_faults(faults, late=faults.pop("late", 0.002), seed=int(faults.pop("seed", 1)))
        if capture >= 0:
            self.path.capture(capture)
        if show is not None:
            self.path.set_trace(lambda sender, frame: self.log.trace(f"{sender}: {show(frame)}"))

    def load_services(self) -> None:
        """Bring up the slow path, as the plan is now."""
        self.responder = Responder(ServiceConfig.from_plan(self.settings, self.plan), os.urandom)
        self.path.set_slow_path(self)

    def find_guest(self) -> None:
        """Look for a guest that may have nothing to say of its own accord (T4, D18)."""
        if self.responder is not None and not self.path.knows_guest:
            self.responder.discovery.begin()
            self.path.set_slow_path(self)

    def lose_guest(self) -> None:
        """Look for it no longer: nobody would hear us."""
        if self.responder is not None:
            self.responder.discovery.end()

    def follow_maker(self, maker: Maker, without: str) -> None:
        """Take its replies, and notice its end; `without`: what there is no more then."""

        def readable() -> None:
            maker.on_readable()
            if maker.gone:
                self.path.unwatch(maker.fileno())
                self.log.warning(f"the process that makes sockets is gone: {without}")

        self.path.watch(maker.fileno(), readable)

    def forward_automatically(
        self,
        maker: Maker,
        binder: Maker | None,
        inward: list[ForwardRule],
        outward: list[ForwardRule],
        bound: list[Bound],
        versions: Versions,
        most: int,
    ) -> None:
        """Follow the ports that are bound, where asked to, with so many forwards at most."""
        from bucatini.runtime.auto import AutoForwards

        inward, outward = ([rule for rule in rules if rule.auto] for rules in (inward, outward))
        if not inward and not outward:
            return
        self.auto = AutoForwards(
            self.path,
            maker,
            binder=binder,
            versions=versions,
            inward=inward,
            outward=outward,
            bound=bound,
            settings=self.settings,
            most=most,
            notice=self.on_notice,
        )
        self.next_scan = 1  # at once
        self.path.set_slow_path(self)

    def follow_lookout(self, fd: int, host: HostView) -> None:
        """Hear from the lookout: the end of the namespace, the host's resolvers and addresses of the day (D3, D15)."""
        self.host = host
        self.own = {4: own(host.v4), 6: own(host.v6)}
        lookout = Lookout(fd, self.on_gone, self.on_resolvers, self.on_addresses)

        def readable() -> None:
            if not lookout.on_readable():
                self.path.unwatch(fd)
                self.log.warning("the process that watches files is gone: their changes go unnoticed from now on")

        self.path.watch(fd, readable)

    def on_gone(self) -> None:
        """End: the namespace is gone."""
        self.log.info("the network namespace is gone")
        self.path.stop()

    def on_resolvers(self, found: Resolvers) -> None:
        """Use what resolv.conf says now."""
        servers, search = found
        host = self.host._replace(nameservers=servers, search=search)
        try:
            self.plan = make_plan(self.settings, host)
        except BucatiniError as error:
            self.log.warning(f"the new {resolv.PATH} is of no use: {error}")
            return
        self.host = host
        for version, family in ((4, self.plan.v4), (6, self.plan.v6)):
            if family is not None:
                self.path.resolver(
                    version,
                    dns_forward=packed(family.dns_forward),
                    dns_host=packed(family.dns_host),
                    resolver_gateway=resolver_gateway(family),
                )
        if self.responder is not None:
            looking = self.responder.discovery.next_at is not None
            self.load_services()
            if looking:
                self.find_guest()
        self.log.info(f"{resolv.PATH} has changed: resolvers {', '.join(servers)}")

    def on_addresses(self, v4: Own, v6: Own) -> None:
        """Use the addresses that the host has now; with none, the ones that it had."""
        for version, family, found in ((4, self.plan.v4, v4), (6, self.plan.v6, v6)):
            if family is not None and found.address and found != self.own[version]:
                self.own[version] = found
                self.path.host_address(version, packed(found.address), scope_id=found.ifindex)
                self.log.info(f"the host's address is {found.address}")

    def start_statistics(self, now: int) -> None:
        """Have the counters shown when --stats asks for it."""
        if self.settings.stats:
            self.next_stats = now + self.settings.stats * SECOND_NS

    # The slow path, as `DataPath` calls it

    def on_frame(self, frame: bytes, now: int) -> list[bytes]:
        """Answer a frame of ARP, neighbour discovery, DHCP or DHCPv6."""
        return self.responder.on_frame(frame, now) if self.responder is not None else []

    def next_timeout(self) -> int | None:
        """Return when `on_timeout` wants to be called, ns, None: never."""
        answer = self.responder.next_timeout() if self.responder is not None else None
        times = [at for at in (answer, self.next_stats, self.next_scan) if at]
        return min(times) if times else None

    def on_timeout(self, now: int) -> list[bytes]:
        """Do what is due."""
        if self.next_stats and now >= self.next_stats:
            self.start_statistics(now)
            self.show_counters()
        if self.next_scan and now >= self.next_scan and self.auto is not None:
            self.next_scan = now + SECOND_NS  # if it fails
            try:
                self.next_scan = now + self.auto.scan()
            except Exception as error:  # noqa: BLE001 - whatever it is, the services go on
                self.path.count_slow_error()
                self.log.warn_once("scan", f"cannot look for ports that forward themselves: {error}")
        if self.responder is None:
            return []
        due = self.responder.next_timeout()
        return self.responder.on_timeout(now) if due is not None and now >= due else []

    # Events

    def on_child(self) -> None:
        """The command may have ended."""
        pid, status = os.waitpid(self.child, os.WNOHANG)
        if pid:
            self.status = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
            self.path.stop()

    def on_notice(self, what: str) -> None:
        """Something has run out, or was sent that cannot be, for the first time; the counters tell how often."""
        self.log.warning(NOTICES[what])

    def show_counters(self) -> None:
        """Log the counters that moved since the last time; nothing when none did."""
        counters = self.path.counters()
        moved = [f"{name} {value}" for name, value in counters.items() if value != self.last_counters.get(name, 0)]
        self.last_counters = counters
        if moved:
            self.log.info(f"statistics: flows {self.path.flows}, " + ", ".join(moved))


def resolver_gateway(family: PlanFamily) -> bytes:
    """The gateway, if it is the host's resolver."""
    return packed(family.gateway if family.resolver_is_gateway else None)


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
        dns_forward=packed(family.dns_forward),
        dns_host=packed(family.dns_host),
        resolver_gateway=resolver_gateway(family),
        outbound=packed(family.outbound),
        outbound_if=family.outbound_if or "",
        scope_id=family.scope_ifindex,
    )


def has_peek_off() -> bool:
    """Whether SO_PEEK_OFF works on TCP sockets: Linux 6.9, for those of IPv6 6.12."""
    for family in (sockets.AF_INET, sockets.AF_INET6):
        try:
            sock = sockets.socket(family)
        except OSError:
            continue  # then there will be none
        with sock:
            try:
                sock.setsockopt(sockets.SOL_SOCKET, SO_PEEK_OFF, 0)
            except OSError:
                return False
    return True


def summary(settings: Settings, *, foreground: bool) -> Callable[[bytes], str] | None:
    """Load what --trace shows of a frame, where it is asked for and somebody can read it."""
    if not settings.trace or not (foreground or settings.log_file):
        return None
    from bucatini.wire.summary import summarise

    return summarise


def open_capture(path: str | None, made: Made) -> int:
    """Open the file of --pcap; -1 without one."""
    if path is None:
        return -1
    try:
        return made.open(path, 0o600)
    except OSError as error:
        raise HostError(f"open the capture file {path}", error.errno or 0) from None


def withdraw(
    settings: Settings, pid_file: PidFile | None, made: Made, log: Log, *, foreground: bool
) -> Background | None:
    """Move to namespaces of our own, and to the background unless `foreground`; returns what to tell readiness to."""
    if settings.isolated:
        isolation.own_namespaces(processes=not foreground)
    if foreground:
        let_go_of_streams()
        return None
    log.connect_syslog()
    background = Background()
    background.fork(pid_file, made)
    return background


def isolate(settings: Settings, log: Log, *profiles: str, child: bool = False) -> None:
    """Give up everything that serving does not need.

    Args:
        profiles: of the filter, besides that of both programs.
        child: there is a command, which is to end with us.
    """
    gc.freeze()  # what is there stays
    gc.enable()
    time.localtime()  # reads the time zone, of which the log's entries tell
    if not settings.isolated:
        return
    isolation.empty_root(chroot_fallback=settings.chroot_fallback)
    isolation.give_up()
    bind = "auto" in profiles or settings.outbound4 is not None or settings.outbound6 is not None
    abi = isolation.seal("serve", *profiles, bind=bind, signal=child)
    log.debug(f"isolated; Landlock: {f'ABI {abi}' if abi else 'this kernel has none'}")


def describe_families(plan: Plan, log: Log) -> None:
    """Log the addresses."""
    for name, family in (("IPv4", plan.v4), ("IPv6", plan.v6)):
        if family is None:
            log.info(f"{name}: off")
            continue
        address = "no address" if family.address is None else f"address {family.address}/{family.prefix}"
        loopback = f", {family.map_host_loopback} is the host's loopback" if family.map_host_loopback else ""
        log.info(f"{name}: {address}, gateway {family.gateway}{loopback}")
        if family.dns_forward and family.dns_host:
            log.info(f"DNS: {family.dns_forward} is {family.dns_host}")


def describe_forwards(bound: list[Bound], log: Log) -> None:
    """Log the forwards."""
    if bound:
        log.info(f"forwards: {len(bound)} sockets bound")
    for entry in bound if len(bound) < 64 else ():
        name = "TCP" if entry.protocol == sockets.IPPROTO_TCP else "UDP"
        log.debug(f"forward: {name} port {entry.port} to {entry.to}")


def install_signals(instance: Instance) -> None:
    """Let SIGTERM and SIGQUIT end the loop, and a command's end be noticed.

    Whoever started us may have blocked them, to take its own from a signalfd(2).
    """
    reader, writer = os.pipe()
    for fd in (reader, writer):
        os.set_blocking(fd, False)
    signals.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def end(number: int, frame: object) -> None:
        instance.path.stop()

    def nothing(number: int, frame: object) -> None:
        pass

    def woken() -> None:
        try:
            os.read(reader, 4096)
        except BlockingIOError:
            pass
        if instance.child:
            instance.on_child()

    signals.signal(signals.SIGTERM, end)
    if instance.child:
        # The keyboard's signals are for the command; its end is ours
        signals.signal(signals.SIGCHLD, nothing)
        signals.signal(signals.SIGINT, nothing)
        signals.signal(signals.SIGQUIT, nothing if has_terminal() else end)
    else:
        signals.signal(signals.SIGQUIT, end)
        signals.signal(signals.SIGINT, end)
    signals.signal(signals.SIGPIPE, signals.SIG_IGN)
    ours = (signals.SIGTERM, signals.SIGQUIT, signals.SIGINT, signals.SIGCHLD)
    signals.pthread_sigmask(signals.SIG_UNBLOCK, ours)
    instance.path.watch(reader, woken)
