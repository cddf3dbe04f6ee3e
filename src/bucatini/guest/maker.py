"""The makers of sockets, in the guest's namespace or, with a capability, on the host: their start, and their listeners.

Why there is one, and what it does, is in `datapath/socket_pool`: here are its process and Python's side of requests.
The packet path asks it for unbound sockets on a socket of its own.
"""

from __future__ import annotations

import errno
import os
import struct

from bucatini.datapath import socket_pool
from bucatini.errors import HostError
from bucatini.host import isolation, kernel
from bucatini.host.process import become, is_real_root, stand_apart
from bucatini.lean import sockets
from bucatini.lean.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ANSWER_SECONDS = 5  # at start-up, for one request
PENDING = 64  # requests under way at most, afterwards


# syscalls pasta: recvmsg close
# syscalls auto: sendto


def start_maker(identity: tuple[int, int] | None, *, isolated: bool, below: int = 0) -> tuple[int, int]:
    """Leave a process behind in the current namespaces, and return our ends: for the pool, for requests.

    Nobody waits for it: a command that is about to be run here must not find a child that it did not start.

    Args:
        identity: whom to be, uid and gid, where we are still root of the first user namespace.
        isolated: it keeps no right but that to bind low ports.
        below: it binds ports below this one and does nothing else; 0: whatever it is asked for.
    """
    ours, theirs = zip(*(sockets.socketpair(sockets.AF_UNIX, sockets.SOCK_SEQPACKET) for _ in range(2)), strict=True)
    between = os.fork()
    if between == 0:
        try:
            if os.fork() == 0:
                kernel.be_undumpable()
                pool, requests = (end.detach() for end in theirs)
                stand_apart(pool, requests)
                if identity is not None and is_real_root():
                    kernel.keep_capabilities_once()
                    become(*identity)
                    kernel.keep_capabilities(kernel.CAP_NET_BIND_SERVICE)  # and have it in effect again
                if isolated:
                    # The binder has no use for files
                    profile = "binder" if below else "maker"
                    isolation.confine(profile, kernel.CAP_NET_BIND_SERVICE, bind=True, read=not below)
                isolation.tell_confined(requests)
                socket_pool.make_sockets(pool, requests, below)
        finally:
            os._exit(0)
    os.waitpid(between, 0)
    for end in theirs:
        end.close()
    return ours[0].detach(), ours[1].detach()


class Maker:
    """Requests to the maker. Replies come in order; `on_readable` hands them to who asked."""

    def __init__(self, fd: int) -> None:
        """Wait until the maker is confined.

        Raises:
            HostError: it could not be, or did not answer.
        """
        isolation.await_confined(fd, "makes sockets")
        self.sock = sockets.socket(fileno=fd)
        self.sock.setblocking(False)
        self.request = struct.Struct(socket_pool.REQUEST)
        self.reply = struct.Struct(socket_pool.REPLY)
        self.number = 0
        self.waiting: dict[int, Callable[[int, int], None]] = {}
        self.gone = False

    def fileno(self) -> int:
        return self.sock.fileno()

    def has_room(self) -> bool:
        """Whether another request may be sent."""
        return not self.gone and len(self.waiting) < PENDING

    def bind(
        self,
        done: Callable[[int, int], None],
        protocol: int,
        version: int,
        port: int,
        *,
        address: bytes = b"",
        scope_id: int = 0,
        interface: str = "",
    ) -> None:
        """Ask for a bound (UDP) or listening (TCP) socket; calls `done` with descriptor and errno, -1 and 0 if not.

        Args:
            protocol: 6 or 17.
            version: 4, 6, or 0 for dual stack.
            address: 16 bytes, b"" for any.
        """
        self._ask(done, socket_pool.BIND, protocol, version, port, scope_id, address, interface)

    def diagnostics(self, done: Callable[[int, int], None]) -> None:
        """Ask for a netlink socket that knows the sockets of the namespace (sock_diag(7))."""
        self._ask(done, socket_pool.DIAG)

    def table(self, done: Callable[[int, int], None], protocol: int, version: int) -> None:
        """Ask for the open list of sockets in /proc/net."""
        self._ask(done, socket_pool.TABLE, protocol, version)

    def _ask(
        self,
        done: Callable[[int, int], None],
        what: int,
        protocol: int = 0,
        version: int = 0,
        port: int = 0,
        scope_id: int = 0,
        address: bytes = b"",
        interface: str = "",
    ) -> None:
        self.number = self.number + 1 & 0xFFFFFFFF
        message = self.request.pack(
            self.number, what, protocol, version, 1, port, 0, scope_id, address or bytes(16), interface.encode()
        )
        try:
            self.sock.send(message, sockets.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                self._end()
            done(-1, error.errno or 0)
            return
        self.waiting[self.number] = done

    def on_readable(self) -> None:
        """Take the replies that have come."""
        try:
            while not self.gone:
                self._take()
        except (BlockingIOError, InterruptedError):
            return

    def _take(self) -> None:
        """Take one reply; BlockingIOError, at start-up TimeoutError when there is none."""
        # sockets.recv_fds does not pass its flags on, and this closes descriptors at an exec
        try:
            data, control, _, _ = self.sock.recvmsg(self.reply.size, sockets.CMSG_LEN(4), sockets.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError, TimeoutError):
            raise
        except OSError:
            data, control = b"", []
        if len(data) != self.reply.size:
            self._end()
            return
        number, error = self.reply.unpack(data)
        fd = struct.unpack("=i", control[0][2])[0] if control and len(control[0][2]) == 4 else -1
        found = self.waiting.pop(number, None)
        if found is not None:
            found(fd, error)
        elif fd >= 0:
            os.close(fd)

    def _end(self) -> None:
        """It is gone: nobody waits for it any longer."""
        self.gone = True
        waiting, self.waiting = self.waiting, {}
        for done in waiting.values():
            done(-1, errno.EPIPE)

    def wait(self) -> None:
        """At start-up: wait until everything asked for is there."""
        self.sock.settimeout(ANSWER_SECONDS)
        try:
            while self.waiting and not self.gone:
                self._take()
        except TimeoutError:
            raise HostError("get sockets of the guest's namespace", errno.ETIMEDOUT) from None
        finally:
            self.sock.setblocking(False)
        if self.gone:
            raise HostError("get sockets of the guest's namespace", errno.EPIPE)
