"""System calls that Python 3.11 has no function for, by way of the C library.

The one place where ctypes is used. Every function raises `HostError` naming what was being done; constants are spelt as
in the kernel's headers.
"""

from __future__ import annotations

import ctypes
import errno
import os

from bucatini.errors import HostError

CLONE_NEWNS = 0x00020000  # linux/sched.h
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1  # linux/mount.h
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REC = 16384
MS_SLAVE = 1 << 19
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECCOMP_MODE_FILTER = 2  # linux/seccomp.h

CAP_NET_BIND_SERVICE = 10  # linux/capability.h
CAP_SYS_ADMIN = 21
CAP_LAST = 63  # numbers of capabilities are below 64

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
_libc.syscall.restype = ctypes.c_long


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


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mount (mount(2))."""
    type_ = None if kind is None else kind.encode()
    _check(_libc.mount(source.encode(), os.fsencode(target), type_, flags, options.encode() or None), f"mount {target}")


def close_range(first: int, last: int) -> None:
    """Close every descriptor from `first` to `last`, open or not (close_range(2), Linux 5.9)."""
    try:
        close = _libc.close_range
    except AttributeError:  # an older C library
        raise HostError("close descriptors", errno.ENOSYS) from None
    _check(close(ctypes.c_uint(first), ctypes.c_uint(last), 0), "close descriptors")


def die_with_parent(signal: int) -> None:
    """Get `signal` when the thread that forked us ends (PR_SET_PDEATHSIG)."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0), "ask for a signal at the parent's death")


def be_undumpable() -> None:
    """Be traced by nobody below the user namespace in which our program was started (PR_SET_DUMPABLE, ptrace(2))."""
    _check(_libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "become undumpable")


def be_dumpable() -> None:
    """Own /proc/self again after a change of user (PR_SET_DUMPABLE): needed to write uid_map."""
    _check(_libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "become dumpable")


def keep_capabilities(*numbers: int) -> None:
    """Have, of those that we have, these capabilities alone: now and after any exec (capset(2), PR_CAPBSET_DROP)."""
    _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in range(CAP_LAST + 1):
        if number not in numbers and _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
            break  # there are no more, or we have no right to drop any
    header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
    kept = sum(1 << number for number in numbers) & capabilities()
    low, high = kept & 0xFFFFFFFF, kept >> 32
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)), "drop capabilities")


def capabilities() -> int:
    """Return the permitted capabilities, one bit each (capget(2))."""
    header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    _check(_libc.capget(header, data), "look at capabilities")
    return int(data[1]) | int(data[4]) << 32


def may_bind_low_ports() -> bool:
    """Whether we have CAP_NET_BIND_SERVICE."""
    return bool(capabilities() >> CAP_NET_BIND_SERVICE & 1)


def change_root(number: int) -> None:
    """Make the current folder, a mount point, the root, and let go of the former root (pivot_root(2)).

    Args:
        number: of the system call, for which the C library has no function.
    """
    _check(_libc.syscall(ctypes.c_long(number), b".", b"."), "change the root")
    _check(_libc.umount2(b".", MNT_DETACH), "let go of the former root")
    os.chdir("/")


def keep_capabilities_once() -> None:
    """Keep the permitted capabilities over the next change of user (PR_SET_KEEPCAPS)."""
    _check(_libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities")


def take_no_privileges() -> None:
    """Get no privilege from any exec, for good (PR_SET_NO_NEW_PRIVS)."""
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "renounce new privileges")


class _Program(ctypes.Structure):  # struct sock_fprog, linux/filter.h
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def filter_calls(program: bytes) -> None:
    """Have this classic BPF program judge every system call from now on (seccomp(2)); 8 bytes an instruction."""
    pointer = ctypes.byref(_Program(len(program) // 8, program))
    address = ctypes.cast(pointer, ctypes.c_void_p).value or 0
    _check(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, address, 0, 0), "filter system calls")


def call(number: int, *arguments: int | bytes | None) -> int:
    """Do a system call for which the C library has no function; returns its result, -errno if it failed."""
    result: int = _libc.syscall(
        ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments)
    )
    return -ctypes.get_errno() if result < 0 else result


def wipe_environment() -> None:
    """Forget the environment and overwrite its text where the kernel put it (environ(7)), and Python: it may be secret.

    What somebody has read of it before may still lie in memory that was freed.
    """
    for value in os.environ._data.values():  # type: ignore[attr-defined]  # noqa: SLF001 - the objects, not copies
        if len(value) > 1:  # one of a single byte is everybody's
            ctypes.memset(id(value) + bytes.__basicsize__ - 1, 0, len(value))
    pointers = ctypes.POINTER(ctypes.c_void_p).in_dll(_libc, "environ")
    addresses: list[int] = []
    while pointers and (address := pointers[len(addresses)]):
        addresses.append(address)
    os.environ.clear()
    for address in addresses:
        ctypes.memset(address, 0, _libc.strlen(ctypes.c_void_p(address)))


def inotify_watch(mask: int, *paths: str) -> int:
    """Return a new non-blocking inotify descriptor that watches all of `paths`: a user has few of them (128)."""
    fd = _check(_libc.inotify_init1(IN_NONBLOCK | IN_CLOEXEC), "make an inotify descriptor")
    try:
        for path in paths:
            _check(_libc.inotify_add_watch(fd, os.fsencode(path), mask), f"watch {path}")
    except HostError:
        os.close(fd)
        raise
    return fd
