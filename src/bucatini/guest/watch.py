"""Noticing that a joined network namespace is gone: then there is nobody left to serve.

A name in a folder is watched by inotify. What is below /proc cannot be: there the end of the process shows (pidfd), and
`poll_ns` says how often to look, as it does when the user's inotify limit is reached.

The watch is made with the rights of who started us and read with less: a folder that may no longer be looked into says
nothing by that, and then the events count alone.
"""

from __future__ import annotations

import os
import select
import struct

from bucatini.errors import HostError
from bucatini.host import kernel

# syscalls lookout: newfstatat stat read poll ppoll

POLL_NS = 1_000_000_000
LINKS = 40  # symbolic links followed, as the kernel does
_EVENT = struct.Struct("=iIII")  # struct inotify_event: descriptor, mask, cookie, length of the name


class NamespaceWatch:
    """Tells when `path` is no longer the namespace it was.

    `fd` is readable when it is time to call `gone` (-1: none); `poll_ns` is the time between calls (0: no need).
    """

    def __init__(self, path: str) -> None:
        """Remember what `path` is now.

        Raises:
            HostError: it is not there.
        """
        self.path = _followed(os.path.join(os.getcwd(), path))
        self.fd = -1
        self.poll_ns = 0
        self._name = os.fsencode(os.path.basename(self.path))
        self._folder = -1  # of a process: it does not become that of another process with the same number
        self._process = -1
        try:
            self._identity = self._look()
            if self.path.startswith("/proc/"):
                self._watch_process()
                return
        except OSError as error:
            raise HostError(f"watch the network namespace {path}", error.errno or 0) from None
        try:
            mask = kernel.IN_DELETE | kernel.IN_MOVED_FROM | kernel.IN_DELETE_SELF | kernel.IN_UNMOUNT
            self.fd = kernel.inotify_watch(mask, os.path.dirname(self.path))
        except HostError:
            self.poll_ns = POLL_NS

    def held(self) -> set[int]:
        """Return the descriptors that the watch needs."""
        return {self.fd, self._folder} - {-1}

    def close(self) -> None:
        """Close what the watch holds."""
        for fd in self.held():
            os.close(fd)
        self.fd = self._folder = self._process = -1

    def _watch_process(self) -> None:
        self.poll_ns = POLL_NS
        folder = os.open(os.path.dirname(self.path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if os.fstat(folder).st_dev == os.stat("/proc").st_dev:
            self._folder = folder
        else:  # /proc/PID/root/...: holding it would keep its file system from being unmounted
            os.close(folder)
        number = self.path.split("/")[2]
        if not (number.isascii() and number.isdigit()):
            return
        try:
            self._process = self.fd = os.pidfd_open(int(number))
        except OSError:
            pass  # a thread, or it has just ended: looking shows it

    def _look(self) -> tuple[int, int]:
        if self._folder >= 0:
            found = os.stat(os.path.basename(self.path), dir_fd=self._folder)
        else:
            found = os.stat(self.path)
        return found.st_dev, found.st_ino

    def gone(self) -> bool:
        """Whether the namespace is no longer there; also empties `fd`."""
        if self._process >= 0:
            poll = select.poll()
            poll.register(self._process, select.POLLIN)
            if poll.poll(0):
                return True
            named = False
        else:
            named = self._events()
        try:
            return self._look() != self._identity
        except PermissionError:
            return named
        except OSError:
            return True

    def _events(self) -> bool:
        """Read the events; whether one of them says that the name or its folder has gone."""
        if self.fd < 0:
            return False
        found = False
        while True:
            try:
                data = os.read(self.fd, 65536)
            except BlockingIOError:
                return found
            at = 0
            while at + _EVENT.size <= len(data):
                _, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size
                name = data[at : at + length].rstrip(b"\0")
                at += length
                found |= bool(mask & (kernel.IN_DELETE_SELF | kernel.IN_UNMOUNT)) or name == self._name


def _followed(path: str) -> str:
    """Follow symbolic links at the end of a path, up to one of those in /proc that are none in truth."""
    for _ in range(LINKS):
        if path.startswith("/proc/") or not os.path.islink(path):
            break
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return path
