"""A guest of passt without a virtual machine: a namespace with a tap, and who carries its frames to the socket.

The tap has no offloads, as the link to a virtual machine has none: what passes here is what QEMU would pass.
"""

import contextlib
import fcntl
import itertools
import os
import select
import signal
import socket
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any, Self

from scapy.all import ARP, Ether

from system.installation import Installation
from system.namespaces import NamedNamespace, alive, end, wait_until
from system.topology import GATEWAY4, GATEWAY6, HOST4, HOST6, Topology
from system.users import User

TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TAP, IFF_NO_PI = 2, 0x1000
INTERFACE = "eth0"

_numbers = itertools.count()
MAC = "02:00:00:00:00:11"
ASK = bytes(Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=MAC, psrc=HOST4, pdst=GATEWAY4))


class Passt:
    """The program under test, run on the host of a topology by one user."""

    def __init__(self, installation: Installation, topology: Topology, user: User, workspace: Path) -> None:
        self.installation = installation
        self.topology = topology
        self.user = user
        self.workspace = workspace
        self.socket = str(workspace / "passt.socket")
        self._running: list[subprocess.Popen[str]] = []
        self._daemons: list[int] = []

    def argv(self, *options: str) -> list[str]:
        """The command line that runs passt on the host as the user."""
        return self.topology.host.command([self.installation.passt, *options], self.user)

    def run(self, *options: str, check: bool = True, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        """Run passt until it ends or is in the background."""
        kwargs = {"stdin": subprocess.DEVNULL, "text": True, "cwd": "/", "timeout": 30} | kwargs
        result = subprocess.run(self.argv(*options), check=False, capture_output=True, **kwargs)
        if check:
            assert result.returncode == 0, (
                f"passt {' '.join(options)}: {result.returncode}\n{result.stdout}{result.stderr}"
            )
        return result

    def background(self, *options: str, listen: bool = True, **kwargs: Any) -> int:
        """Run passt in the background; its process number. With `listen`, at `socket`."""
        pid_file = self.workspace / f"passt-{next(_numbers)}.pid"
        place = ("--socket", self.socket) if listen else ()
        self.run(*place, *options, "--pid", str(pid_file), **kwargs)
        pid = int(pid_file.read_text())
        self._daemons.append(pid)
        return pid

    def adopt(self, pid: int) -> None:
        """End a passt that was started in another way with the test, if it is still there."""
        self._daemons.append(pid)

    def foreground(self, *options: str, **kwargs: Any) -> "subprocess.Popen[str]":
        """Run passt in the foreground."""
        kwargs = {"stdin": subprocess.DEVNULL, "text": True, "cwd": "/"} | kwargs
        process = subprocess.Popen(
            self.argv("--foreground", *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs
        )
        self._running.append(process)
        return process

    def terminate(self, pid: int) -> None:
        """End a passt in the background."""
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not alive(pid), f"end of passt ({pid})", 5)

    def close(self) -> None:
        """End everything that was started."""
        for process in self._running:
            end(process)
        for pid in self._daemons:
            if alive(pid):
                self.terminate(pid)


class Cable:
    """Carries frames between the tap of a guest and a stream socket, as QEMU does; reconnects when told to."""

    def __init__(self, guest: NamedNamespace, mac: str) -> None:
        self.tap = guest.inside(self._open)
        guest.ip(f"link set {INTERFACE} address {mac}", "link set lo up")
        self.stream: socket.socket | None = None
        self.paused = False
        self._woken, self._wake = socket.socketpair()
        self._stop = False
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    @staticmethod
    def _open() -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), IFF_TAP | IFF_NO_PI))
        return fd

    def connect(self, target: "str | socket.socket") -> None:
        """Plug in: to a path, or with a socket that is connected already."""
        if isinstance(target, str):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(target)
        else:
            sock = target
        self._change(sock)

    def disconnect(self) -> None:
        """Pull the plug."""
        self._change(None)

    def _change(self, sock: socket.socket | None) -> None:
        old, self.stream = self.stream, sock
        self._wake.send(b"x")
        if old is not None:
            with contextlib.suppress(OSError):
                old.shutdown(socket.SHUT_RDWR)
            old.close()

    def _carry(self) -> None:
        buffer = b""
        current: socket.socket | None = None
        while not self._stop:
            stream = self.stream
            if stream is not current:
                buffer, current = b"", stream
            watched: list[Any] = [self.tap, self._woken] if not self.paused else [self._woken]
            try:
                ready, _, _ = select.select(watched + ([stream] if stream and not self.paused else []), [], [])
                if self._woken in ready:
                    self._woken.recv(100)
                    continue
                if stream in ready and stream is not None:
                    data = stream.recv(1 << 18)
                    if not data:
                        self._lost(stream)
                    buffer = self._to_guest(buffer + data)
                if self.tap in ready:
                    self._from_guest(stream)
            except (OSError, ValueError):  # reset, or closed by the other thread
                self._lost(stream)

    def _lost(self, stream: socket.socket | None) -> None:
        """The other end is gone."""
        if stream is not None and self.stream is stream:
            self.stream = None
            stream.close()

    def _to_guest(self, buffer: bytes) -> bytes:
        at = 0
        while len(buffer) - at >= 4:
            length = int.from_bytes(buffer[at : at + 4], "big")
            if len(buffer) - at - 4 < length:
                break
            with contextlib.suppress(OSError):  # it is down
                os.write(self.tap, buffer[at + 4 : at + 4 + length])
            at += 4 + length
        return buffer[at:]

    def _from_guest(self, stream: socket.socket | None) -> None:
        frames = []
        for _ in range(32):
            try:
                frame = os.read(self.tap, 70000)
            except BlockingIOError:
                break
            frames.append(len(frame).to_bytes(4, "big") + frame)
        if stream is not None:
            stream.sendall(b"".join(frames))

    def pause(self, paused: bool) -> None:
        """Take nothing from either side, as a virtual machine that is stopped."""
        self.paused = paused
        self._wake.send(b"x")

    def close(self) -> None:
        """Let go of the tap and the socket."""
        self._stop = True
        self.disconnect()
        self._thread.join(10)
        os.close(self.tap)
        self._woken.close()
        self._wake.close()


class Machine(NamedNamespace):
    """The guest: a namespace whose only interface is the tap."""

    def __init__(self, topology: Topology, mac: str = "02:00:00:00:00:11") -> None:
        super().__init__(topology.host.name.replace("-host", f"-machine{next(_numbers)}"))
        self.mac = mac

    def __enter__(self) -> Self:
        super().__enter__()
        self.sysctl(
            net__ipv6__conf__default__accept_dad=0,
            net__ipv6__conf__all__accept_dad=0,
            net__ipv4__ping_group_range="0 2147483647",
            net__ipv4__tcp_congestion_control="cubic",
        )
        self.cable = Cable(self, self.mac)
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        self.cable.close()
        super().__exit__(*exception)

    def configure(self, mtu: int = 65520) -> None:
        """Give it the host's addresses by hand, as passt would by DHCP; what it would have by SLAAC may come first."""
        self.sysctl(**{f"net__ipv6__conf__{INTERFACE}__accept_ra": 0})
        self.ip(
            f"link set {INTERFACE} mtu {mtu} up",
            f"address add {HOST4}/24 dev {INTERFACE}",
            f"address add {HOST6}/64 dev {INTERFACE} nodad",
            f"route add default via {GATEWAY4}",
            f"route add default via {GATEWAY6} dev {INTERFACE} metric 512",  # a router's advertisement may come before
        )


def frames(*content: bytes) -> bytes:
    """Frames as they are on the socket."""
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in content)


def receive_frame(sock: socket.socket) -> bytes:
    """The next frame on the socket."""

    def exactly(size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            part = sock.recv(size)
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    return exactly(int.from_bytes(exactly(4), "big"))


def client(path: str) -> socket.socket:
    """Connect as QEMU would."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


def is_served(sock: socket.socket) -> bool:
    """Whether an ARP request is answered."""
    with contextlib.suppress(BrokenPipeError):  # if refused, it may be closed by now; what it was told is still read
        sock.sendall(frames(ASK))
    while True:
        try:
            frame = Ether(receive_frame(sock))
        except (EOFError, ConnectionError):
            return False
        if ARP in frame and frame[ARP].op == 2 and frame[ARP].psrc == GATEWAY4:
            return True
