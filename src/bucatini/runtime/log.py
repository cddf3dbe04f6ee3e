"""Where messages go: standard error, the system log in the background, or a file of bounded size.

A logger of our own, since the standard one costs a start 10 ms. Levels: error, warning, info, debug, trace. An entry is
one line: what is unprintable in it is escaped, since some of it comes from the guest. With a file, standard error still
gets warnings and errors until the background. What --debug and --trace add goes to standard error or to the file, never
to the system log, which is not to be flooded by what the guest sends. The file and the way to the system log are opened
while the file system can be seen; nothing is opened later.

Failure: a file that cannot be opened is an error of the start. After that, what cannot be written at once is lost: a
full disk or pipe must neither stop nor end the traffic. The file is never left with half an entry.
"""

from __future__ import annotations

import os
import select
import stat
import time

from bucatini.lean import sockets

# syscalls serve: write poll ppoll fstat newfstatat pread64 ftruncate sendto getpid clock_gettime

ERROR, WARNING, INFO, DEBUG, TRACE = 3, 4, 6, 7, 8  # RFC 5424 §6.2.1; trace is our own
NAMES = {ERROR: "error", WARNING: "warning", INFO: "info", DEBUG: "debug", TRACE: "trace"}
FACILITY = 3 << 3  # daemon, RFC 5424 §6.2.1
SYSLOG = "/dev/log"
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
DISTINCT_WARNINGS = 1000  # remembered; more than these are not logged
ENTRY_MAX = 4000  # characters of a message; more is cut off


def printable(text: str) -> str:
    """Return text as one line: what is unprintable in it escaped, what is too long cut off."""
    text = text[:ENTRY_MAX]
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Log:
    """The messages of one instance."""

    def __init__(
        self,
        *,
        debug: bool = False,
        trace: bool = False,
        quiet: bool = False,
        path: str | None = None,
        size: int = 1 << 20,
        name: str = "pasta",
        syslog: str = SYSLOG,
    ) -> None:
        """Open the file, if there is one.

        Args:
            size: most the file may hold, bytes. Only regular files are bounded.
            syslog: path of the system log's socket.

        Raises:
            HostError: the file cannot be opened.
        """
        self.level = TRACE if trace else DEBUG if debug else WARNING if quiet else INFO
        self.name = name
        self.start = time.monotonic()
        self.size = size
        self.fd = -1
        self.bounded = False
        self.stderr = True
        self.seen: set[str] = set()
        self.syslog_path = syslog
        self.syslog: sockets.socket | None = None
        if path is not None:
            self._open(path)

    def _open(self, path: str) -> None:
        # A FIFO that nobody reads must not stop us, now or later
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            self.fd = os.open(path, flags, 0o600)
            self.bounded = stat.S_ISREG(os.fstat(self.fd).st_mode)
        except OSError as error:
            from bucatini.errors import HostError

            raise HostError(f"open the log file {path}", error.errno or 0) from None

    def error(self, text: str) -> None:
        """Log an error."""
        self._write(ERROR, text)

    def warning(self, text: str) -> None:
        """Log a warning, each text once."""
        self.warn_once(text, text)

    def warn_once(self, key: str, text: str) -> None:
        """Log a warning unless there was one of this key: for what the guest can cause at will."""
        if key in self.seen or len(self.seen) > DISTINCT_WARNINGS:
            return
        self.seen.add(key)
        self._write(WARNING, text if len(self.seen) <= DISTINCT_WARNINGS else "more warnings are not logged")

    def info(self, text: str) -> None:
        """Log what a user may want to know."""
        self._write(INFO, text)

    def debug(self, text: str) -> None:
        """Log what a developer may want to know."""
        self._write(DEBUG, text)

    def trace(self, text: str) -> None:
        """Log about a single frame."""
        self._write(TRACE, text)

    def connect_syslog(self) -> None:
        """Open the way to the system log while its path can be seen; it is used from `to_background` on."""
        if self.fd >= 0 or self.syslog is not None:
            return
        sock = sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM | sockets.SOCK_NONBLOCK | sockets.SOCK_CLOEXEC)
        try:
            sock.connect(self.syslog_path)
        except OSError:
            sock.close()  # there is no system log, as in most containers: messages are lost
            return
        self.syslog = sock

    def to_background(self) -> None:
        """From now on there is no standard error: the system log takes over where there is no file."""
        self.stderr = False
        if self.fd < 0:
            self.level = min(self.level, INFO)

    def close(self) -> None:
        """Close the file and the way to the system log."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.syslog is not None:
            self.syslog.close()
            self.syslog = None

    def _write(self, level: int, text: str) -> None:
        if level > self.level:
            return
        text = printable(text)
        if self.stderr and (self.fd < 0 or level <= WARNING):
            self._to_stderr(f"{self.name}: {text}\n" if level <= WARNING else f"{text}\n")
        if self.fd >= 0:
            try:
                self._to_file(level, text)
            except OSError:
                pass  # the disk is full
        elif not self.stderr and self.syslog is not None:
            self._to_syslog(level, text)

    def _to_stderr(self, line: str) -> None:
        """Write to descriptor 2 as it is (the interpreter's own is None after a start with it closed)."""
        waiting = select.poll()
        waiting.register(2, select.POLLOUT)
        try:
            # A pipe that takes anything takes 4096 bytes (PIPE_BUF); a shared descriptor cannot be made non-blocking
            if waiting.poll(0):
                os.write(2, line.encode(errors="replace")[:4096])
        except OSError:
            pass  # nobody reads it

    def _to_syslog(self, level: int, text: str) -> None:
        now = time.localtime()
        clock = f"{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02}"
        stamp = f"{MONTHS[now.tm_mon - 1]} {now.tm_mday:2} {clock}"  # RFC 3164 §4.1.2, whatever the locale
        entry = f"<{FACILITY | level}>{stamp} {self.name}[{os.getpid()}]: {text}".encode(errors="replace")
        try:
            if self.syslog is not None:
                self.syslog.send(entry)
        except OSError:
            pass  # it cannot keep up, or was restarted: its path can no longer be seen

    def _to_file(self, level: int, text: str) -> None:
        """Append an entry: wall clock, seconds since the start, level, text. Raises OSError."""
        now = time.localtime()
        wall = f"{now.tm_year}-{now.tm_mon:02}-{now.tm_mday:02}T{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02}"
        line = f"{wall} {time.monotonic() - self.start:.4f} {NAMES[level]}: {text}\n".encode(errors="replace")
        if not self.bounded:
            os.write(self.fd, line)
            return
        if len(line) > self.size // 2:
            line = line[: self.size // 2 - 1].decode(errors="ignore").encode() + b"\n"
        used = os.fstat(self.fd).st_size
        if used + len(line) > self.size:
            used = self._cut(used, self.size // 2)
        try:
            written = os.write(self.fd, line)
        except OSError:
            written = 0
        if written < len(line):
            os.ftruncate(self.fd, used)

    def _cut(self, used: int, room: int) -> int:
        """Leave the newest entries, as many as fit into `room` bytes; returns how many bytes that is."""
        # One byte more tells whether the first one that fits is whole
        kept = os.pread(self.fd, room + 1, max(0, used - room - 1))
        kept = kept[kept.find(b"\n") + 1 :] if b"\n" in kept else b""
        os.ftruncate(self.fd, 0)
        written = os.write(self.fd, kept)
        if written < len(kept):
            written = kept.rfind(b"\n", 0, written) + 1
            os.ftruncate(self.fd, written)
        return written
