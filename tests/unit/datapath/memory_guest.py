"""The guest's end of a packet path in a process of its own (`memory_subject.py`): frames to it and from it."""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bucatini.wire import ipv4, ipv6
from bucatini.wire.ethernet import ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet
from unit.datapath.guest_link import GUEST, GUEST_MAC, HOST, OUR_MAC

GUEST6, HOST6 = (bytes.fromhex("20010db8") + bytes(11) + bytes([last]) for last in (0x15, 0x01))
SUBJECT = Path(__file__).with_name("memory_subject.py")
NO_OFFLOAD = struct.pack("=BBHHHH", 0, 0, 0, 0, 0, 0)  # struct virtio_net_hdr
SUPERFRAME = {(6, 4): 1, (6, 6): 4, (17, 4): 5, (17, 6): 5}  # its gso_type, by protocol and version
NEEDS_CSUM = 1


class Subject:
    """The process and its link; `settings` as `memory_subject.main` has them."""

    def __init__(self, *, stream: bool = False, descriptors: tuple[int, ...] = (), **settings: object) -> None:
        self.stream = stream
        self.end, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM if stream else socket.SOCK_SEQPACKET)
        self.control, control = socket.socketpair()
        self.control.settimeout(60)
        for which in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # Python's own asks whether a quarter of it is free
            self.end.setsockopt(socket.SOL_SOCKET, which, struct.pack("ll", 60, 0))
        link.setblocking(False)
        settings |= {"stream": stream, "link": link.fileno(), "control": control.fileno()}
        self.process = subprocess.Popen(
            [sys.executable, str(SUBJECT), json.dumps(settings)],
            pass_fds=[link.fileno(), control.fileno(), *descriptors],
            # mallinfo2 counts as given out what only lies in a thread's cache
            env={**os.environ, "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"},
        )
        link.close()
        control.close()
        self.lines = self.control.makefile("rb")
        self.came = b""  # of a stream

    def close(self) -> None:
        self.lines.close()
        self.control.close()
        assert self.process.wait(10) == 0
        self.end.close()

    def measure(self) -> dict[str, int]:
        """What it uses now, everything sent before being through."""
        self.control.send(b"?")
        told: dict[str, int] = json.loads(self.lines.readline())
        return told

    def measure_when(self, frames: int) -> dict[str, int]:
        """What it uses when it has taken so many frames."""
        deadline = time.monotonic() + 60
        came = 0
        while came < frames:
            assert time.monotonic() < deadline
            self.control.send(b"#")
            came = int(self.lines.readline())
        return self.measure()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """What is sent meanwhile waits, and comes at once."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    # Frames

    def frame(self, protocol: int, payload: bytes, *, version: int = 4, segment: int = 0, **fields: int) -> bytes:
        """One of the guest's, as it goes over the link; `segment`: it is a superframe of so many bytes each."""
        if version == 4:
            packet = ipv4.IPv4(GUEST, HOST, protocol, payload, **fields).emit()  # type: ignore[arg-type]
        else:
            packet = ipv6.IPv6(GUEST6, HOST6, protocol, payload, **fields).emit()
        frame = Ethernet(OUR_MAC, GUEST_MAC, ETHERTYPE_IPV4 if version == 4 else ETHERTYPE_IPV6, packet).emit()
        if self.stream:
            return len(frame).to_bytes(4, "big") + frame
        if segment:
            kind = SUPERFRAME[protocol, version]
            return struct.pack("=BBHHHH", NEEDS_CSUM, kind, 0, segment, 0, 0) + frame
        return NO_OFFLOAD + frame

    def send(self, protocol: int, payload: bytes, *, version: int = 4, segment: int = 0) -> None:
        self.end.sendall(self.frame(protocol, payload, version=version, segment=segment))

    def receive(self, version: int, protocol: int) -> bytes:
        """What is in the next packet of a protocol; others are skipped."""
        offset, header = (14, 20) if version == 4 else (14, 40)
        ethertype = b"\x08\0" if version == 4 else b"\x86\xdd"
        while True:
            frame = self.receive_frame()
            if frame[12:14] == ethertype and frame[offset + (9 if version == 4 else 6)] == protocol:
                size = int.from_bytes(frame[16:18] if version == 4 else frame[18:20], "big")
                return frame[offset + header : offset + size if version == 4 else offset + header + size]

    def receive_frame(self) -> bytes:
        if not self.stream:
            return self.end.recv(70000)[len(NO_OFFLOAD) :]
        while not self.has_frame():
            self.came += self.end.recv(1 << 18)
        size = 4 + int.from_bytes(self.came[:4], "big")
        frame, self.came = self.came[4:size], self.came[size:]
        return frame

    def has_frame(self) -> bool:
        """Whether one has come already out of the stream."""
        return len(self.came) >= 4 + int.from_bytes(self.came[:4], "big") > 4

    def drain(self) -> None:
        """Throw away what comes, until nothing does."""
        while self.has_frame() or select.select([self.end], [], [], 0.1)[0]:
            self.receive_frame()
