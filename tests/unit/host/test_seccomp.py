"""The filter of system calls: what it lets through is what the sources declare, and the program means that."""

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from bucatini.datapath.syscall_numbers import ARCHITECTURE, numbers
from bucatini.host import seccomp
from bucatini.host.declared_calls import DECLARED

SOURCES = Path(seccomp.__file__).parents[1]
KILL, ALLOW = 0x80000000, 0x7FFF0000
SERVING = ("common", "serve", "pasta", "auto")

# Functions of the C library whose system call has another name
CALLS_OF = {"eventfd": "eventfd2",
    "recv": "recvfrom", "send": "sendto", "open_": "openat", "epoll_pwait2": "epoll_pwait2",
}  # fmt: skip
# What happens before isolation, or needs none (the vDSO); and words that are no calls
BEFORE = {"getrlimit", "mmap", "munmap", "madvise", "epoll_create1", "clock_gettime"}


def judge(program: bytes, name: str, *arguments: int, arch: int = ARCHITECTURE) -> int:
    """Run the filter as the kernel does (classic BPF, without what it does not use)."""
    data = struct.pack("=IIQ6Q", numbers()[name], arch, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, k = code[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif operation == 0x54:
            accumulator &= k
        elif operation == 0x15:
            at += if_true if accumulator == k else if_false
        elif operation == 0x06:
            return k
        else:
            raise AssertionError(operation)


@pytest.mark.lint
@pytest.mark.parametrize("path", sorted(SOURCES.glob("datapath/*.pyx")), ids=lambda path: path.name)
def test_compiled_code_declares_the_calls_that_it_makes(path: Path) -> None:
    text = path.read_text()
    declared = {
        name for names in re.findall(r"^# syscalls [a-z,]+: (.*)$", text, re.MULTILINE) for name in names.split()
    }
    code = re.sub(r'""".*?"""|#[^\n]*|"[^"\n]*"', "", text, flags=re.DOTALL)
    if path.name == "socket_pool.pyx":  # the second half is the maker's, and declared where it is started
        code = code[: code.index("cdef int new_socket(")]
    called = set(re.findall(r"(?<![\w.])([a-z_0-9]+)\(", code))
    needed = {CALLS_OF.get(name, name) for name in called} & (numbers().keys() - BEFORE)
    assert needed <= declared | set(DECLARED["common"])


@pytest.mark.parametrize("name", ["execve", "execveat", "openat", "ptrace", "clone", "fork", "kill", "mount", "bpf"])
def test_what_would_help_an_attacker_is_the_end(name: str) -> None:
    program = seccomp.program(SERVING)
    if name in numbers():
        assert judge(program, name) == KILL


@pytest.mark.parametrize(
    "profiles", [SERVING, ("common", "serve", "passt"), ("common", "maker"), ("common", "lookout")]
)
def test_what_is_declared_goes_through_and_nothing_else(profiles: tuple[str, ...]) -> None:
    program = seccomp.program(profiles)
    names = set(seccomp.allowed(profiles))
    for name in numbers().keys() - seccomp.LIMITED.keys():
        assert judge(program, name) == (ALLOW if name in names else KILL), name


def test_another_architecture_is_the_end() -> None:
    assert judge(seccomp.program(SERVING), "read", arch=0x40000003) == KILL


@pytest.mark.parametrize(
    ("name", "arguments", "verdict"),
    [
        ("socket", (2, 1 | 0o4000 | 0o2000000, 6), ALLOW),
        ("socket", (10, 2 | 0o2000000, 58), ALLOW),
        ("socket", (1, 1, 0), KILL),  # AF_UNIX
        ("socket", (16, 3, 0), KILL),  # AF_NETLINK
        ("socket", (17, 3, 0), KILL),  # AF_PACKET
        ("socket", (2, 3, 255), KILL),  # SOCK_RAW
        ("mmap", (0, 4096, 3, 0x22), ALLOW),
        ("mmap", (0, 4096, 7, 0x22), KILL),
        ("mprotect", (4096, 4096, 1), ALLOW),
        ("mprotect", (4096, 4096, 5), KILL),
        ("ioctl", (3, 0x5421, 0), ALLOW),
        ("ioctl", (3, 0x5412, 0), KILL),  # TIOCSTI
        ("ioctl", (3, 0x400454CA, 0), KILL),  # TUNSETIFF
        ("fcntl", (3, 1031, 65536), ALLOW),
        ("fcntl", (3, 8, 1), KILL),  # F_SETOWN
    ],
)
def test_arguments_are_looked_at(name: str, arguments: tuple[int, ...], verdict: int) -> None:
    assert judge(seccomp.program(SERVING), name, *arguments) == verdict


def test_only_the_maker_may_list_sockets() -> None:
    assert judge(seccomp.program(("common", "maker")), "socket", 16, 3, 4) == ALLOW


def test_the_kernel_ends_a_process_at_an_undeclared_call() -> None:
    code = """
import os
from bucatini.host import kernel, seccomp
kernel.take_no_privileges()
seccomp.install("common", "serve")
os.write(1, b"still here")
os.open("/etc/passwd", os.O_RDONLY)
os.write(1, b"never")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-31, "still here")  # SIGSYS
