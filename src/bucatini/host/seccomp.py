"""The filter of system calls: an allow-list, and the end of the process for everything else (seccomp(2)).

What may be called is declared beside the code that calls it, in comments of the form `# syscalls PROFILE: NAME...`,
and gathered by `tools/syscalls` into `host/declared_calls`. A process gets the profiles that fit what it does. Some
calls are let through only with certain arguments, which each profile names for itself (`LIMITED`): so there are no new
executable pages, and no sockets but those of the families, types and protocols in use. Structures that a pointer leads
to cannot be looked at, and are not.

The program is classic BPF over struct seccomp_data (linux/seccomp.h). A call that is always let through costs next to
nothing: the kernel finds that out once, for each number.
"""

from __future__ import annotations

import os
import struct
import sys

from bucatini.datapath.syscall_numbers import (
    ARCHITECTURE,
    F_SETPIPE_SZ,
    FIONBIO,
    PROT_EXEC,
    SIOCGIFINDEX,
    SIOCINQ,
    numbers,
)
from bucatini.host import kernel
from bucatini.host.declared_calls import DECLARED
from bucatini.lean import sockets
from bucatini.lean.record import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

NETLINK_SOCK_DIAG = 4  # linux/netlink.h

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


_KIND = _ALL ^ (sockets.SOCK_NONBLOCK | sockets.SOCK_CLOEXEC)
_WRITING = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC


def _socket(families: tuple[int, ...], kinds: tuple[int, ...], protocol: int) -> tuple[Limit, ...]:
    """Return the limits of socket(2). Another protocol may load a module of the kernel, and is more to attack."""
    return Limit(0, _ALL, families), Limit(1, _KIND, kinds), Limit(2, _ALL, (protocol,))


def _command(value: int) -> tuple[tuple[Limit, ...], ...]:
    """Return the limit of ioctl(2) and fcntl(2)."""
    return ((Limit(1, _ALL, (value,)),),)


_INTERNET = (sockets.AF_INET, sockets.AF_INET6)
_TCP = _socket(_INTERNET, (sockets.SOCK_STREAM,), sockets.IPPROTO_TCP)
_UDP = _socket(_INTERNET, (sockets.SOCK_DGRAM,), 0)
_PING4 = _socket((sockets.AF_INET,), (sockets.SOCK_DGRAM,), sockets.IPPROTO_ICMP)
_PING6 = _socket((sockets.AF_INET6,), (sockets.SOCK_DGRAM,), sockets.IPPROTO_ICMPV6)
_TCP_OR_UDP = _socket(_INTERNET, (sockets.SOCK_STREAM, sockets.SOCK_DGRAM), 0)
_DIAGNOSTICS = _socket((sockets.AF_NETLINK,), (sockets.SOCK_RAW,), NETLINK_SOCK_DIAG)
_NOT_EXECUTABLE = ((Limit(2, PROT_EXEC, (0,)),),)
_TO_READ = ((Limit(2, _WRITING, (os.O_RDONLY,)),),)

# Call -> profile -> alternatives; of one of them all limits must hold. A profile that declares the call is there.
LIMITED: dict[str, dict[str, tuple[tuple[Limit, ...], ...]]] = {
    "socket": {
        "serve": (_TCP, _UDP, _PING4, _PING6),
        "pasta": (_TCP, _UDP),
        "auto": (_TCP_OR_UDP,),
        "maker": (_TCP_OR_UDP, _DIAGNOSTICS),
        "binder": (_TCP_OR_UDP,),
    },
    "mmap": {"common": _NOT_EXECUTABLE},
    "mprotect": {"common": _NOT_EXECUTABLE},
    "ioctl": {"serve": _command(SIOCINQ), "passt": _command(FIONBIO), "auto": _command(SIOCGIFINDEX)},
    "fcntl": {"pasta": _command(F_SETPIPE_SZ)},
    "openat": {"maker": _TO_READ, "lookout": _TO_READ},
}


def allowed(profiles: Iterable[str]) -> list[str]:
    """Return the names of the calls that the profiles declare, each once."""
    return sorted({name for profile in profiles for name in DECLARED[profile]})


def program(profiles: tuple[str, ...]) -> bytes:
    """Return the filter: instructions of 8 bytes."""
    known = numbers()
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, ARCHITECTURE),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for name in allowed(profiles):
        if name not in known:
            # Of another architecture; or newer than the build's headers, without which our own code does not call it
            continue
        verdict = _verdict(name, profiles)
        code.append((_EQUAL, 0, len(verdict), known[name]))
        code += verdict
    code.append((_RETURN, 0, 0, _KILL))
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


def _verdict(name: str, profiles: tuple[str, ...]) -> list[tuple[int, int, int, int]]:
    """Return what decides about a declared call."""
    if name not in LIMITED:
        return [(_RETURN, 0, 0, _ALLOW)]
    code: list[tuple[int, int, int, int]] = []
    declaring = [profile for profile in profiles if name in DECLARED[profile]]
    for limits in dict.fromkeys(limits for profile in declaring for limits in LIMITED[name][profile]):
        code += _alternative(limits)
    return [*code, (_RETURN, 0, 0, _KILL)]


def _alternative(limits: tuple[Limit, ...]) -> list[tuple[int, int, int, int]]:
    """Return what lets a call through if its arguments are as they must be; if not, what follows decides."""
    code = [(_RETURN, 0, 0, _ALLOW)]
    for argument, mask, values in reversed(limits):
        test = [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument + _LOW)]
        if mask != _ALL:
            test.append((_AND, 0, 0, mask))
        left = len(values) - 1
        test += [(_EQUAL, left - i, 0 if i < left else len(code), value) for i, value in enumerate(values)]
        code = test + code
    return code


def install(*profiles: str) -> None:
    """Let through what the profiles declare and nothing else, for good. Privileges were renounced before.

    Raises:
        HostError: the kernel has no filters (CONFIG_SECCOMP_FILTER).
    """
    kernel.filter_calls(program(profiles))
