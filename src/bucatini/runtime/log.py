"""Where messages go: standard error, the system log in the background, or a file of bounded size.

A logger of our own, since the standard one costs a start 10 ms. Levels: error, warning, info, debug, trace. What
cannot be written is lost: a full disk must not stop the traffic.
"""

import os
import select
import socket
import time

ERROR, WARNING, INFO, DEBUG, TRACE = 3, 4, 6, 7, 8  # RFC 5424 §6.2.1; trace is sent as debug
FACILITY = 3 << 3  # daemon
SYSLOG = "/dev/log"
KEEP = 2  # of a full file the newest half stays: 1/KEEP


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
    ) -> None:
        """Open the file, if there is one, and the way to the system log.

        Args:
            size: most the file may hold, bytes.

        Raises:
            HostError: the file cannot be opened.
        """
        self.level = TRACE if trace else DEBUG if debug else WARNING if quiet else INFO
        self.name = name
        self.start = time.monotonic()
        self.size = size
        self.fd = -1
        self.stderr = True
        self.seen: set[str] = set()
        self.syslog: socket.socket | None = None
        if path is not None:
            self._open(path)

    def _open(self, path: str) -> None:
        from bucatini.errors import HostError

        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(f"open the log file {path}", error.errno or 0) from None

    def error(self, text: str) -> None:
        """Log an error."""
        self._write(ERROR, text)

    def warning(self, text: str) -> None:
        """Log a warning, each text once."""
        if text not in self.seen and len(self.seen) < 1000:
            self.seen.add(text)
            self._write(WARNING, text)

    def info(self, text: str) -> None:
        """Log what a user may want to know."""
        self._write(INFO, text)

    def debug(self, text: str) -> None:
        """Log what a developer may want to know."""
        self._write(DEBUG, text)

    def trace(self, text: str) -> None:
        """Log about a single frame."""
        self._write(TRACE, text)

    def to_background(self) -> None:
        """From now on there is no standard error: the system log takes over where there is no file."""
        self.stderr = False
        if self.fd >= 0:
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(SYSLOG)
        except OSError:
            sock.close()
            return
        self.syslog = sock

    def _write(self, level: int, text: str) -> None:
        if level > self.level:
            return
        try:
            if self.fd >= 0:
                self._to_file(level, text)
            if self.syslog is not None:
                stamp = time.strftime("%b %e %H:%M:%S")  # RFC 3164 §4.1.2
                priority = FACILITY | min(level, DEBUG)
                self.syslog.send(f"<{priority}>{stamp} {self.name}[{os.getpid()}]: {text}".encode(errors="replace"))
            elif self.stderr and (self.fd < 0 or level <= WARNING):
                line = f"{self.name}: {text}\n" if level <= WARNING else f"{text}\n"
                # Whoever reads too slowly misses chatter; the traffic does not wait for him
                if level <= WARNING or select.select((), (2,), (), 0)[1]:
                    os.write(2, line.encode(errors="replace"))
        except (OSError, ValueError):
            pass

    def _to_file(self, level: int, text: str) -> None:
        name = {ERROR: "error", WARNING: "warning", INFO: "info", DEBUG: "debug", TRACE: "trace"}[level]
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
        line = f"{stamp} {time.monotonic() - self.start:.4f} {name}: {text}\n".encode(errors="replace")[
            : self.size // 2
        ]
        if not line.endswith(b"\n"):
            line = line[:-1] + b"\n"
        used = os.fstat(self.fd).st_size
        if used + len(line) > self.size:
            # Keep the newest whole lines, as many as fit in half of the file
            kept = os.pread(self.fd, self.size // KEEP - len(line), max(0, used - self.size // KEEP + len(line)))
            os.ftruncate(self.fd, 0)
            os.write(self.fd, kept[kept.find(b"\n") + 1 :])
        os.write(self.fd, line)
