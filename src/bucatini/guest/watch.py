"""Noticing that a joined network namespace has lost its name: then there is nobody left to serve.

A bind mount is watched by inotify on its folder; a path in /proc cannot be, nor can anything when the user's inotify
limit is reached: `poll_ns` then says how often to look.
"""

import os

from bucatini.errors import HostError
from bucatini.host import kernel

POLL_NS = 1_000_000_000


class NamespaceWatch:
    """Tells when `path` is no longer the namespace it was."""

    def __init__(self, path: str) -> None:
        """Remember what `path` is now."""
        self.path = path
        found = os.stat(path)
        self.identity = (found.st_dev, found.st_ino)
        self.fd = -1  # readable when it is time to look
        self.poll_ns = 0  # ns between looks, 0: no need
        if os.path.abspath(path).startswith("/proc/"):
            self.poll_ns = POLL_NS
            return
        mask = kernel.IN_DELETE | kernel.IN_MOVED_FROM | kernel.IN_DELETE_SELF | kernel.IN_UNMOUNT
        try:
            self.fd = kernel.inotify_watch(os.path.dirname(os.path.abspath(path)), mask)
        except HostError:
            self.poll_ns = POLL_NS

    def gone(self) -> bool:
        """Whether the namespace is no longer there; also empties `fd`."""
        if self.fd >= 0:
            try:
                os.read(self.fd, 65536)
            except BlockingIOError:
                pass
        try:
            found = os.stat(self.path)
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self.identity
