"""What /etc/resolv.conf says: name servers and search list (resolv.conf(5)), and when it may say something else."""

from __future__ import annotations

import os

from bucatini.host import kernel
from bucatini.lean import sockets

# syscalls lookout: openat read close

PATH = "/etc/resolv.conf"
LIMIT = 1 << 20  # bytes read at most

Resolvers = tuple[tuple[str, ...], tuple[str, ...]]  # name servers, search list


def is_address(text: str) -> bool:
    """Whether `text` is an IPv4 or IPv6 address, the latter perhaps with a scope id."""
    for family, written in ((sockets.AF_INET, text), (sockets.AF_INET6, text.partition("%")[0])):
        try:
            sockets.inet_pton(family, written)
        except (OSError, ValueError):  # the latter for a zero byte
            continue
        return True
    return False


def parse(text: str) -> Resolvers:
    """Return name servers and search list; of several `search` or `domain` lines the last one counts."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver" and is_address(words[1]):
            if words[1] not in servers:
                servers.append(words[1])
        elif words[0] == "search":
            search = tuple(words[1:])
        elif words[0] == "domain":
            search = (words[1],)
    return tuple(servers), search


def read(path: str = PATH) -> Resolvers:
    """Return what the file says; nothing when there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return (), ()
    try:
        return parse(os.read(fd, LIMIT).decode(errors="replace"))
    except OSError:
        return (), ()
    finally:
        os.close(fd)


def watch(path: str = PATH) -> int:
    """Return an inotify descriptor that is readable when the file may have changed.

    Its folder is watched, and that of the file it is a link to, because programs replace it as a whole; and the file
    itself, because it may be mounted from elsewhere.

    Raises:
        HostError: the user's limit of watches is reached.
    """
    mask = kernel.IN_CLOSE_WRITE | kernel.IN_MOVED_TO | kernel.IN_CREATE | kernel.IN_DELETE
    paths = dict.fromkeys((os.path.dirname(path), os.path.dirname(os.path.realpath(path)), path))
    return kernel.inotify_watch(mask, *filter(os.path.exists, paths))


def changed(watched: int, known: Resolvers, path: str = PATH) -> Resolvers | None:
    """Return what the file says if that is something else than `known`; also empties the descriptor of `watch`.

    Args:
        watched: -1: there is none.
    """
    try:
        if watched >= 0:
            os.read(watched, 65536)
    except BlockingIOError:
        pass
    found = read(path)
    return found if found[0] and found != known else None  # while it is being written it may be empty
