"""One run of pasta, from settings to the end: each stage a function, in the order in which they must come.

1. `look_at_host`, `make_plan`: what the host has and what follows from it. Nothing is changed yet.
2. `spawn` or `join`: a child makes the guest's namespaces and its tap, and configures them, while we load the packet
   path and the services. A spawned command waits.
3. `bind_forwards`: as whoever started us, low ports included. Then the files that the user named: capture and pid file.
   Where `auto` may need low ports later, the binder is left with the capability for it.
4. Root is given up (`become`), unless it is the root of somebody's user namespace or was asked for.
5. The lookout is left outside (`runtime/lookout`). `own_namespaces`; the background, where asked for, is forked.
6. `Instance`: the compiled loop gets the plan, the tap, the listeners, and Python its upcalls.
7. `isolate`: the root is exchanged, everything is given up that serving does not need (`host/isolation`).
8. Readiness: pid file complete, the command told to go, the parent exits 0.
9. The loop, until SIGTERM or SIGQUIT, the end of the command, or the end of the namespace.

A failure up to readiness prints one line and leaves nothing behind, as far as the user that we became may remove it
and the root was not exchanged yet.
"""

from __future__ import annotations

import os

from bucatini.errors import BucatiniError
from bucatini.guest.namespace import Guest, Identity, join, namespace_paths, spawn
from bucatini.guest.watch import NamespaceWatch
from bucatini.host import kernel, process
from bucatini.host.view import look_at_host
from bucatini.lean.record import TYPE_CHECKING
from bucatini.plan.plan import Plan, make_plan
from bucatini.runtime.forwards import (
    Bound,
    Versions,
    bind_forwards,
    bind_in_namespace,
    bind_on_host,
    forward_rules,
    give_to,
    namespace_rules,
)
from bucatini.runtime.lookout import start_lookout

if TYPE_CHECKING:
    from collections.abc import Callable

    from bucatini.datapath.loop import DataPath
    from bucatini.guest.maker import Maker
    from bucatini.plan.ports import ForwardRule
    from bucatini.plan.settings import Settings
    from bucatini.runtime.log import Log

AUTO_LISTENERS = 4096  # that forwards which find their ports may have at the same time,
AUTO_SHARE = 4  # and one in so many of the descriptors at most


def run(settings: Settings, log: Log, now: Callable[[], int]) -> int:
    """Run pasta; returns the exit status.

    Args:
        now: the monotonic clock, ns.

    Raises:
        BucatiniError: start-up failed.
    """
    with process.Made() as made:
        return serve(settings, log, now, made)


def serve(settings: Settings, log: Log, now: Callable[[], int], made: process.Made) -> int:
    """Start, and serve until the end; what is left in `made` is to be removed."""
    spawning = settings.target_pid is None and settings.netns is None
    host = look_at_host(settings)
    plan = make_plan(settings, host)
    for text in plan.warnings:
        log.warning(text)
    root = process.is_real_root()
    identity = Identity(*process.identity_of(settings.runas)) if root else None
    if identity == (0, 0):
        identity = None
    pending = spawn(plan, settings, identity) if spawning else join(plan, settings, identity)
    from bucatini.runtime import instance as running

    guest = pending.result()
    process.read_no_terminal()  # a command has its own
    files = process.raise_descriptor_limit()  # ours, not that of the command
    for text in guest.notes:
        log.debug(text)
    watch = None
    if not spawning and settings.netns_quit:
        watch = NamespaceWatch(namespace_paths(settings)[1])
    versions = Versions(plan.v4 is not None, plan.v6 is not None)
    ephemeral = process.ephemeral_range()
    inward, outward = forward_rules(settings, ephemeral), namespace_rules(settings, ephemeral)

    def on_host(rule: ForwardRule, port: int) -> Bound:
        return bind_on_host(rule, port, versions, settings.freebind)

    wanted = [(rule, on_host) for rule in inward]
    maker = None
    if guest.maker is not None:
        from bucatini.guest.maker import Maker

        maker = Maker(guest.maker.requests)
        wanted += [(rule, lambda rule, port: bind_in_namespace(rule, port, versions, maker)) for rule in outward]
    bound = bind_forwards(wanted, log.warning)
    capture = running.open_capture(settings.pcap, made)
    pid_file = process.PidFile(settings.pid_file, made) if settings.pid_file is not None else None
    binder = start_binder(settings, identity)
    if identity is not None:
        give_to(identity.uid, identity.gid, bound)
        process.become(identity.uid, identity.gid)
    lookout = -1
    if watch is not None or not settings.splice_only:
        lookout = start_lookout(watch, settings, host)
    background = running.withdraw(settings, pid_file, made, log, foreground=settings.foreground or spawning)
    describe(plan, guest, bound, log)
    automatic = min(AUTO_LISTENERS, files // AUTO_SHARE) if settings.is_automatic() else 0
    instance = running.Instance(settings, plan, log, ephemeral, max(1, len(bound) + automatic), guest.child)
    instance.start_statistics(now())
    instance.serve_forwards(bound)
    open_link(instance.path, guest)
    instance.wrap_link(capture, running.summary(settings, foreground=background is None))
    if maker is not None:
        instance.follow_maker(maker, "no bypass for new connections")
        if binder is not None:
            instance.follow_maker(binder, "low ports are not forwarded by themselves any more")
        instance.forward_automatically(maker, binder, inward, outward, bound, versions, automatic)
    running.install_signals(instance)
    if not settings.splice_only:
        instance.load_services()
    if lookout >= 0:
        instance.follow_lookout(lookout, host)
    profiles = ("pasta",) if instance.auto is None else ("pasta", "auto")
    running.isolate(settings, log, *profiles, child=bool(guest.child))
    if background is None and pid_file is not None:
        pid_file.write(os.getpid())
    if guest.go >= 0:
        os.write(guest.go, b"+")
    if background is not None:
        log.to_background()
        background.ready()
    made.keep()
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


def start_binder(settings: Settings, identity: Identity | None) -> Maker | None:
    """Leave a maker outside that keeps a granted CAP_NET_BIND_SERVICE, where low ports may forward themselves later."""
    if not any(spec.auto for spec in settings.tcp_ports + settings.udp_ports) or not kernel.may_bind_low_ports():
        return None
    low = process.unprivileged_ports()
    if low == 0:
        return None
    from bucatini.guest.maker import Maker, start_maker

    _, requests = start_maker(identity, isolated=settings.isolated, below=low)
    return Maker(requests)


def open_link(path: DataPath, guest: Guest) -> None:
    """Give the compiled loop the tap, and the maker of sockets in the guest's namespace."""
    from bucatini.datapath.loop import FEATURE_TSO, FEATURE_USO

    if guest.mac != bytes(6):
        path.guest_mac(guest.mac)
    if guest.tap >= 0:
        path.open_tap(guest.tap, (FEATURE_TSO if guest.tso else 0) | (FEATURE_USO if guest.uso else 0))
    if guest.maker is not None:
        path.open_sockets(guest.maker.pool)


def describe(plan: Plan, guest: Guest, bound: list[Bound], log: Log) -> None:
    """Log what was made."""
    from bucatini.runtime.instance import describe_families, describe_forwards

    log.info(
        f"interface {plan.ifname} in the namespace, MAC address {guest.mac.hex(':')}, MTU {plan.mtu or 'as it is'}"
    )
    describe_families(plan, log)
    describe_forwards(bound, log)
    log.debug(f"offloads of the tap: TSO {guest.tso}, USO {guest.uso}; our MAC address {plan.our_mac.hex(':')}")
