"""Errors that cross a layer. Every other module may import this one; it imports nothing of ours."""

from __future__ import annotations

import errno as _errno
import os


class BucatiniError(Exception):
    """Base of all errors that end a command with one line on stderr and exit status 1."""


class UsageError(BucatiniError):
    """The command line asks for something that cannot be: names the option and the value."""


class NotYetError(UsageError):
    """A valid option asks for a capability that this version does not have."""


class HostError(BucatiniError):
    """The host refused an operation.

    Args:
        doing: what was being done, e.g. "open /dev/net/tun".
        errno: the error number of the failed call.
        advice: what the user can do about it; a default is added for EPERM and ENOSYS.
    """

    def __init__(self, doing: str, errno: int, advice: str = "") -> None:
        self.doing = doing
        self.errno = errno
        self.advice = advice or _ADVICE.get(errno, "")
        super().__init__(f"{doing}: {os.strerror(errno)}" + (f" ({self.advice})" if self.advice else ""))


_ADVICE = {
    _errno.EPERM: "'bucatini doctor' tells what this host allows",
    _errno.ENOSYS: "this kernel does not have it; 'bucatini doctor' tells more",
}


class WireError(ValueError):
    """A message on the wire is not what its format demands. Never leaves the slow path."""


class Truncated(WireError):
    """The message ends before its format does."""


class Malformed(WireError):
    """A field of the message has a value its format forbids."""
