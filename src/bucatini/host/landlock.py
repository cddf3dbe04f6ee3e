"""Landlock: a second wall behind the empty root, where the kernel has it (landlock(7)).

It forbids every access to files that is not through a descriptor held already; from ABI 4 on to bind TCP sockets, for
who does not do that any more; from ABI 6 on to reach abstract UNIX sockets and to signal processes outside.
"""

from __future__ import annotations

import os
import struct

from bucatini.datapath.syscall_numbers import numbers
from bucatini.errors import HostError
from bucatini.host import kernel

_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION, linux/landlock.h
_BIND_TCP = 1  # LANDLOCK_ACCESS_NET_BIND_TCP
_UNIX = 1  # LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
_SIGNAL = 2  # LANDLOCK_SCOPE_SIGNAL
_READING = 1 << 2 | 1 << 3  # LANDLOCK_ACCESS_FS_READ_FILE, _READ_DIR
# How many of the LANDLOCK_ACCESS_FS_* bits there are, by ABI
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_FILE_RIGHTS_NOW = 16  # from ABI 5 on


def rule_set(abi: int, *, bind: bool = False, read: bool = False, signal: bool = False) -> bytes:
    """Return the struct landlock_ruleset_attr that forbids all that this ABI can, but for what is let through."""
    files = (1 << _FILE_RIGHTS.get(abi, _FILE_RIGHTS_NOW)) - 1
    if read:
        files &= ~_READING
    if abi < 4:
        return struct.pack("=Q", files)
    network = 0 if bind else _BIND_TCP
    if abi < 6:
        return struct.pack("=QQ", files, network)
    return struct.pack("=QQQ", files, network, _UNIX | (0 if signal else _SIGNAL))


def abi() -> int:
    """Return the version of Landlock that the kernel has, 0: none."""
    number = numbers().get("landlock_create_ruleset", 444)
    return max(0, kernel.call(number, None, 0, _VERSION))


def restrict(*, bind: bool = False, read: bool = False, signal: bool = False) -> int:
    """Put the wall up, for good; privileges were renounced before. Returns the ABI that it is of, 0: there is none.

    Args:
        bind: TCP sockets may still be bound.
        read: files and folders may still be read.
        signal: processes outside may still be signalled, as a child is that wants to end with its parent
            (PR_SET_PDEATHSIG comes from the parent, and is subject to this).

    Raises:
        HostError: the kernel has it and refuses.
    """
    version = abi()
    if not version:
        return 0
    calls = numbers()
    rules = rule_set(version, bind=bind, read=read, signal=signal)
    fd = kernel.call(calls.get("landlock_create_ruleset", 444), rules, len(rules), 0)
    if fd < 0:
        raise HostError("make a Landlock rule set", -fd)
    error = kernel.call(calls.get("landlock_restrict_self", 446), fd, 0)
    os.close(fd)
    if error < 0:
        raise HostError("enforce a Landlock rule set", -error)
    return version
