"""Obtaining the guest's namespaces: made for a command that runs in them, or joined.

A child process does it, since a process that has joined a user namespace cannot come back: it makes or joins the
namespaces, opens the tap there, configures the guest's side, and passes the tap to us over a UNIX socket
(SCM_RIGHTS). The tap vanishes with its descriptors, so a failure leaves nothing behind. After joining, the child
ends. After making namespaces it waits for the word to go and becomes the command: directly, or, with a PID
namespace, by way of an init that collects orphans and passes the command's end on. All of them die with us.
"""

import errno
import os
import signal
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

from bucatini.errors import BucatiniError, HostError
from bucatini.guest.configure import configure, write_sysctl
from bucatini.guest.tap import open_tap
from bucatini.host import kernel
from bucatini.plan.plan import Plan
from bucatini.plan.settings import Settings

_RESULT = struct.Struct("=??6s")  # TSO, USO, MAC address of the tap


class Identity(NamedTuple):
    """Whom to be instead of root."""

    uid: int
    gid: int


class Guest(NamedTuple):
    """A connected guest."""

    tap: int  # descriptor
    tso: bool
    uso: bool
    mac: bytes
    child: int  # process to wait for, 0: none
    go: int  # descriptor: write a byte and the command starts; closed: it ends. -1: none


class Pending:
    """A child at work; `result` waits for it. Meanwhile the parent has something else to do."""

    def __init__(self, sock: socket.socket, child: int, stays: bool) -> None:
        self.sock = sock
        self.child = child
        self.stays = stays  # the child becomes the command

    def result(self) -> Guest:
        """Return what the child made, or raise what went wrong in it."""
        message, fds, _, _ = socket.recv_fds(self.sock, 4096, 1)
        if not message.startswith(b"+") or not fds:
            self.sock.close()
            _, status = os.waitpid(self.child, 0)
            text = message[1:].decode(errors="replace") or f"the process that makes the namespaces ended ({status})"
            raise BucatiniError(text)
        tso, uso, mac = _RESULT.unpack(message[1:])
        os.set_inheritable(fds[0], False)
        if self.stays:
            return Guest(fds[0], tso, uso, mac, self.child, self.sock.detach())
        self.sock.close()
        os.waitpid(self.child, 0)
        return Guest(fds[0], tso, uso, mac, 0, -1)


def spawn(plan: Plan, settings: Settings, identity: Identity | None) -> Pending:
    """Begin to make namespaces and to prepare the command (or the user's shell) in them."""
    return _fork(plan, settings, lambda: _make_namespaces(settings, identity), settings)


def join(plan: Plan, settings: Settings) -> Pending:
    """Begin to join the namespaces that `settings` names."""
    user, net = namespace_paths(settings)
    return _fork(plan, settings, lambda: _join_namespaces(user, net), None)


def namespace_paths(settings: Settings) -> tuple[str | None, str]:
    """Return the paths of the user namespace to join (None: none) and of the network namespace."""
    if settings.target_pid is not None:
        user: str | None = f"/proc/{settings.target_pid}/ns/user"
        net = f"/proc/{settings.target_pid}/ns/net"
    else:
        user = None
        net = ""
    if settings.netns is not None:
        net = settings.netns if "/" in settings.netns else f"/run/netns/{settings.netns}"
    if settings.userns is not None:
        user = settings.userns
    if settings.netns_only:
        user = None
    return user, net


def _open(path: str, what: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"open {what} namespace {path}", error.errno or 0) from None


def _join_namespaces(user: str | None, net: str) -> None:
    """Enter the namespaces; both are opened before either is entered."""
    net_fd = _open(net, "network")
    if user is not None:
        user_fd = _open(user, "user")
        mine = os.stat("/proc/self/ns/user")
        # Joining one's own is refused (EINVAL); root of the first one has all it needs without
        if os.fstat(user_fd).st_ino != mine.st_ino:
            kernel.setns(user_fd, kernel.CLONE_NEWUSER, f"join user namespace {user}")
        os.close(user_fd)
    kernel.setns(net_fd, kernel.CLONE_NEWNET, f"join network namespace {net}")
    os.close(net_fd)


def _make_namespaces(settings: Settings, identity: Identity | None) -> None:
    """Move to namespaces of our own, as root of them."""
    if identity is not None:
        try:
            os.setgroups([])
            os.setresgid(identity.gid, identity.gid, identity.gid)
            os.setresuid(identity.uid, identity.uid, identity.uid)
        except OSError as error:
            raise HostError("change user", error.errno or 0) from None
        kernel.be_dumpable()
    uid, gid = os.geteuid(), os.getegid()
    flags = kernel.CLONE_NEWNET | kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    if settings.pidns and not settings.foreground:
        flags |= kernel.CLONE_NEWPID
    if not settings.netns_only:
        flags |= kernel.CLONE_NEWUSER
    kernel.unshare(flags, "make namespaces", "user namespaces may be switched off: see 'bucatini doctor'")
    if not settings.netns_only:
        for name, text in (("setgroups", "deny"), ("gid_map", f"0 {gid} 1"), ("uid_map", f"0 {uid} 1")):
            try:
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
            except OSError as error:
                advice = "AppArmor may restrict user namespaces: see 'bucatini doctor'"
                raise HostError(f"write {name} of the user namespace", error.errno or 0, advice) from None
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_SLAVE)
    write_sysctl("ipv4/ping_group_range", "0 0")


def _fork(plan: Plan, settings: Settings, enter: Callable[[], None], run: Settings | None) -> Pending:
    """Fork the child."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            ours.close()
            status = _child(plan, settings, enter, run, theirs, parent)
        except KeyboardInterrupt:
            status = 130
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent says it
            theirs.send(b"-" + f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(status)
    theirs.close()
    return Pending(ours, child, run is not None)


def _child(
    plan: Plan,
    settings: Settings,
    enter: Callable[[], None],
    run: Settings | None,
    sock: socket.socket,
    parent: int,
) -> int:
    """In the child: enter, make the tap, report; then run the command. Returns an exit status."""
    try:
        enter()
        if run is not None:
            _die_with(parent)
        tap = open_tap(plan.ifname)
        mac = configure(plan, settings)
    except BucatiniError as error:
        sock.send(b"-" + str(error).encode())
        return 1
    socket.send_fds(sock, [b"+" + _RESULT.pack(tap.tso, tap.uso, mac)], [tap.fd])
    os.close(tap.fd)
    if run is None:
        return 0
    if not sock.recv(1):
        return 1
    sock.close()
    if not run.pidns or run.foreground:
        _execute(run)
    return _as_init(run)


def _die_with(parent: int) -> None:
    """Be killed when the parent ends, even if it has ended already."""
    kernel.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _wait(child: int) -> int:
    """Wait for one child, collecting any other; returns its exit status, 128+N for a signal."""
    while True:
        try:
            pid, status = os.wait()
        except InterruptedError:
            continue
        if pid == child:
            return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _as_init(settings: Settings) -> int:
    """Run the command below an init of the new PID namespace, with a /proc of its own."""
    init = os.fork()
    if init == 0:
        status = 1
        try:
            _signals_ignored()
            kernel.die_with_parent(signal.SIGKILL)
            try:
                kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
            except HostError:
                pass  # a container that hides parts of /proc does not let us have a new one
            command = os.fork()
            if command == 0:
                _execute(settings)
            status = _wait(command)
        finally:
            os._exit(status)
    _signals_ignored()
    return _wait(init)


def _signals_ignored() -> None:
    """Leave the keyboard's signals to the command."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def command_line(settings: Settings) -> tuple[str, list[str]]:
    """Return what to execute: the command, or the user's shell as a login shell."""
    if settings.command:
        return settings.command[0], list(settings.command)
    shell = os.environ.get("SHELL", "")
    if not shell:
        import pwd

        try:
            shell = pwd.getpwuid(os.getuid()).pw_shell
        except KeyError:
            shell = ""
    if not shell or not os.access(shell, os.X_OK):
        shell = "/bin/sh"
    return shell, ["-" + os.path.basename(shell)]


def _execute(settings: Settings) -> None:
    """Become the command. Does not return."""
    status = 126
    try:
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        path, arguments = command_line(settings)
        os.execvp(path, arguments)
    except OSError as error:
        if error.errno == errno.ENOENT:
            status = 127
        os.write(2, f"pasta: cannot run '{path}': {error.strerror}\n".encode())
    finally:
        os._exit(status)
