"""System calls that Python 3.11 has no function for, by way of the C library.

The one place where ctypes is used. Every function raises `HostError` naming what was being done; constants are spelt as
in the kernel's headers.
"""

import ctypes
import os

from bucatini.errors import HostError

CLONE_NEWNS = 0x00020000  # linux/sched.h
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID = 2  # linux/mount.h
MS_NODEV = 4
MS_NOEXEC = 8
MS_REC = 16384
MS_SLAVE = 1 << 19

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_DUMPABLE = 4

IN_CLOSE_WRITE = 0x00000008  # linux/inotify.h
IN_MOVED_TO = 0x00000080
IN_CREATE = 0x00000100
IN_DELETE = 0x00000200
IN_MOVED_FROM = 0x00000040
IN_DELETE_SELF = 0x00000400
IN_UNMOUNT = 0x00002000
IN_NONBLOCK = os.O_NONBLOCK
IN_CLOEXEC = os.O_CLOEXEC

_LINUX_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


def _check(result: int, doing: str, advice: str = "") -> int:
    if result < 0:
        raise HostError(doing, ctypes.get_errno(), advice)
    return result


def unshare(flags: int, doing: str, advice: str = "") -> None:
    """Move to new namespaces (unshare(2))."""
    _check(_libc.unshare(flags), doing, advice)


def setns(fd: int, kind: int, doing: str) -> None:
    """Join the namespace behind `fd` (setns(2)); `kind` is a CLONE_NEW* or 0."""
    _check(_libc.setns(fd, kind), doing)


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    """Mount (mount(2))."""
    _check(
        _libc.mount(source.encode(), target.encode(), None if kind is None else kind.encode(), flags, None),
        f"mount {target}",
    )


def die_with_parent(signal: int) -> None:
    """Get `signal` when the thread that forked us ends (PR_SET_PDEATHSIG)."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0), "ask for a signal at the parent's death")


def be_undumpable() -> None:
    """Be traced by nobody below the user namespace in which our program was started (PR_SET_DUMPABLE, ptrace(2))."""
    _check(_libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "become undumpable")


def be_dumpable() -> None:
    """Own /proc/self again after a change of user (PR_SET_DUMPABLE): needed to write uid_map."""
    _check(_libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "become dumpable")


def drop_capabilities() -> None:
    """Give up every capability, for good where there is no way to new ones (capset(2))."""
    header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)()), "drop capabilities")


def inotify_watch(path: str, mask: int) -> int:
    """Return a new non-blocking inotify descriptor that watches `path`."""
    fd = _check(_libc.inotify_init1(IN_NONBLOCK | IN_CLOEXEC), "make an inotify descriptor")
    try:
        _check(_libc.inotify_add_watch(fd, os.fsencode(path), mask), f"watch {path}")
    except HostError:
        os.close(fd)
        raise
    return fd
