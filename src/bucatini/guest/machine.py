"""The virtual machine's side: the socket at which QEMU finds us, and the clients that come and go.

One client is served at a time. A further one is turned away, unless the one before has gone without our having noticed.
The path is ours if nobody has it: what a process that is gone has left is removed. Starts in one network namespace look
one after the other (`_take_turn`): what one saw left over could be another's by the time that it is removed.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time

from bucatini.errors import HostError
from bucatini.lean import sockets

# syscalls passt: ioctl setsockopt poll ppoll recvfrom

PATH = "/tmp/passt_{}.socket"  # noqa: S108 - where QEMU users expect it
PATHS = 64
LOCK = "\0bucatini/{}.{}"  # an abstract address (unix(7)), of a folder's device and inode: who has it looks there
TURN = 1.0  # seconds to wait for that at most: anybody could take it
BUFFER = 1 << 22  # bytes on the way to the client; net.core.wmem_max cuts it


def _bind(path: str) -> sockets.socket | None:
    """Listen at a path; None when somebody else does. Raises OSError."""
    if _is_taken(path):
        return None
    sock = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_NONBLOCK | sockets.SOCK_CLOEXEC)
    try:
        sock.bind(path)
        sock.listen(1)
    except OSError:
        sock.close()
        raise
    return sock


def _is_taken(path: str) -> bool:
    """Whether a socket is bound to a path; one that nobody has any more is removed. Raises OSError.

    Asked for by a socket of another type, which is refused where there is one (EPROTOTYPE): a connection would be a
    client for whoever listens there.
    """
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM | sockets.SOCK_NONBLOCK | sockets.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return False
        except ConnectionRefusedError:
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
            return False
        except OSError as error:
            if error.errno not in (errno.EPROTOTYPE, errno.EACCES, errno.EPERM):
                raise
    return True


def _take_turn(path: str) -> sockets.socket | None:
    """Wait until no other start looks at the folder of a path; returns what to close then, None: there is no folder."""
    try:
        folder = os.stat(os.path.dirname(path) or ".")
    except OSError:
        return None
    lock = sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM | sockets.SOCK_CLOEXEC)
    until = time.monotonic() + TURN
    while True:
        try:
            lock.bind(LOCK.format(folder.st_dev, folder.st_ino))
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < until:
                time.sleep(0.002)
                continue
        return lock


def listen(path: str | None) -> tuple[sockets.socket, str]:
    """Listen at `path`, or at the first of the default paths that nobody uses; returns the socket and its path.

    Raises:
        HostError: it cannot be, or somebody else listens there.
    """
    turn = _take_turn(path or PATH)
    try:
        return _listen(path)
    finally:
        if turn is not None:
            turn.close()


def _listen(path: str | None) -> tuple[sockets.socket, str]:
    if path is not None:
        try:
            sock = _bind(path)
        except OSError as error:
            raise HostError(f"listen at {path}", error.errno or 0) from None
        if sock is None:
            raise HostError(f"listen at {path}", errno.EADDRINUSE)
        return sock, path
    for number in range(1, PATHS + 1):
        path = PATH.format(number)
        try:
            sock = _bind(path)
        except OSError:
            continue  # somebody else's
        if sock is not None:
            return sock, path
    raise HostError(f"listen at any of {PATH.format(1)} to {PATH.format(PATHS)}", errno.EADDRINUSE)


def inherited(fd: int) -> sockets.socket:
    """Return the connected socket that was inherited as `fd`.

    Raises:
        HostError: it is none.
    """
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise HostError(f"use descriptor {fd} of --fd", errno.ENOTSOCK)
        sock = sockets.socket(fileno=fd)
    except OSError as error:
        raise HostError(f"use descriptor {fd} of --fd", error.errno or 0) from None
    if sock.family != sockets.AF_UNIX and sock.family not in (sockets.AF_INET, sockets.AF_INET6):
        raise HostError(f"use descriptor {fd} of --fd", errno.EAFNOSUPPORT)
    if sock.type != sockets.SOCK_STREAM:
        raise HostError(f"use descriptor {fd} of --fd", errno.EPROTOTYPE)
    try:
        sock.getpeername()
    except OSError as error:
        raise HostError(f"use descriptor {fd} of --fd", error.errno or 0) from None
    os.set_inheritable(fd, False)
    return sock


def prepare(sock: sockets.socket) -> None:
    """Give a client's socket room."""
    sock.setblocking(False)
    sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, BUFFER)


def has_gone(sock: sockets.socket) -> bool:
    """Whether the client at the other end has closed its side."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def only_looked(sock: sockets.socket) -> bool:
    """Whether the client has gone and left nothing: it wanted to know whether somebody listens.

    One that goes a moment later is a client and has gone, for there are those that come and go without a word.
    """
    try:
        return has_gone(sock) and not sock.recv(1, sockets.MSG_PEEK)
    except OSError:
        return True
