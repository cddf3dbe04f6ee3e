"""The lookout: a process outside of the wall that watches the file system for the one inside (`host/isolation`).

The process that serves has no files. Two things in the file system concern it all the same: whether the name of the
namespace that it joined is still there (`guest/watch`), and what the host's resolv.conf says (D3). So does what the
host's own addresses are (D15), of which the kernel tells. The lookout tells it, over a pipe in packet mode (pipe(2),
O_DIRECT), and is told nothing: whoever has taken over the process that serves has no way to make the lookout do
anything but end. It ends when nobody reads the pipe any more.

Messages: that it is confined, once (`isolation`); then `GONE`; or `RESOLVERS` and two lines of words, name servers and
search list; or `ADDRESSES` and two lines, IPv4's and IPv6's: index of the interface and, where there is one, address.

Failure: without the lookout (somebody has ended it) the end of the namespace, new resolvers and new addresses go
unnoticed, which is said once.
"""

from __future__ import annotations

import os
import select
import time

from bucatini.errors import HostError
from bucatini.host import isolation, resolv
from bucatini.host.process import stand_apart
from bucatini.host.view import HostWatch, Own, own
from bucatini.lean.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from bucatini.guest.watch import NamespaceWatch
    from bucatini.host.resolv import Resolvers
    from bucatini.plan.plan import HostView
    from bucatini.plan.settings import Settings

# The server's end, and the lookout's; Python looks at the clock for the timeout of its poll
# syscalls serve: read
# syscalls lookout: write poll ppoll clock_gettime

GONE = b"G"
RESOLVERS = b"R"
ADDRESSES = b"A"
SETTLE = 0.2  # seconds from a change to a look: changes come several at a time
RETRY = 5.0  # and until another one, if that failed
LOOK_SHARE = 20  # looking takes one part in so many of the time at most
MESSAGE = 4096  # bytes, PIPE_BUF: a packet is not cut into several


def packed(resolvers: Resolvers) -> bytes:
    """Return the message that tells of resolvers, without what would not fit."""
    lists = [list(words) for words in resolvers]
    while len(message := RESOLVERS + "\n".join(" ".join(words) for words in lists).encode()) > MESSAGE:
        lists[1 if lists[1] else 0].pop()
    return message


def unpacked(message: bytes) -> Resolvers:
    """Return what `packed` has packed."""
    servers, _, search = message[len(RESOLVERS) :].decode().partition("\n")
    return tuple(servers.split()), tuple(search.split())


def packed_addresses(found: tuple[Own, Own]) -> bytes:
    """Return the message that tells what is the host's own."""
    return ADDRESSES + "\n".join(f"{each.ifindex} {each.address}" for each in found).encode()


def unpacked_addresses(message: bytes) -> tuple[Own, Own]:
    """Return what `packed_addresses` has packed."""
    v4, v6 = (line.split(" ") for line in message[len(ADDRESSES) :].decode().split("\n"))
    return Own(v4[1], int(v4[0])), Own(v6[1], int(v6[0]))


class Lookout:
    """Our end of the pipe."""

    def __init__(
        self,
        fd: int,
        on_gone: Callable[[], None],
        on_resolvers: Callable[[Resolvers], None],
        on_addresses: Callable[[Own, Own], None],
    ) -> None:
        """Wait until the lookout is confined.

        Raises:
            HostError: it could not be, or did not answer.
        """
        self.fd = fd
        self.on_gone = on_gone
        self.on_resolvers = on_resolvers
        self.on_addresses = on_addresses
        isolation.await_confined(fd, "watches files")

    def on_readable(self) -> bool:
        """Take what there is; whether the lookout is still there."""
        while True:
            try:
                message = os.read(self.fd, MESSAGE)
            except BlockingIOError:
                return True
            if not message:
                return False
            if message == GONE:
                self.on_gone()
            elif message.startswith(RESOLVERS):
                self.on_resolvers(unpacked(message))
            elif message.startswith(ADDRESSES):
                self.on_addresses(*unpacked_addresses(message))


def start_lookout(watch: NamespaceWatch | None, settings: Settings, host: HostView) -> int:
    """Start the lookout; returns the descriptor of our end.

    Args:
        watch: of the namespace, None: that does not matter. The lookout takes it over.
        host: what the host was taken to have.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_DIRECT)
    if os.fork() == 0:
        try:
            resolvers, addresses = _watch_resolvers(), _watch_addresses(settings)
            mine = ({writer, resolvers} | (watch.held() if watch is not None else set())) - {-1}
            stand_apart(*mine, *(addresses.held() if addresses is not None else ()))
            if settings.isolated:
                isolation.confine("lookout", read=True)
            isolation.tell_confined(writer)
            look(writer, watch, resolvers, addresses, host)
        finally:
            os._exit(0)
    os.close(writer)
    os.set_blocking(reader, False)
    if watch is not None:
        watch.close()
    return reader


def _watch_resolvers() -> int:
    """Return a descriptor that is readable when resolv.conf may have changed, -1: none is to be had."""
    try:
        return resolv.watch()
    except HostError:
        return -1  # the limit of watches is reached: then changes go unnoticed


def _watch_addresses(settings: Settings) -> HostWatch | None:
    """Return what knows of the host's own addresses, None: it is not to be had."""
    try:
        return HostWatch(settings)
    except HostError:
        return None


class Addresses:
    """When to look at the host's own addresses, and what was found last."""

    def __init__(self, watch: HostWatch, known: tuple[Own, Own]) -> None:
        self.watch = watch
        self.known = known
        self.due: float | None = 0.0  # at once: they may have changed while we started
        self.earliest = 0.0
        self.deaf = 0.0  # until then changes may gather: on a router they come all the time

    def changed(self, now: float, *, told: bool = False) -> tuple[Own, Own] | None:
        """Return them if they are others than before, and it is time to look.

        Args:
            now: seconds, monotonic.
            told: something has changed.
        """
        if told:
            self.deaf = now + SETTLE
            if self.watch.changes.seen() and self.due is None:
                self.due = max(now + SETTLE, self.earliest)
        if self.due is None or now < self.due:
            return None
        self.due = None
        try:
            found = self.watch.look()
        except HostError:
            self.due = now + RETRY
            return None
        self.earliest = now + LOOK_SHARE * (time.monotonic() - now)
        if found == self.known:
            return None
        self.known = found
        return found

    def wait(self, now: float) -> int | None:
        """Return how long nothing has to be done, ms, None: until something changes, to be waited for (`hears`)."""
        times = [at for at in (self.due, None if self.hears(now) else self.deaf) if at is not None]
        return max(0, int((min(times) - now) * 1000)) + 1 if times else None

    def hears(self, now: float) -> bool:
        """Whether to be woken by changes."""
        return now >= self.deaf


def look(
    writer: int, watch: NamespaceWatch | None, resolvers: int, addresses: HostWatch | None, host: HostView
) -> None:
    """Be the lookout, until the namespace or the reader is gone."""
    known = host.nameservers, host.search
    poll = select.poll()
    poll.register(writer, 0)  # POLLERR comes unasked
    if resolvers >= 0:
        poll.register(resolvers, select.POLLIN)
    follow = None
    if addresses is not None:
        poll.register(addresses.changes.fileno(), select.POLLIN)
        follow = Addresses(addresses, (own(host.v4), own(host.v6)))
    pause = None
    if watch is not None:
        if watch.fd >= 0:
            poll.register(watch.fd, select.POLLIN)
        pause = watch.poll_ns // 1_000_000 or None
    told = False
    while True:
        if watch is not None and watch.gone():
            os.write(writer, GONE)
            return
        found = resolv.changed(resolvers, known)
        if found is not None:
            known = found
            os.write(writer, packed(found))
        timeout = pause
        if follow is not None:
            moved = follow.changed(time.monotonic(), told=told)
            if moved is not None:
                os.write(writer, packed_addresses(moved))
            now = time.monotonic()
            poll.modify(follow.watch.changes.fileno(), select.POLLIN if follow.hears(now) else 0)
            timeout = min((each for each in (pause, follow.wait(now)) if each is not None), default=None)
        ready = {fd for fd, _ in poll.poll(timeout)}
        if writer in ready:
            return
        told = follow is not None and follow.watch.changes.fileno() in ready
