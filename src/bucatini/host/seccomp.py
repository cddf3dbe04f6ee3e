"""The filter of system calls: an allow-list, and the end of the process for everything else (seccomp(2)).

What may be called is declared beside the code that calls it, in comments of the form `# syscalls PROFILE: NAME...`,
and gathered by `tools/syscalls` into `host/declared_calls`. A process gets the profiles that fit what it does. Some
calls are let through only with certain arguments (`LIMITED`): so there are no new executable pages, and no sockets but
those of the families and types in use. Structures that a pointer leads to cannot be looked at, and are not.

The program is classic BPF over struct seccomp_data (linux/seccomp.h). A call that is always let through costs next to
nothing: the kernel finds that out once, for each number.
"""

from __future__ import annotations

import struct
import sys

from bucatini.datapath.syscall_numbers import ARCHITECTURE, numbers
from bucatini.host import kernel
from bucatini.host.declared_calls import DECLARED
from bucatini.lean import sockets
from bucatini.lean.record import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

PROT_EXEC = 4  # asm-generic/mman-common.h
FIONBIO = 0x5421  # asm-generic/ioctls.h
FIOCLEX = 0x5451
SIOCINQ = 0x541B
SIOCGIFINDEX = 0x8933  # linux/sockios.h
F_DUPFD_CLOEXEC = 1030  # linux/fcntl.h
F_SETPIPE_SZ = 1031
F_GETFL = 3
F_SETFL = 4

_KILL = 0x80000000  # SECCOMP_RET_KILL_PROCESS, linux/seccomp.h
_ALLOW = 0x7FFF0000  # SECCOMP_RET_ALLOW
_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS, linux/bpf_common.h
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_NUMBER = 0  # offsets into struct seccomp_data
_ARCHITECTURE = 4
_ARGUMENTS = 16
_LOW = 0 if sys.byteorder == "little" else 4  # the half of an argument that an int is in
_ALL = 0xFFFFFFFF
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter


class Limit(NamedTuple):
    """What an argument must be: `mask` of its lower 32 bits, one of `values`."""

    argument: int
    mask: int
    values: tuple[int, ...]


_TYPE = _ALL ^ (sockets.SOCK_NONBLOCK | sockets.SOCK_CLOEXEC)
_INTERNET = Limit(0, _ALL, (sockets.AF_INET, sockets.AF_INET6))
_NOT_EXECUTABLE = Limit(2, PROT_EXEC, (0,))
LIMITED = {
    "socket": (_INTERNET, Limit(1, _TYPE, (sockets.SOCK_STREAM, sockets.SOCK_DGRAM))),
    "mmap": (_NOT_EXECUTABLE,),
    "mprotect": (_NOT_EXECUTABLE,),
    "ioctl": (Limit(1, _ALL, (FIONBIO, FIOCLEX, SIOCINQ, SIOCGIFINDEX)),),
    "fcntl": (Limit(1, _ALL, (F_GETFL, F_SETFL, F_SETPIPE_SZ, F_DUPFD_CLOEXEC)),),
}
# The maker of sockets opens those by which the namespace's sockets are listed, too
_MAKER = {"socket": (Limit(0, _ALL, (sockets.AF_INET, sockets.AF_INET6, sockets.AF_NETLINK)),)}


def allowed(profiles: Iterable[str]) -> list[str]:
    """Return the names of the calls that the profiles declare, each once."""
    return sorted({name for profile in profiles for name in DECLARED[profile]})


def program(profiles: tuple[str, ...]) -> bytes:
    """Return the filter: instructions of 8 bytes."""
    limited = LIMITED | _MAKER if "maker" in profiles else LIMITED
    known = numbers()
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, ARCHITECTURE),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for name in allowed(profiles):
        if name not in known:
            continue  # another architecture's
        limits = _limits(limited.get(name, ()))
        code.append((_EQUAL, 0, len(limits) + 1, known[name]))
        code += limits
        code.append((_RETURN, 0, 0, _ALLOW))
    code.append((_RETURN, 0, 0, _KILL))
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


def _limits(limits: Iterable[Limit]) -> list[tuple[int, int, int, int]]:
    """Return what lets a call go on if its arguments are as they must be."""
    code: list[tuple[int, int, int, int]] = []
    for argument, mask, values in limits:
        code.append((_LOAD, 0, 0, _ARGUMENTS + 8 * argument + _LOW))
        if mask != _ALL:
            code.append((_AND, 0, 0, mask))
        left = len(values)
        for value in values:
            code.append((_EQUAL, left, 0, value))
            left -= 1
        code.append((_RETURN, 0, 0, _KILL))
    return code


def install(*profiles: str) -> None:
    """Let through what the profiles declare and nothing else, for good. Privileges were renounced before.

    Raises:
        HostError: the kernel has no filters (CONFIG_SECCOMP_FILTER).
    """
    kernel.filter_calls(program(profiles))
