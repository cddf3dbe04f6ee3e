"""Obtaining the guest's namespaces: made for a command that runs in them, or joined.

A child process does it, since a process that has joined a user namespace cannot come back: it makes or joins the
namespaces, opens the tap there, configures the guest's side, and passes the tap to us over a UNIX socket
(SCM_RIGHTS). The tap vanishes with its descriptors, so a failure leaves nothing behind. After joining, the child
ends. After making namespaces it waits for the word to go and becomes the command: directly, or, with a PID
namespace, by way of an init that collects orphans and passes the command's end on. All of them die with us.
"""

from __future__ import annotations

import errno
import os
import struct

from bucatini.errors import BucatiniError, HostError
from bucatini.guest.configure import configure, write_sysctl
from bucatini.guest.tap import open_device, open_tap
from bucatini.host import kernel
from bucatini.host.process import become, close_inherited, is_real_root
from bucatini.lean import signals, sockets
from bucatini.lean.record import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bucatini.plan.plan import Plan
    from bucatini.plan.settings import Settings

KEYBOARD = (signals.SIGINT, signals.SIGQUIT, signals.SIGHUP)  # for the command, not for those who wait for it
MESSAGE = 4096  # bytes at most that the child reports
ADVICE = "user namespaces may be switched off: see 'bucatini doctor'"
MAPS = b"m"  # the child asks for uid_map and gid_map
DONE = b"+"
NEEDS_RUNAS = "--netns-only needs --runas 0 as well: only root may do that"

_RESULT = struct.Struct("=????6s")  # is there a tap, a maker of sockets; TSO, USO, MAC address of the tap; notes follow


class Identity(NamedTuple):
    """Whom to be instead of root."""

    uid: int
    gid: int


class MakerEnds(NamedTuple):
    """Descriptors of our side: sockets to the maker of sockets in the namespace."""

    pool: int  # for the packet path
    requests: int


class Guest(NamedTuple):
    """A connected guest."""

    tap: int  # descriptor, -1: none
    tso: bool
    uso: bool
    mac: bytes
    child: int  # process to wait for, 0: none
    go: int  # descriptor: write a byte and the command starts; closed: it ends. -1: none
    notes: tuple[str, ...] = ()  # what was left out, for who debugs
    maker: MakerEnds | None = None  # of sockets in its namespace


class Command(NamedTuple):
    """What to run in the namespaces."""

    path: str
    arguments: tuple[str, ...]  # with the program's name first
    init: bool  # below an init of a PID namespace


class Pending:
    """A child at work; `result` waits for it. Meanwhile the parent has something else to do."""

    def __init__(self, sock: sockets.socket, child: int, stays: bool) -> None:
        self.sock = sock
        self.child = child
        self.stays = stays  # the child becomes the command

    def result(self) -> Guest:
        """Return what the child made, or raise what went wrong in it."""
        message, fds, _, _ = sockets.recv_fds(self.sock, MESSAGE + 1, 3)
        if message == MAPS:
            self.sock.send(DONE if _write_maps(self.child) else b"-")
            message, fds, _, _ = sockets.recv_fds(self.sock, MESSAGE + 1, 3)
        if not message.startswith(b"+"):
            self.sock.close()
            _, status = os.waitpid(self.child, 0)
            text = message[1:].decode(errors="replace") or f"the process that makes the namespaces ended ({status})"
            raise BucatiniError(text)
        has_tap, has_maker, tso, uso, mac = _RESULT.unpack_from(message, 1)
        notes = tuple(message[1 + _RESULT.size :].decode(errors="replace").splitlines())
        for fd in fds:
            os.set_inheritable(fd, False)
        tap = fds[0] if has_tap else -1
        maker = MakerEnds(*fds[-2:]) if has_maker else None
        if self.stays:
            return Guest(tap, tso, uso, mac, self.child, self.sock.detach(), notes, maker)
        self.sock.close()
        os.waitpid(self.child, 0)
        return Guest(tap, tso, uso, mac, 0, -1, notes, maker)


def spawn(plan: Plan, settings: Settings, identity: Identity | None) -> Pending:
    """Begin to make namespaces and to prepare the command (or the user's shell) in them."""
    command = command_of(settings)
    return _fork(plan, settings, lambda sock: _make_namespaces(settings, identity, sock), command, identity)


def join(plan: Plan, settings: Settings, identity: Identity | None) -> Pending:
    """Begin to join the namespaces that `settings` names."""
    user, net = namespace_paths(settings)
    return _fork(plan, settings, lambda _: _join_namespaces(user, net, identity, settings), None, identity)


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


def _join_namespaces(user: str | None, net: str, identity: Identity | None, settings: Settings) -> int | None:
    """Enter the namespaces; both are opened before either is entered. Returns the tap's device, if it is open."""
    # Between the two we are in theirs with one foot and at home with the other: their root must not trace us
    kernel.be_undumpable()
    net_fd = _open(net, "network")
    user_fd = -1 if user is None else _open(user, "user")
    # Joining one's own is refused (EINVAL); root of the first one has all it needs without
    if user_fd >= 0 and os.fstat(user_fd).st_ino == os.stat("/proc/self/ns/user").st_ino:
        os.close(user_fd)
        user_fd = -1
    device = None
    # In there root's number may stand for nobody, and we would stay root of the host. Root without the right (a
    # container's) can enter only what it has made itself, as root
    becomes = user_fd >= 0 and identity is not None and bool(kernel.capabilities() >> kernel.CAP_SYS_ADMIN & 1)
    if identity is not None and becomes:
        kernel.setns(net_fd, kernel.CLONE_NEWNET, f"join network namespace {net}")
        if not settings.splice_only:
            device = open_device()  # root may, whom we become perhaps not
        kernel.keep_capabilities_once()
        become(*identity)
        kernel.keep_capabilities(kernel.CAP_SYS_ADMIN)
        kernel.be_undumpable()
    if user_fd >= 0:
        kernel.setns(user_fd, kernel.CLONE_NEWUSER, f"join user namespace {user}")
        os.close(user_fd)
    if not becomes:
        kernel.setns(net_fd, kernel.CLONE_NEWNET, f"join network namespace {net}")
    os.close(net_fd)
    return device


def _make_namespaces(settings: Settings, identity: Identity | None, sock: sockets.socket) -> None:
    """Move to namespaces of our own, as root of them."""
    if identity is not None:
        become(*identity)
        kernel.be_dumpable()
    uid, gid = os.geteuid(), os.getegid()
    # The root of a user namespace keeps the users that it has; the first one's maps itself alone, like anybody
    several = uid == 0 and not is_real_root()
    flags = kernel.CLONE_NEWNET | kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    advice = ADVICE
    if settings.netns_only:
        advice = "--netns-only needs the root of a user namespace, or --runas 0" if identity is None else NEEDS_RUNAS
    else:
        flags |= kernel.CLONE_NEWUSER
    kernel.unshare(flags, "make namespaces", advice)
    if settings.netns_only:
        # With a user namespace of our own the kernel has done that (mount_namespaces(7))
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_SLAVE)
    elif not (several and _ask_for_maps(sock)):
        _map_root(uid, gid)
    write_sysctl("ipv4/ping_group_range", "0 0")


def _map_root(uid: int, gid: int) -> None:
    """Be root of our new user namespace, alone in it."""
    for name, text in (("setgroups", "deny"), ("gid_map", f"0 {gid} 1"), ("uid_map", f"0 {uid} 1")):
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        except OSError as error:
            advice = "AppArmor may restrict user namespaces: see 'bucatini doctor'"
            raise HostError(f"write {name} of the user namespace", error.errno or 0, advice) from None


def _ask_for_maps(sock: sockets.socket) -> bool:
    """Have the parent, which is outside and may, give our user namespace all users of its own."""
    sock.send(MAPS)
    return sock.recv(1) == DONE


def identity_map(text: str) -> str:
    """Return the map that gives a child namespace what `text`, our own uid_map or gid_map, says that we have."""
    lines = [line.split() for line in text.splitlines()]
    return "".join(f"{first} {first} {count}\n" for first, _, count in lines)


def _write_maps(child: int) -> bool:
    try:
        for name in ("gid_map", "uid_map"):
            with open(f"/proc/self/{name}") as file:
                text = identity_map(file.read())
            with open(f"/proc/{child}/{name}", "w") as file:
                file.write(text)
    except OSError:
        return False
    return True


def _fork(
    plan: Plan,
    settings: Settings,
    enter: Callable[[sockets.socket], int | None],
    run: Command | None,
    identity: Identity | None,
) -> Pending:
    """Fork the child."""
    signals.signal(signals.SIGCHLD, signals.SIG_DFL)  # whoever started us may have ignored it, and waiting would fail
    ours, theirs = sockets.socketpair(sockets.AF_UNIX, sockets.SOCK_SEQPACKET)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # What we have open is none of the guest's business: its root may trace this process
            close_inherited(theirs.fileno())
            status = _child(plan, settings, enter, run, theirs, parent, identity)
        except KeyboardInterrupt:
            status = 130
        except BaseException as error:  # noqa: BLE001 - the parent tells it
            theirs.send(b"-" + f"{type(error).__name__}: {error}".encode(errors="replace")[:MESSAGE])
        finally:
            os._exit(status)
    theirs.close()
    return Pending(ours, child, run is not None)


def _child(
    plan: Plan,
    settings: Settings,
    enter: Callable[[sockets.socket], int | None],
    run: Command | None,
    sock: sockets.socket,
    parent: int,
    identity: Identity | None,
) -> int:
    """In the child: enter, make the tap, report; then run the command. Returns an exit status."""
    try:
        makes = settings.needs_maker()
        if makes:  # loaded while we may: the user that we are to be might not
            from bucatini.guest.maker import start_maker
        if run is not None:
            import warnings  # noqa: F401 - os.execvp imports it
        device = enter(sock)
        maker = start_maker(identity, isolated=settings.isolated) if makes else None
        if run is not None:
            _die_with(parent)
            if run.init:  # not earlier: the first process that is made then is its init
                kernel.unshare(kernel.CLONE_NEWPID, "make namespaces", ADVICE)
        tap = None if settings.splice_only else open_tap(plan.ifname, device)
        mac, notes = configure(plan, settings)
    except BucatiniError as error:
        sock.send(b"-" + str(error).encode(errors="replace")[:MESSAGE])
        return 1
    fds = ([tap.fd] if tap else []) + list(maker or ())
    tso, uso = (tap.tso, tap.uso) if tap else (False, False)
    report = b"+" + _RESULT.pack(bool(tap), bool(maker), tso, uso, mac) + "\n".join(notes).encode(errors="replace")
    sockets.send_fds(sock, [report[:MESSAGE]], fds)
    for fd in fds:
        os.close(fd)
    if run is None:
        return 0
    if not sock.recv(1):
        return 1
    sock.close()
    ignored = [number for number in KEYBOARD if signals.getsignal(number) == signals.SIG_IGN]
    if not run.init:
        _execute(run, ignored)
    return _as_init(run, ignored)


def _die_with(parent: int) -> None:
    """Be killed when the parent ends, even if it has ended already."""
    kernel.die_with_parent(signals.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _wait(child: int) -> int:
    """Wait for one child, collecting any other; returns its exit status, 128+N for a signal."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _as_init(command: Command, ignored: Sequence[int]) -> int:
    """Run the command below an init of the new PID namespace, with a /proc of its own."""
    # Both are copies of our program: the command's root must not change them, nor learn where our memory lies. The
    # waiter is in the PID namespace outside, where there are more processes of our user. An exec takes that back
    kernel.be_undumpable()
    lifeline, held = os.pipe()
    init = os.fork()
    if init == 0:
        status = 1
        try:
            os.close(held)
            for number in KEYBOARD:
                signals.signal(number, signals.SIG_IGN)
            kernel.die_with_parent(signals.SIGKILL)
            if _ended(lifeline):  # before the line above could see it
                os._exit(1)
            try:
                kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
            except HostError:
                pass  # a container that hides parts of /proc does not let us have a new one
            child = os.fork()
            if child == 0:
                _execute(command, ignored)
            status = _wait(child)
        finally:
            os._exit(status)
    for number in KEYBOARD:
        signals.signal(number, signals.SIG_IGN)
    return _wait(init)


def _ended(lifeline: int) -> bool:
    """Whether the other end of a pipe is closed."""
    os.set_blocking(lifeline, False)
    try:
        return not os.read(lifeline, 1)
    except BlockingIOError:
        return False
    finally:
        os.close(lifeline)


def command_of(settings: Settings) -> Command:
    """Return what to execute: the command, or the user's shell as a login shell."""
    init = settings.pidns and not settings.foreground
    if settings.command:
        return Command(settings.command[0], settings.command, init)
    shell = os.environ.get("SHELL", "")
    if not shell:
        import pwd

        try:
            shell = pwd.getpwuid(os.getuid()).pw_shell
        except KeyError:
            shell = ""
    if not shell or not os.access(shell, os.X_OK):
        shell = "/bin/sh"
    return Command(shell, ("-" + os.path.basename(shell),), init)


def _execute(command: Command, ignored: Sequence[int]) -> None:
    """Become the command. Does not return."""
    status = 126
    try:
        for number in (*KEYBOARD, signals.SIGTERM, signals.SIGPIPE, signals.SIGXFSZ):
            signals.signal(number, signals.SIG_IGN if number in ignored else signals.SIG_DFL)
        close_inherited()
        try:
            os.execvp(command.path, command.arguments)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            # A script without an interpreter line, as execvp(3) has it
            os.execv("/bin/sh", ("sh", _found(command.path), *command.arguments[1:]))
    except OSError as error:
        if error.errno == errno.EACCES and not os.path.exists(_found(command.path)):
            # A folder of PATH that may not be looked into does not make it a program that may not be run
            error = OSError(errno.ENOENT, "")
        if error.errno == errno.ENOENT:
            status = 127
        os.write(
            2, b"pasta: cannot run '%s': %s\n" % (os.fsencode(command.path), os.strerror(error.errno or 0).encode())
        )
    finally:
        os._exit(status)


def _found(name: str) -> str:
    """Return the path under which execvp finds a program."""
    if "/" in name:
        return name
    candidates = (os.path.join(folder, name) for folder in os.get_exec_path())
    return next((path for path in candidates if os.access(path, os.X_OK)), name)
