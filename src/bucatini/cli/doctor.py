"""`bucatini doctor`: what this host allows, what that means for pasta, and which command changes it.

`gather` tries and reads everything once (`Facts`), `examine` judges the facts alone, so every verdict can be tested
with the facts of another host. A check is a problem only where pasta cannot work without; what merely costs speed or a
feature is a warning. Exit status 0 without problems, else 1.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import pwd
import resource
import sys
from errno import EACCES, ENODEV, ENOENT, ENOSPC, ENXIO, EPERM
from typing import TYPE_CHECKING, NamedTuple

from bucatini.host import facilities, landlock

if TYPE_CHECKING:
    from bucatini.host.facilities import NamespaceTrial

OK, WARNING, PROBLEM = "ok", "warning", "problem"
ENOUGH_FILES = 65536  # descriptors: each TCP connection and each UDP flow is one
DATAPATH = "bucatini.datapath.loop"

USAGE = """Usage: bucatini doctor [--json]

Checks what this host allows and says for each point what it means and which command changes it.

  --json   the same for programs
  --help   this text

Exit status: 0 if pasta can work here, 1 if something that it needs is missing.
"""


class Facts(NamedTuple):
    """What was found on a host."""

    user: str
    uid: int
    kernel: str
    compiled: bool  # the packet path is there
    trial: NamespaceTrial
    max_user_namespaces: int | None  # None: the kernel has no such file
    unprivileged_userns_clone: int | None  # Debian's and Ubuntu's switch
    apparmor_restrict: int | None  # Ubuntu's
    tun_exists: bool
    tun_errno: int  # of opening it, 0: it opens
    ping_sockets: bool
    ping_group_range: str | None
    port_start: int | None  # the first port that needs no privilege
    ipv6: bool
    peek_off: bool
    udp_segment: bool
    isolation: str  # what was refused, "": nothing
    landlock: int  # its ABI, 0: none
    files: tuple[int, int]  # soft and hard limit of descriptors; -1: none


class Check(NamedTuple):
    """One verdict."""

    name: str
    status: str  # OK, WARNING or PROBLEM
    found: str
    means: str  # what it is for, and what is lost without it
    fix: str = ""  # commands; empty: nothing to do


def main(arguments: list[str]) -> int:
    """Run with the arguments after "doctor"; the exit status."""
    if arguments in (["--help"], ["-h"]):
        print(USAGE, end="")
        return 0
    if arguments not in ([], ["--json"]):
        print(f"bucatini doctor: unexpected argument {arguments[-1]!r}\n\n{USAGE}", end="", file=sys.stderr)
        return 1
    facts = gather()
    checks = examine(facts)
    works = not any(check.status == PROBLEM for check in checks)
    if arguments:
        print(
            json.dumps(
                {"works": works, "kernel": facts.kernel, "checks": [check._asdict() for check in checks]}, indent=2
            )
        )
    else:
        print(render(facts, checks), end="")
    return 0 if works else 1


def gather() -> Facts:
    """Look at this host."""
    return Facts(
        user=_user_name(),
        uid=os.geteuid(),
        kernel=platform.release(),
        compiled=importlib.util.find_spec(DATAPATH) is not None,
        trial=facilities.try_namespaces(),
        max_user_namespaces=_number("/proc/sys/user/max_user_namespaces"),
        unprivileged_userns_clone=_number("/proc/sys/kernel/unprivileged_userns_clone"),
        apparmor_restrict=_number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        tun_exists=os.path.exists(facilities.TUN_PATH),
        tun_errno=facilities.open_tun(),
        ping_sockets=facilities.ping_sockets(),
        ping_group_range=_line("/proc/sys/net/ipv4/ping_group_range"),
        port_start=_number("/proc/sys/net/ipv4/ip_unprivileged_port_start"),
        ipv6=os.path.exists("/proc/net/if_inet6"),
        peek_off=facilities.tcp_peek_off(),
        udp_segment=facilities.udp_segment(),
        isolation=facilities.try_isolation(),
        landlock=landlock.abi(),
        files=resource.getrlimit(resource.RLIMIT_NOFILE),
    )


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"


def _line(path: str) -> str | None:
    try:
        with open(path) as file:
            return " ".join(file.read().split())
    except OSError:
        return None


def _number(path: str) -> int | None:
    text = _line(path)
    return int(text) if text and text.lstrip("-").isdigit() else None


def examine(facts: Facts) -> tuple[Check, ...]:
    """The verdicts, the needed ones first."""
    return (
        _compiled(facts),
        _namespaces(facts),
        _isolation(facts),
        _tun(facts),
        _ping(facts),
        _ports(facts),
        _ipv6(facts),
        _files(facts),
        _feature(
            "TCP superframes (TSO on the tap)",
            facts.trial.failed != "" or facts.trial.tso,
            "lets 64 KiB of TCP cross the tap as one frame. Without it throughput is a fraction.",
            "a kernel with TUN offloads",
        ),
        _feature(
            "UDP superframes (USO on the tap)",
            facts.trial.failed != "" or facts.trial.uso,
            "lets a run of datagrams cross the tap as one frame. Without it UDP costs about twice as much.",
            "Linux 6.2",
        ),
        _feature(
            "SO_PEEK_OFF for TCP",
            facts.peek_off,
            "lets data stay in the host's socket until the guest has acknowledged it, without being read twice. "
            "Without it downloads cost more processor time.",
            "Linux 6.9",
        ),
        _feature(
            "UDP_SEGMENT",
            facts.udp_segment,
            "sends a run of datagrams with one call. Without it UDP from the guest is slower.",
            "Linux 4.18",
        ),
        _feature(
            "Landlock",
            facts.landlock > 0,
            "is a second wall before files, for the process that serves. Without it the empty root is the only one.",
            "Linux 5.13 with Landlock among the kernel's lsm=",
        ),
    )


def _compiled(facts: Facts) -> Check:
    means = "the packet path is compiled; without it pasta does not start."
    if facts.compiled:
        return Check("compiled packet path", OK, "installed", means)
    return Check(
        "compiled packet path", PROBLEM, "missing", means, "make build   (in a clone; else install the package again)"
    )


def _namespaces(facts: Facts) -> Check:
    name = "user namespaces"
    means = "a process without privileges gets a network of its own only inside a user namespace of its own."
    trial = facts.trial
    if trial.failed in {"", "open", "tap"}:
        limit = f" (at most {facts.max_user_namespaces})" if facts.max_user_namespaces is not None else ""
        return Check(name, OK, f"can be made{limit}", means)
    found = f"cannot be made: {os.strerror(trial.errno)}"
    if facts.max_user_namespaces == 0:
        return Check(
            name,
            PROBLEM,
            f"{found}; user.max_user_namespaces is 0",
            means,
            "sudo sysctl -w user.max_user_namespaces=15000",
        )
    if facts.unprivileged_userns_clone == 0:
        found += "; kernel.unprivileged_userns_clone is 0"
        return Check(name, PROBLEM, found, means, "sudo sysctl -w kernel.unprivileged_userns_clone=1")
    if facts.apparmor_restrict and trial.errno in {EPERM, EACCES}:
        found += "; AppArmor gives programs without a profile no rights in them"
        fix = "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0   (or a profile with 'userns,' for pasta)"
        return Check(name, PROBLEM, found, means, fix)
    if trial.errno == ENOSPC:
        fix = "sudo sysctl -w user.max_user_namespaces=15000 user.max_net_namespaces=15000"
        return Check(name, PROBLEM, f"{found}: a limit is reached", means, fix)
    if trial.errno == EPERM:
        found += "; a container's seccomp filter, or a chroot, may forbid it"
        fix = "podman run --security-opt seccomp=unconfined ...   (if this is a container)"
        return Check(name, PROBLEM, found, means, fix)
    return Check(name, PROBLEM, found, means, "a kernel with CONFIG_USER_NS and CONFIG_NET_NS")


def _isolation(facts: Facts) -> Check:
    means = (
        "what reads the guest's frames gives up everything but serving: namespaces, files, privileges, system calls."
    )
    if not facts.isolation:
        return Check("isolation", OK, "works", means)
    fix = "" if facts.trial.failed else "a kernel with CONFIG_SECCOMP_FILTER; in a chroot, pivot_root needs a real root"
    return Check("isolation", PROBLEM, facts.isolation, means, fix)


def _tun(facts: Facts) -> Check:
    name = facilities.TUN_PATH
    means = "frames come from and go to the namespace through a tap device, which is opened here."
    if not facts.tun_exists:
        fix = "sudo modprobe tun   (in a container: --device /dev/net/tun)"
        return Check(name, PROBLEM, "does not exist", means, fix)
    if facts.tun_errno in {ENODEV, ENXIO, ENOENT}:
        return Check(name, PROBLEM, f"does not open: {os.strerror(facts.tun_errno)}", means, "sudo modprobe tun")
    if facts.tun_errno:
        fix = "sudo chmod 0666 /dev/net/tun   (harmless: a tap can be made only where one has CAP_NET_ADMIN)"
        return Check(name, PROBLEM, f"does not open: {os.strerror(facts.tun_errno)}", means, fix)
    if facts.trial.failed in {"open", "tap"}:
        found = f"opens, but makes no tap in a namespace: {os.strerror(facts.trial.errno)}"
        return Check(name, PROBLEM, found, means, "sudo modprobe tun")
    return Check(name, OK, "opens", means)


def _ping(facts: Facts) -> Check:
    name = "ping"
    value = facts.ping_group_range
    means = "echo requests go out by ping sockets, which net.ipv4.ping_group_range allows or not. Only ping needs them."
    if facts.ping_sockets:
        return Check(name, OK, f"allowed (net.ipv4.ping_group_range = {value})", means)
    found = f"not allowed: no group of {facts.user} is in net.ipv4.ping_group_range = {value}"
    return Check(name, WARNING, found, means, 'sudo sysctl -w net.ipv4.ping_group_range="0 2147483647"')


def _ports(facts: Facts) -> Check:
    name = "low ports"
    means = "-t and -u can listen on ports from net.ipv4.ip_unprivileged_port_start on; lower ones are root's."
    start = facts.port_start if facts.port_start is not None else 1024
    if facts.uid == 0 or start == 0:
        return Check(name, OK, "all ports can be forwarded", means)
    fix = "" if start <= 80 else "sudo sysctl -w net.ipv4.ip_unprivileged_port_start=80   (only to forward lower ones)"
    return Check(name, OK, f"ports from {start} on can be forwarded", means, fix)


def _ipv6(facts: Facts) -> Check:
    means = "without IPv6 on the host the namespace has IPv4 only."
    if facts.ipv6:
        return Check("IPv6", OK, "the kernel speaks it", means)
    return Check("IPv6", WARNING, "is disabled", means, "remove ipv6.disable=1 from the kernel's command line")


def _files(facts: Facts) -> Check:
    name = "open files"
    _, hard = facts.files
    means = "each TCP connection and each UDP flow takes one; pasta raises its own limit to the hard one."
    if hard == resource.RLIM_INFINITY or hard >= ENOUGH_FILES:
        shown = "without limit" if hard == resource.RLIM_INFINITY else f"up to {hard}"
        return Check(name, OK, shown, means)
    wanted = ENOUGH_FILES * 8
    fix = f"'{facts.user} hard nofile {wanted}' in /etc/security/limits.conf, or LimitNOFILE={wanted} in a unit"
    return Check(name, WARNING, f"up to {hard} only", means, fix)


def _feature(name: str, there: bool, means: str, since: str) -> Check:
    if there:
        return Check(name, OK, "there", means)
    return Check(name, WARNING, "not there", means, f"needs {since}")


def render(facts: Facts, checks: tuple[Check, ...]) -> str:
    """The report for a person."""
    lines = [f"bucatini doctor: Linux {facts.kernel}, as {facts.user}", ""]
    for check in checks:
        lines.append(f"{check.status:8} {check.name}: {check.found}")
        if check.status != OK:
            lines.append(f"         {check.means[0].upper()}{check.means[1:]}")
        if check.fix:
            lines.append(f"         -> {check.fix}")
    problems = sum(check.status == PROBLEM for check in checks)
    warnings = sum(check.status == WARNING for check in checks)
    lines.append("")
    if problems:
        lines.append(f"pasta cannot work here yet: {problems} {'problem' if problems == 1 else 'problems'} to solve.")
    elif warnings:
        lines.append("pasta works here; the warnings say what it does without.")
    else:
        lines.append("pasta works here, with all that it can use.")
    return "\n".join(lines) + "\n"
