"""The filter of system calls: what it lets through is what the sources declare, and the program means that."""

import re
import shlex
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from bucatini.datapath.syscall_numbers import ARCHITECTURE, F_SETPIPE_SZ, FIONBIO, SIOCGIFINDEX, SIOCINQ, numbers
from bucatini.host import seccomp
from bucatini.host.declared_calls import DECLARED

SOURCES = Path(seccomp.__file__).parents[1]
COMPILER = shlex.split(sysconfig.get_config_var("CC"))
KILL, ALLOW = 0x80000000, 0x7FFF0000
SERVING = ("common", "serve", "pasta", "auto")
PASST = ("common", "serve", "passt")
MAKER = ("common", "maker")
BINDER = ("common", "binder")
LOOKOUT = ("common", "lookout")
ALL = (SERVING, ("common", "serve", "pasta"), PASST, MAKER, BINDER, LOOKOUT)

# What some architectures do not have -> what the C library calls there
ALTERNATES = {"poll": "ppoll", "dup2": "dup3", "epoll_wait": "epoll_pwait", "stat": "newfstatat"}
# What older headers do not have: our own code does without
NEWER = {"epoll_pwait2"}

# Functions of the C library whose system call has another name
CALLS_OF = {"eventfd": "eventfd2",
    "recv": "recvfrom", "send": "sendto", "open_": "openat", "epoll_pwait2": "epoll_pwait2",
}  # fmt: skip
# What happens before isolation; and words that are no calls
BEFORE = {"getrlimit", "mmap", "munmap", "madvise", "epoll_create1"}


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
    declared: dict[bool, set[str]] = {True: set(DECLARED["common"]), False: set(DECLARED["common"])}
    for profiles, names in re.findall(r"^# syscalls ([a-z,]+): (.*)$", text, re.MULTILINE):
        declared["maker" in profiles].update(names.split())
    code = re.sub(r'""".*?"""|#[^\n]*|"[^"\n]*"', "", text, flags=re.DOTALL)
    ours, _, makers = code.partition("cdef int new_socket(")  # the second half of socket_pool.pyx
    for part, of_maker in ((ours, False), (makers, True)):
        called = set(re.findall(r"(?<![\w.])([a-z_0-9]+)\(", part))
        needed = {CALLS_OF.get(name, name) for name in called} & (numbers().keys() - BEFORE)
        assert needed <= declared[of_maker]


@pytest.mark.parametrize("name", ["execve", "execveat", "openat", "ptrace", "clone", "fork", "kill", "mount", "bpf"])
def test_what_would_help_an_attacker_is_the_end(name: str) -> None:
    program = seccomp.program(SERVING)
    if name in numbers():
        assert judge(program, name) == KILL


@pytest.mark.parametrize("profiles", ALL)
def test_what_is_declared_goes_through_and_nothing_else(profiles: tuple[str, ...]) -> None:
    program = seccomp.program(profiles)
    names = set(seccomp.allowed(profiles))
    for name in numbers().keys() - seccomp.LIMITED.keys():
        assert judge(program, name) == (ALLOW if name in names else KILL), name


def test_another_architecture_is_the_end() -> None:
    assert judge(seccomp.program(SERVING), "read", arch=0x40000003) == KILL


INET, INET6, NETLINK = 2, 10, 16
STREAM, DATAGRAM, RAW = 1, 2, 3
FLAGS = 0o4000 | 0o2000000  # SOCK_NONBLOCK | SOCK_CLOEXEC
READ, WRITE, CREATE, TRUNCATE = 0o2000000, 1, 0o100, 0o1000  # O_RDONLY | O_CLOEXEC and others


@pytest.mark.parametrize(
    ("profiles", "name", "arguments", "verdict"),
    [
        (PASST, "socket", (INET, STREAM | FLAGS, 6), ALLOW),
        (PASST, "socket", (INET6, DATAGRAM | FLAGS, 0), ALLOW),
        (PASST, "socket", (INET, DATAGRAM | FLAGS, 1), ALLOW),
        (PASST, "socket", (INET6, DATAGRAM | FLAGS, 58), ALLOW),
        (PASST, "socket", (INET, DATAGRAM, 58), KILL),
        (PASST, "socket", (INET6, DATAGRAM, 1), KILL),
        (PASST, "socket", (INET, STREAM, 0), KILL),  # only where ports forward themselves
        (SERVING, "socket", (INET, STREAM | FLAGS, 0), ALLOW),
        (SERVING, "socket", (1, STREAM, 0), KILL),  # AF_UNIX
        (SERVING, "socket", (NETLINK, RAW, 4), KILL),
        (SERVING, "socket", (17, RAW, 0), KILL),  # AF_PACKET
        (SERVING, "socket", (INET, RAW, 255), KILL),
        (SERVING, "socket", (INET, STREAM, 132), KILL),  # IPPROTO_SCTP
        (SERVING, "socket", (INET, STREAM, 262), KILL),  # IPPROTO_MPTCP
        (SERVING, "socket", (INET, STREAM, 256), KILL),  # IPPROTO_SMC
        (SERVING, "socket", (INET6, DATAGRAM, 136), KILL),  # IPPROTO_UDPLITE
        (SERVING, "socket", (INET, DATAGRAM, 115), KILL),  # IPPROTO_L2TP
        (MAKER, "socket", (INET, STREAM | FLAGS, 0), ALLOW),
        (MAKER, "socket", (INET6, DATAGRAM | FLAGS, 0), ALLOW),
        (MAKER, "socket", (INET, RAW, 255), KILL),
        (MAKER, "socket", (INET, STREAM, 132), KILL),
        (MAKER, "socket", (NETLINK, RAW | FLAGS, 4), ALLOW),
        (MAKER, "socket", (NETLINK, RAW, 0), KILL),  # NETLINK_ROUTE
        (MAKER, "socket", (NETLINK, RAW, 12), KILL),  # NETLINK_NETFILTER
        (MAKER, "socket", (NETLINK, DATAGRAM, 4), KILL),
        (BINDER, "socket", (INET, STREAM | FLAGS, 0), ALLOW),
        (BINDER, "socket", (INET6, DATAGRAM | FLAGS, 0), ALLOW),
        (BINDER, "socket", (NETLINK, RAW, 4), KILL),
        (BINDER, "socket", (INET, RAW, 255), KILL),
        (BINDER, "openat", (0, 0, READ), KILL),
        (MAKER, "openat", (0, 0, READ), ALLOW),
        (LOOKOUT, "openat", (0, 0, READ), ALLOW),
        (LOOKOUT, "openat", (0, 0, READ | WRITE), KILL),
        (LOOKOUT, "openat", (0, 0, READ | CREATE), KILL),
        (MAKER, "openat", (0, 0, READ | TRUNCATE), KILL),
        (SERVING, "mmap", (0, 4096, 3, 0x22), ALLOW),
        (SERVING, "mmap", (0, 4096, 7, 0x22), KILL),
        (SERVING, "mprotect", (4096, 4096, 1), ALLOW),
        (SERVING, "mprotect", (4096, 4096, 5), KILL),
        (PASST, "ioctl", (3, FIONBIO, 0), ALLOW),
        (SERVING, "ioctl", (3, FIONBIO, 0), KILL),
        (SERVING, "ioctl", (3, SIOCINQ, 0), ALLOW),
        (SERVING, "ioctl", (3, SIOCGIFINDEX, 0), ALLOW),
        (PASST, "ioctl", (3, SIOCGIFINDEX, 0), KILL),
        (PASST, "ioctl", (3, 0x5451, 0), KILL),  # FIOCLEX
        (SERVING, "ioctl", (3, 0x5412, 0), KILL),  # TIOCSTI
        (SERVING, "ioctl", (3, 0x400454CA, 0), KILL),  # TUNSETIFF
        (SERVING, "fcntl", (3, F_SETPIPE_SZ, 65536), ALLOW),
        (SERVING, "fcntl", (3, 4, 0o20000), KILL),  # F_SETFL, O_ASYNC
        (SERVING, "fcntl", (3, 8, 1), KILL),  # F_SETOWN
        (PASST, "fcntl", (3, F_SETPIPE_SZ, 65536), KILL),
    ],
)
def test_arguments_are_looked_at(
    profiles: tuple[str, ...], name: str, arguments: tuple[int, ...], verdict: int
) -> None:
    assert judge(seccomp.program(profiles), name, *arguments) == verdict


def test_limits_are_those_of_the_profiles_that_declare_the_call() -> None:
    for name, by_profile in seccomp.LIMITED.items():
        assert by_profile.keys() == {profile for profile in DECLARED if name in DECLARED[profile]}, name


def test_a_filter_of_alternatives_lets_through_what_one_of_them_does_and_no_mixture() -> None:
    program = seccomp.program(SERVING)
    let_through = {
        (family, kind, protocol)
        for family in (1, INET, INET6, NETLINK, 17)
        for kind in (STREAM, DATAGRAM, RAW, 5)
        for protocol in (0, 1, 2, 4, 6, 17, 33, 58, 115, 132, 136, 255, 256, 262)
        if judge(program, "socket", family, kind | FLAGS, protocol) == ALLOW
    }
    assert let_through == {
        *((family, STREAM, protocol) for family in (INET, INET6) for protocol in (0, 6)),
        *((family, DATAGRAM, 0) for family in (INET, INET6)),
        (INET, DATAGRAM, 1),
        (INET6, DATAGRAM, 58),
    }


# Other architectures, and other headers


def test_what_is_declared_is_known_here_or_has_an_alternate() -> None:
    """A name that is neither is misspelt: the filter would leave it out without a word."""
    declared = {name for names in DECLARED.values() for name in names}
    assert declared - numbers().keys() <= ALTERNATES.keys() | NEWER
    assert ALTERNATES.keys() | NEWER <= declared, "no longer declared"


@pytest.mark.parametrize("profile", DECLARED)
def test_each_profile_is_whole_where_only_the_generic_calls_are(profile: str) -> None:
    """Newer architectures, as aarch64, have the calls of asm-generic/unistd.h alone."""
    macros = subprocess.run(
        [*COMPILER, "-E", "-dM", "-D__ARCH_WANT_NEW_STAT", "-x", "c", "-"],
        input="#include <asm-generic/unistd.h>\n", capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    generic = set(re.findall(r"^#define __NR_(\w+) ", macros, re.MULTILINE))
    assert {"ppoll", "openat"} <= generic
    assert "poll" not in generic
    missing = set(DECLARED[profile]) - generic
    assert {ALTERNATES.get(name, name) for name in missing} <= set(DECLARED[profile]) & generic


@pytest.mark.lint
def test_no_number_of_a_call_is_written_in_compiled_code() -> None:
    """The filter takes them from the headers; what they lack it does not let through."""
    for path in [*SOURCES.glob("*/*.pyx"), *SOURCES.glob("*/*.pxd")]:
        assert not re.search(r"#\s*define\s+(SYS_|__NR_)", path.read_text()), path


def test_without_its_number_a_brief_wait_is_not_there(tmp_path: Path) -> None:
    """Headers before Linux 5.11 lack SYS_epoll_pwait2: it fails, as `can_wait_briefly` expects, and is not called."""
    texts = re.findall(
        r'^    """\n(.*?)^    """', (SOURCES / "datapath/syscalls.pxd").read_text(), re.DOTALL | re.MULTILINE
    )
    (ours,) = [text for text in texts if "bucatini_epoll_pwait2" in text]
    code = f"""
        #include <stdio.h>
        #include <sys/syscall.h>
        #undef SYS_epoll_pwait2
        {ours}
        int main(void) {{
            struct epoll_event event;
            struct timespec none = {{0, 0}};
            int done = bucatini_epoll_pwait2(-1, &event, 1, &none);
            printf("%d %d", done, errno == ENOSYS);
            return 0;
        }}
    """
    built = tmp_path / "brief"
    command = [*COMPILER, "-D_GNU_SOURCE", "-include", "errno.h", "-x", "c", "-", "-o", built]
    subprocess.run(command, input=code, text=True, check=True)
    assert subprocess.run([built], capture_output=True, text=True, check=True).stdout == "-1 1"


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
