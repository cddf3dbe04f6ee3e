"""What makes a process a daemon: descriptors, background, pid file, identity, limits."""

import os
import resource

from bucatini.errors import HostError, UsageError


def occupy_standard_descriptors() -> None:
    """Put /dev/null on descriptors 0 to 2 that were closed, before anything else takes their numbers."""
    while True:
        fd = os.open("/dev/null", os.O_RDWR)
        if fd > 2:
            os.close(fd)
            return
        os.set_inheritable(fd, True)


def close_inherited(keep: int = -1) -> None:
    """Close every descriptor above 2 that whoever started us left open, but for `keep`."""
    top = os.sysconf("SC_OPEN_MAX")
    if keep > 2:
        os.closerange(3, keep)
        os.closerange(keep + 1, top)
    else:
        os.closerange(3, top)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Background:
    """The way to the background: `fork` early or late, `ready` lets the parent go.

    The parent waits for one byte; if it gets none, the child has failed and said why.
    """

    def __init__(self) -> None:
        self.fd = -1

    def fork(self) -> None:
        """Go on in a child that leads a session of its own; the parent waits for readiness."""
        reader, self.fd = os.pipe()
        pid = os.fork()
        if pid:
            os.close(self.fd)
            status = 0 if os.read(reader, 1) else 1
            os._exit(status)
        os.close(reader)
        os.setsid()

    def ready(self) -> None:
        """Leave the terminal and the folder, and let the parent exit 0."""
        null = os.open("/dev/null", os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.close(null)
        os.chdir("/")
        os.write(self.fd, b"+")
        os.close(self.fd)
        self.fd = -1


class PidFile:
    """A pid file, opened while paths still mean what the user meant, written when the pid is known."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise HostError(f"open the pid file {path}", error.errno or 0) from None

    def write(self) -> None:
        """Write our pid."""
        os.write(self.fd, f"{os.getpid()}\n".encode())
        os.close(self.fd)


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
    """Return uid and gid of a --runas value: UID, UID:GID, LOGIN or LOGIN:GROUP; nobody by default."""
    import grp
    import pwd

    login, _, group = (text or "nobody").partition(":")
    try:
        if login.isdigit():
            uid = int(login)
            gid = uid if text else 65534
        else:
            entry = pwd.getpwnam(login)
            uid, gid = entry.pw_uid, entry.pw_gid
        if group:
            gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        if text is None:
            return 65534, 65534
        raise UsageError(f"--runas: no such user or group in '{text}'") from None
    return uid, gid


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


def have_directory() -> None:
    """Make sure that the current folder exists: one that was removed is replaced by the root."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir("/")
