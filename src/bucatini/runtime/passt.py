"""One run of passt, from settings to the end: each stage a function, in the order in which they must come.

1. `look_at_host`, `make_plan`: what the host has and what follows from it. Nothing is changed yet.
2. `bind_forwards`: as whoever started us, low ports included.
3. What is seen in the file system, when little is left that could fail: the socket for QEMU, bound unless it was
   inherited, so that whoever waits for our parent can connect from readiness on; capture and pid file.
4. Root is given up (`become`).
5. The lookout is left outside (`runtime/lookout`). `own_namespaces`; the background, where asked for, is forked.
6. `Instance`, `Machine`: the compiled loop gets the plan, the listeners, and Python its upcalls.
7. `isolate`: the root is exchanged, everything is given up that serving does not need (`host/isolation`).
8. Readiness: pid file complete, the parent exits 0.
9. The loop, until SIGTERM or SIGQUIT, or with --one-off the client's end.

A failure up to readiness prints one line and leaves nothing behind, as far as the user that we became may remove it
and the root was not exchanged yet.
"""

from __future__ import annotations

import errno
import os

from bucatini.errors import BucatiniError
from bucatini.guest import machine
from bucatini.host import process
from bucatini.host.view import look_at_host
from bucatini.lean.record import TYPE_CHECKING
from bucatini.plan.plan import Plan, make_plan
from bucatini.runtime.forwards import Bound, Versions, bind_forwards, bind_on_host, forward_rules, give_to
from bucatini.runtime.instance import (
    Instance,
    describe_families,
    describe_forwards,
    install_signals,
    isolate,
    open_capture,
    summary,
    withdraw,
)
from bucatini.runtime.lookout import start_lookout

if TYPE_CHECKING:
    from collections.abc import Callable

    from bucatini.lean import sockets
    from bucatini.plan.ports import ForwardRule
    from bucatini.plan.settings import Settings
    from bucatini.runtime.log import Log

# syscalls passt: eventfd2 close


class Machine:
    """Who serves the guest: the clients of the socket, one at a time."""

    def __init__(self, instance: Instance, listener: sockets.socket | None, one_off: bool) -> None:
        self.instance = instance
        self.listener = listener
        self.one_off = one_off
        self.client: sockets.socket | None = None
        self.spare = os.eventfd(0)  # given up for a moment, see `refuse`
        instance.path.open_stream(self.on_lost)
        if listener is not None:
            instance.path.watch(listener.fileno(), self.on_knock)

    def on_knock(self) -> None:
        """Somebody connects."""
        assert self.listener is not None
        if self.client is not None and machine.has_gone(self.client):
            return  # its end is read first; who knocks waits for that
        try:
            sock, _ = self.listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            self.instance.log.warning(f"a client could not be accepted: {error.strerror}")
            self.refuse()
            return
        if machine.only_looked(sock):
            sock.close()
            return
        if self.client is not None:
            self.instance.log.info("a second client was turned away")
            sock.close()
            return
        self.instance.log.info("client connected")
        self.take(sock)

    def refuse(self) -> None:
        """Take whoever waits, for whom there is no descriptor, and let go at once: else we would be told for ever."""
        assert self.listener is not None
        os.close(self.spare)
        try:
            self.listener.accept()[0].close()
        except OSError:
            pass
        self.spare = os.eventfd(0)

    def take(self, sock: sockets.socket) -> None:
        """Serve a client."""
        machine.prepare(sock)
        self.client = sock
        self.instance.path.attach(sock.fileno())
        if self.one_off and self.listener is not None:
            self.instance.path.unwatch(self.listener.fileno())
            self.listener.close()
            self.listener = None
        self.instance.find_guest()

    def drop(self) -> None:
        """Let go of the client; what is under way waits for the next one."""
        if self.client is not None:
            self.instance.path.detach()
            self.instance.lose_guest()
            self.client.close()
            self.client = None

    def on_lost(self, number: int, size: int) -> None:
        """The client is gone, or has to go."""
        log = self.instance.log
        if number == errno.EPROTO:
            log.warning(f"the client sent a frame of {size} bytes, which cannot be: disconnected")
        elif size:
            log.warning(f"the client disconnected {size} bytes into a frame")
        elif number == errno.ENOTCONN:
            log.info("client disconnected")
        else:
            log.info(f"client disconnected: {os.strerror(number)}")
        self.drop()
        if self.one_off:
            self.instance.path.stop()


def run(settings: Settings, log: Log, now: Callable[[], int]) -> int:
    """Run passt; returns the exit status.

    Args:
        now: the monotonic clock, ns.

    Raises:
        BucatiniError: start-up failed.
    """
    with process.Made() as made:
        return serve(settings, log, now, made)


def serve(settings: Settings, log: Log, now: Callable[[], int], made: process.Made) -> int:
    """Start, and serve until the end; what is left in `made` is to be removed."""
    host = look_at_host(settings)
    plan = make_plan(settings, host)
    for text in plan.warnings:
        log.warning(text)
    root = process.is_real_root()
    uid, gid = process.identity_of(settings.runas) if root else (0, 0)
    listener = client = None
    if settings.fd is not None:
        client = machine.inherited(settings.fd)
    process.raise_descriptor_limit()
    process.read_no_terminal()
    versions = Versions(plan.v4 is not None, plan.v6 is not None)
    ephemeral = process.ephemeral_range()
    inward = forward_rules(settings, ephemeral)

    def on_host(rule: ForwardRule, port: int) -> Bound:
        return bind_on_host(rule, port, versions, settings.freebind)

    bound = bind_forwards([(rule, on_host) for rule in inward], log.warning)
    if client is None:
        listener, path = machine.listen(settings.socket_path)
        made.add(path)
        log.info(f"QEMU: -netdev stream,id=net0,server=off,addr.type=unix,addr.path={path}")
    capture = open_capture(settings.pcap, made)
    pid_file = process.PidFile(settings.pid_file, made) if settings.pid_file is not None else None
    if (uid, gid) != (0, 0):
        give_to(uid, gid, bound)
        process.become(uid, gid)
    lookout = start_lookout(None, settings, host)
    background = withdraw(settings, pid_file, made, log, foreground=settings.foreground)
    describe(plan, bound, log)
    instance = Instance(settings, plan, log, ephemeral, max(1, len(bound)))
    instance.start_statistics(now())
    instance.serve_forwards(bound)
    served = Machine(instance, listener, settings.one_off)
    instance.wrap_link(capture, summary(settings, foreground=background is None))
    install_signals(instance)
    instance.load_services()
    instance.follow_lookout(lookout, host)
    isolate(settings, log, "passt")
    if background is None:
        if pid_file is not None:
            pid_file.write(os.getpid())
    else:
        log.to_background()
        background.ready()
    made.keep()
    if client is not None:
        served.take(client)
    try:
        instance.path.run()
    except OSError as error:
        raise BucatiniError(f"the client's socket failed: {error.strerror}") from None
    finally:
        if settings.stats:
            instance.show_counters()
    return instance.status


def describe(plan: Plan, bound: list[Bound], log: Log) -> None:
    """Log what was made."""
    log.info(f"guest: MTU {plan.mtu or 'as it is'}")
    describe_families(plan, log)
    describe_forwards(bound, log)
    log.debug(f"our MAC address {plan.our_mac.hex(':')}")
