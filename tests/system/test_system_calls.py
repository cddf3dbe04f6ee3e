"""System calls of each process after it is sealed: what it makes is declared, and what is declared is made.

A tracer sees them all. The programs run without a vDSO's clock, whose use depends on the machine: a library in front of
the C library reads it by system calls.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bucatini.datapath.syscall_numbers import numbers
from bucatini.host import seccomp
from bucatini.host.declared_calls import DECLARED
from system.machine import INTERFACE, Machine, Passt, client, is_served
from system.namespaces import Namespace, alive, echo, wait_until
from system.programs import need
from system.topology import HOST, SERVER4, Guest, Pasta
from system.users import only_root
from system.workload import FORWARD, answers, run_out_of_descriptors, transfer, use

pytestmark = pytest.mark.release

DATAGRAM = socket.SOCK_DGRAM
NO_FORWARDS = ("-t", "none", "-u", "none", "-T", "none", "-U", "none")
ELSEWHERE = "of other C libraries and architectures"

# Declared, and not seen in these runs: why they are declared all the same
RARE = {
    "common": {
        "brk": "malloc(3): more memory at the end of the heap",
        "madvise": "free(3): an arena of another thread, or a large one",
        "mmap": "malloc(3): something large",
        "mprotect": "malloc(3): an arena grows",
        "mremap": "realloc(3): something large",
        "munmap": "free(3): something large",
        "futex": "the interpreter's lock, when somebody waits for it",
        "restart_syscall": "the kernel's own, when a stopped process goes on",
        "ppoll": ELSEWHERE,
    },
    "serve": {"dup3": ELSEWHERE, "epoll_pwait": ELSEWHERE, "ppoll": ELSEWHERE, "fstat": ELSEWHERE},
    "pasta": {"ppoll": ELSEWHERE},
    "passt": {"ppoll": ELSEWHERE},
    "auto": {"fstat": ELSEWHERE},
    "maker": {"openat": "a kernel that does not list sockets (sock_diag(7))", "ppoll": ELSEWHERE},
    "binder": {"ppoll": ELSEWHERE},
    "lookout": {"stat": ELSEWHERE, "ppoll": ELSEWHERE},
}
PROFILES = [
    ("common", "serve", "pasta"),
    ("common", "serve", "pasta", "auto"),
    ("common", "serve", "passt"),
    ("common", "maker"),
    ("common", "binder"),
    ("common", "lookout"),
]
SECCOMP = re.compile(r"^(\d+) +prctl\(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, \{len=(\d+)", re.MULTILINE)
CALL = re.compile(r"^(\d+) +(?:<\.\.\. )?(\w+)(?:\(| resumed>)", re.MULTILINE)

CLOCK = """
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) { return (int) syscall(SYS_clock_gettime, clock, now); }
"""
# A /dev in which the system log's socket can be, for this program alone
DEV = """#!/bin/sh
set -e
if [ -z "$BUCATINI_DEV" ]; then BUCATINI_DEV=1 exec unshare --mount "$0" "$@"; fi
unset BUCATINI_DEV
mount -t tmpfs none {dev}
mkdir {dev}/net
for name in null zero urandom net/tun; do touch {dev}/$name; mount --bind /dev/$name {dev}/$name; done
touch {dev}/log
mount --bind {log} {dev}/log
mount --rbind {dev} /dev
exec strace -D -f -q -E LD_PRELOAD={clock} -o {trace} {program} "$@"
"""


class Traced:
    """What a program called."""

    def __init__(self, folder: Path, name: str, program: str) -> None:
        """Make `program`: it runs the one given, and every system call is written down."""
        self.trace = folder / f"{name}.trace"
        self.log = folder / f"{name}.log"
        self.pid_file = folder / f"{name}.pid"
        self.syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.syslog.bind(str(folder / f"{name}.syslog"))
        os.chmod(folder / f"{name}.syslog", 0o666)
        clock, dev = folder / f"{name}.so", folder / f"{name}.dev"
        compiler = shlex.split(sysconfig.get_config_var("CC"))
        subprocess.run([*compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", clock], input=CLOCK, text=True, check=True)
        dev.mkdir()
        wrapper = folder / name
        wrapper.write_text(
            DEV.format(dev=dev, log=self.syslog.getsockname(), clock=clock, trace=self.trace, program=program)
        )
        wrapper.chmod(0o755)
        self.program = str(wrapper)

    def background(self, argv: list[str]) -> int:
        """Run it until it has gone there; its process number. (Of its output the tracer is the last to let go.)"""
        null = subprocess.DEVNULL
        subprocess.run(argv, check=True, stdin=null, stdout=null, stderr=null, cwd="/", timeout=60)
        return int(self.pid_file.read_text())

    def finish(self, pid: int) -> None:
        """End it."""
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not alive(pid), f"the end of {pid}")

    def calls_again(self, name: str) -> Callable[[], bool]:
        """Return what tells whether a call was made since now."""
        before = self.trace.read_text().count(f" {name}(")
        return lambda: self.trace.read_text().count(f" {name}(") > before

    def calls(self) -> dict[tuple[str, ...], set[str]]:
        """Profiles -> system calls of the processes that have this filter, from the moment they have it."""
        wait_until(lambda: "exited" in self.trace.read_text().splitlines()[-1], "the end of the trace")
        trace = self.trace.read_text()
        assert "SIGSYS {" not in trace
        by_length = {len(seccomp.program(profiles)) // 8: profiles for profiles in PROFILES}
        assert len(by_length) == len(PROFILES), "two filters of one length cannot be told apart"
        found: dict[tuple[str, ...], set[str]] = {}
        for match in SECCOMP.finditer(trace):
            calls = {name for who, name in CALL.findall(trace[match.end() :]) if who == match[1]}
            found.setdefault(by_length[int(match[2])], set()).update(calls - {"prctl"})
        return found


def judge(runs: list[Traced], *complete: tuple[str, ...]) -> None:
    """What was called is declared; processes with the profiles `complete` made every call that is declared."""
    seen: dict[tuple[str, ...], set[str]] = {}
    for traced in runs:
        for profiles, calls in traced.calls().items():
            seen.setdefault(profiles, set()).update(calls)
    for profiles, calls in seen.items():
        assert calls <= set(seccomp.allowed(profiles)), profiles
    for profiles in complete:
        excused = {name for profile in profiles for name in RARE[profile]}
        never = set(seccomp.allowed(profiles)) & numbers().keys() - seen[profiles] - excused
        assert not never, f"declared for {' '.join(profiles)} and not called: {' '.join(sorted(never))}"


def test_what_is_excused_is_declared() -> None:
    assert RARE.keys() == DECLARED.keys()
    for profile, names in RARE.items():
        assert names.keys() <= set(DECLARED[profile]), profile


def serve(where: Namespace, port: int) -> None:
    """An echo at a port, of TCP and UDP."""
    where.serve_tcp("0.0.0.0", echo, port)
    where.serve_udp("0.0.0.0", lambda data, _: data, port)


def both_answer(where: Namespace, address: str, port: int) -> bool:
    """Whether TCP and UDP are there."""
    return answers(where, address, port) and answers(where, address, port, kind=DATAGRAM)


def join(pasta: Pasta, traced: Traced, *options: str) -> Guest:
    """Pasta in the background, traced."""
    target = pasta.holder()
    pid = traced.background(
        pasta.argv("--config-net", "--dns-forward", FORWARD, *options, "--pid", str(traced.pid_file), str(target.pid))
    )
    return Guest(pasta, pid, target, target.pid)


@pytest.fixture
def tracing(tmp_path: Path) -> Iterator[Callable[..., list[Traced]]]:
    """Makes traced programs of one: tracing(program, name, name)."""
    need("strace", "strace")
    made: list[Traced] = []

    def make(program: str, *names: str) -> list[Traced]:
        made.extend(Traced(tmp_path, name, program) for name in names)
        return made

    yield make
    for traced in made:
        traced.syslog.close()


@pytest.fixture
def resolver(pasta: Pasta) -> None:
    """An echo where names are asked for."""
    pasta.topology.server.serve_udp(SERVER4, lambda data, _: data, 53)


@only_root
@pytest.mark.usefixtures("resolver")
def test_calls_of_pasta_where_ports_forward_themselves(pasta: Pasta, tracing: Callable[..., list[Traced]]) -> None:
    runs = tracing(pasta.installation.pasta, "file", "syslog", "command")
    auto = ("-t", "auto", "-u", "auto", "-T", "auto", "-U", "auto")
    host, server = pasta.topology.host, pasta.topology.server
    pasta.installation = pasta.installation._replace(pasta=runs[0].program)
    guest = join(pasta, runs[0], *auto, "--trace", "--log-file", str(runs[0].log), "--log-size", "4096")
    use(pasta.topology, guest, "host0")
    for port in (79, 8123):  # the first is the binder's
        serve(guest, port)
        wait_until(lambda port=port: both_answer(host, "127.0.0.1", port), "the port that forwards itself")  # type: ignore[misc]
        assert both_answer(server, HOST[4], port)
    serve(host, 8124)
    wait_until(lambda: both_answer(guest, "127.0.0.1", 8124), "the port of the host")
    transfer(host, guest, 8125)
    run_out_of_descriptors(guest.pid, server, HOST[4], 8123, runs[0].calls_again("eventfd2"))
    guest.close()
    runs[0].finish(guest.pid)
    pasta.installation = pasta.installation._replace(pasta=runs[1].program)
    guest = join(pasta, runs[1], *auto)
    change_resolvers(pasta, runs[1])
    runs[1].finish(guest.pid)
    pasta.installation = pasta.installation._replace(pasta=runs[2].program)
    assert pasta.guest("--config-net", *auto).finish() == 0
    helpers = (("common", "maker"), ("common", "binder"), ("common", "lookout"))
    judge(runs, ("common", "serve", "pasta", "auto"), *helpers)


def change_resolvers(pasta: Pasta, traced: Traced) -> None:
    """Change what is known of the host's resolver; it is told to the system log."""
    pasta.topology.host.resolv_conf(f"search example.test\nnameserver {SERVER4}\n")
    traced.syslog.settimeout(5)
    while b"has changed" not in traced.syslog.recv(4096):
        pass


@only_root
@pytest.mark.usefixtures("resolver")
def test_calls_of_pasta(pasta: Pasta, tracing: Callable[..., list[Traced]]) -> None:
    """Without forwards in the background, and with some around a command."""
    runs = tracing(pasta.installation.pasta, "background", "foreground")
    host, server = pasta.topology.host, pasta.topology.server
    pasta.installation = pasta.installation._replace(pasta=runs[0].program)
    guest = join(pasta, runs[0], *NO_FORWARDS)
    use(pasta.topology, guest, "host0")
    change_resolvers(pasta, runs[0])
    guest.close()
    guest.process.communicate()  # its end is the end of the namespace, and that of pasta
    wait_until(lambda: not alive(guest.pid), "the end of pasta")
    pasta.installation = pasta.installation._replace(pasta=runs[1].program)
    log = ("--trace", "--log-file", str(runs[1].log), "--log-size", "4096")
    ports = ("-t", "8123,8125", "-u", "8123", "-T", "8124", "-U", "8124")
    guest = pasta.guest("--config-net", "--dns-forward", FORWARD, *log, *ports)
    use(pasta.topology, guest, "host0")
    serve(guest, 8123)
    serve(host, 8124)
    for where, address, port in ((host, "127.0.0.1", 8123), (server, HOST[4], 8123), (guest, "127.0.0.1", 8124)):
        wait_until(lambda at=(where, address, port): both_answer(*at), "the forward")  # type: ignore[misc]
    transfer(host, guest, 8125)
    run_out_of_descriptors(guest.pid, server, HOST[4], 8123, runs[1].calls_again("eventfd2"))
    assert guest.finish() == 0
    judge(runs, ("common", "serve", "pasta"))


@only_root
@pytest.mark.usefixtures("resolver")
def test_calls_of_passt(pasta: Pasta, passt: Passt, machine: Machine, tracing: Callable[..., list[Traced]]) -> None:
    runs = tracing(passt.installation.passt, "file", "syslog")
    server = passt.topology.server
    options = ("-t", "8123", "-u", "8123", "--dns-forward", FORWARD, "-s", passt.socket)
    log = ("--trace", "--log-file", str(runs[0].log), "--log-size", "4096")
    passt.installation = passt.installation._replace(passt=runs[0].program)
    pid = runs[0].background(passt.argv(*options, *log, "--pid", str(runs[0].pid_file)))
    machine.cable.connect(passt.socket)
    machine.configure()
    use(passt.topology, machine, INTERFACE)
    serve(machine, 8123)
    assert both_answer(server, HOST[4], 8123)
    with client(passt.socket) as second:
        assert not is_served(second)
    run_out_of_descriptors(pid, server, HOST[4], 8123, runs[0].calls_again("eventfd2"))
    machine.cable.disconnect()
    runs[0].finish(pid)
    passt.installation = passt.installation._replace(passt=runs[1].program)
    pid = runs[1].background(passt.argv(*options, "--pid", str(runs[1].pid_file)))
    with client(passt.socket) as sock:
        assert is_served(sock)
    change_resolvers(pasta, runs[1])
    runs[1].finish(pid)
    judge(runs, ("common", "serve", "passt"))
