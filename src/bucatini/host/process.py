"""What makes a process a daemon: descriptors, background, pid file, identity, limits; and the ports it may bind."""

from __future__ import annotations

import os
import resource

from bucatini.errors import HostError, UsageError
from bucatini.lean.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

# After the seal: `Background.ready`. Not before, since what fails up to then is told on standard error
# syscalls serve: dup2 dup3 write close

DESCRIPTOR_MAX = 0xFFFFFFFF  # no kernel has one as high


def occupy_standard_descriptors() -> None:
    """Put /dev/null on descriptors 0 to 2 that were closed, before anything else takes their numbers."""
    while True:
        fd = _open_null()
        if fd > 2:
            os.close(fd)
            break
        os.set_inheritable(fd, True)


def _open_null() -> int:
    try:
        return os.open("/dev/null", os.O_RDWR)
    except OSError as error:
        raise HostError("open /dev/null", error.errno or 0) from None


def close_inherited(*keep: int) -> None:
    """Close every descriptor above 2 that whoever started us left open, but for `keep`.

    They may be above our limit of open files, which does not hold for what was opened before it was set.
    """
    from bucatini.host import kernel  # a command line alone does without

    first = 3
    try:
        for fd in sorted(keep):
            if fd > first:
                kernel.close_range(first, fd - 1)
            first = max(first, fd + 1)
        kernel.close_range(first, DESCRIPTOR_MAX)
    except HostError:  # an old kernel, or a filter of calls that does not know it
        for fd in _open_descriptors():
            if fd > 2 and fd not in keep:
                try:
                    os.close(fd)
                except OSError:
                    pass  # it was not open


def _open_descriptors() -> Iterable[int]:
    """Return the descriptors that are open, and perhaps some that are not."""
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # no /proc: what the limit allows
        return range(os.sysconf("SC_OPEN_MAX"))


def _silence(streams: int) -> None:
    """Put /dev/null in the place of the first standard streams."""
    null = _open_null()
    for fd in range(streams):
        os.dup2(null, fd)
    os.close(null)


def let_go_of_streams() -> None:
    """In the foreground: keep standard error alone, nothing else is said or read; a command has copies of its own."""
    _silence(2)


def read_no_terminal() -> None:
    """Hold standard error for writing alone: a shell's is its terminal, and what is typed there is not ours to read."""
    try:
        if os.isatty(2):
            fd = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
            os.dup2(fd, 2)
            os.close(fd)
    except OSError:
        pass  # somebody else's, who has lent it to us, or one of another mount of devpts


def has_terminal() -> bool:
    """Whether a terminal sends its signals to our session (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def stand_apart(*keep: int) -> None:
    """In a helper that was just forked: let go of what ties it to whoever started us, descriptors but for `keep`."""
    from bucatini.lean import signals

    os.setsid()  # the keyboard's signals are not for it
    for number in (signals.SIGTERM, signals.SIGINT, signals.SIGHUP, signals.SIGQUIT):
        signals.signal(number, signals.SIG_DFL)
    _silence(3)  # whoever waits for the end of our output does not wait for the helper's
    close_inherited(*keep)
    os.chdir("/")


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


NOBODY = 65534  # what the kernel calls overflowuid; distributions agree
ID_MAX = 0xFFFFFFFE  # the number after it means "no change" in setresuid(2)


class Made:
    """What a start has made in the file system, to be removed if it fails. What was there before stays.

    `with Made() as made:` removes it when an exception comes through, unless `keep` was called.
    """

    def __init__(self) -> None:
        self.files: list[tuple[str, int, int]] = []  # absolute path, device, inode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.remove()

    def add(self, path: str) -> None:
        """Remember a file that was just made."""
        try:
            found = os.lstat(path)
        except OSError:
            return  # somebody has removed it
        self.files.append((os.path.abspath(path), found.st_dev, found.st_ino))

    def open(self, path: str, mode: int) -> int:
        """Open an empty file to write to, following links, and remember it if it was not there. Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        try:
            fd = os.open(path, flags | os.O_EXCL, mode)
        except FileExistsError:
            return os.open(path, flags | os.O_TRUNC, mode)
        self.add(path)
        return fd

    def remove(self) -> None:
        """Remove what is still ours, as far as the user that we have become may."""
        for path, device, inode in self.files:
            try:
                found = os.lstat(path)
                if (found.st_dev, found.st_ino) == (device, inode):
                    os.unlink(path)
            except OSError:
                pass
        self.files.clear()

    def keep(self) -> None:
        """Leave it: the start has not failed."""
        self.files.clear()


class PidFile:
    """A pid file, opened while paths still mean what the user meant, written when the pid is known."""

    def __init__(self, path: str, made: Made) -> None:
        self.path = path
        try:
            self.fd = made.open(path, 0o644)
        except OSError as error:
            raise HostError(f"open the pid file {path}", error.errno or 0) from None

    def write(self, pid: int) -> None:
        """Write the pid of the process that serves."""
        try:
            os.write(self.fd, f"{pid}\n".encode())
            self.close()
        except OSError as error:
            raise HostError(f"write the pid file {self.path}", error.errno or 0) from None

    def close(self) -> None:
        """Leave it to somebody else."""
        os.close(self.fd)


class Background:
    """The way to the background: `fork`, and `ready` lets the parent go, which completes the pid file.

    The parent waits for one byte; if it gets none, the child has failed and said why.
    """

    def __init__(self) -> None:
        self.fd = -1
        self.null = -1

    def fork(self, pid_file: PidFile | None, made: Made) -> None:
        """Go on in a child that leads a session of its own; the parent waits for readiness and ends.

        Args:
            made: what the parent removes if the child fails, which may not see it any more.

        Raises:
            HostError: in the parent: the pid file could not be written, and the child was ended.
        """
        self.null = _open_null()  # the path may be gone later
        reader, self.fd = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            if pid_file is not None:
                pid_file.close()
            os.setsid()
            os.chdir("/")
            return
        os.close(self.fd)
        status = 1
        try:
            if os.read(reader, 1):
                if pid_file is not None:
                    pid_file.write(pid)
                status = 0
        except KeyboardInterrupt:
            status = 130
        except HostError:
            os.kill(pid, 9)  # SIGKILL; the module of that name is not for a start that goes well
            raise
        if status:
            made.remove()
        os._exit(status)

    def ready(self) -> None:
        """Leave the terminal, and let the parent exit 0.

        Raises:
            HostError: the parent has ended: nobody is waiting for us.
        """
        for fd in range(3):
            os.dup2(self.null, fd)
        os.close(self.null)
        try:
            os.write(self.fd, b"+")
        except OSError as error:
            raise HostError("tell that we are ready", error.errno or 0) from None
        os.close(self.fd)
        self.fd = -1


def is_real_root() -> bool:
    """Whether we are root of the first user namespace."""
    if os.geteuid() != 0:
        return False
    try:
        with open("/proc/self/uid_map") as file:
            return file.read().split() == ["0", "0", "4294967295"]
    except OSError:
        return True


def identity_of(text: str | None) -> tuple[int, int]:
    """Return uid and gid of a --runas value: UID, UID:GID, LOGIN or LOGIN:GROUP; nobody by default.

    Raises:
        UsageError: there is no such user or group.
    """
    import grp
    import pwd

    login, colon, group = ("nobody" if text is None else text).partition(":")
    try:
        if _is_number(login):
            uid = gid = int(login)
        else:
            entry = pwd.getpwnam(login)
            uid, gid = entry.pw_uid, entry.pw_gid
        if colon:
            gid = int(group) if _is_number(group) else grp.getgrnam(group).gr_gid
    except KeyError:
        if text is None:
            return NOBODY, NOBODY
        raise UsageError(f"--runas: no such user or group in '{text}'") from None
    if max(uid, gid) > ID_MAX:
        raise UsageError(f"--runas: '{text}' has a number beyond {ID_MAX}")
    return uid, gid


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 12


def become(uid: int, gid: int) -> None:
    """Give up root for good."""
    try:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise HostError(f"become user {uid}", error.errno or 0) from None


def ephemeral_range() -> tuple[int, int]:
    """Return first and last of the ports that the kernel hands out itself."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
            first, last = file.read().split()
        return int(first), int(last)
    except (OSError, ValueError):
        return 32768, 60999  # Linux's default


def unprivileged_ports() -> int:
    """Return the first port that may be bound without CAP_NET_BIND_SERVICE."""
    try:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 1024  # Linux's default


def have_directory() -> None:
    """Make sure that the current folder exists: one that was removed is replaced by the root."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir("/")
