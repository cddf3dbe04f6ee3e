"""The lookout: a process outside of the wall that watches the file system for the one inside (`host/isolation`).

The process that serves has no files. Two things in the file system concern it all the same: whether the name of the
namespace that it joined is still there (`guest/watch`), and what the host's resolv.conf says (D3). The lookout tells
it, over a pipe in packet mode (pipe(2), O_DIRECT), and is told nothing: whoever has taken over the process that serves
has no way to make the lookout do anything but end. It ends when nobody reads the pipe any more.

Messages: that it is confined, once (`isolation`); then `GONE`; or `RESOLVERS` and two lines of words, name servers and
search list.

Failure: without the lookout (somebody has ended it) the end of the namespace and new resolvers go unnoticed, which is
said once.
"""

from __future__ import annotations

import os
import select

from bucatini.errors import HostError
from bucatini.host import isolation, resolv
from bucatini.host.process import stand_apart
from bucatini.lean.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from bucatini.guest.watch import NamespaceWatch
    from bucatini.host.resolv import Resolvers

# The server's end, and the lookout's; Python looks at the clock for the timeout of its poll
# syscalls serve: read
# syscalls lookout: write poll ppoll clock_gettime

GONE = b"G"
RESOLVERS = b"R"
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


class Lookout:
    """Our end of the pipe."""

    def __init__(self, fd: int, on_gone: Callable[[], None], on_resolvers: Callable[[Resolvers], None]) -> None:
        """Wait until the lookout is confined.

        Raises:
            HostError: it could not be, or did not answer.
        """
        self.fd = fd
        self.on_gone = on_gone
        self.on_resolvers = on_resolvers
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


def start_lookout(watch: NamespaceWatch | None, known: Resolvers, *, isolated: bool) -> int:
    """Start the lookout; returns the descriptor of our end.

    Args:
        watch: of the namespace, None: that does not matter. The lookout takes it over.
        known: what resolv.conf was taken to say.
        isolated: it gives up what it can do without.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_DIRECT)
    if os.fork() == 0:
        try:
            resolvers = _watch_resolvers()
            mine = ({writer, resolvers} | (watch.held() if watch is not None else set())) - {-1}
            stand_apart(*mine)
            if isolated:
                isolation.confine("lookout", read=True)
            isolation.tell_confined(writer)
            look(writer, watch, resolvers, known)
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


def look(writer: int, watch: NamespaceWatch | None, resolvers: int, known: Resolvers) -> None:
    """Be the lookout, until the namespace or the reader is gone."""
    poll = select.poll()
    poll.register(writer, 0)  # POLLERR comes unasked
    if resolvers >= 0:
        poll.register(resolvers, select.POLLIN)
    timeout = None
    if watch is not None:
        if watch.fd >= 0:
            poll.register(watch.fd, select.POLLIN)
        timeout = watch.poll_ns // 1_000_000 or None
    while True:
        if watch is not None and watch.gone():
            os.write(writer, GONE)
            return
        found = resolv.changed(resolvers, known)
        if found is not None:
            known = found
            os.write(writer, packed(found))
        if any(fd == writer for fd, _ in poll.poll(timeout)):
            return
