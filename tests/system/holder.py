"""A guest that opens many connections: `holder.py COUNT ADDRESS PORT [PORT ...]`, run inside its namespace as root.

It needs no descriptor for them: it writes SYNs of its own making to the tap, in the name of addresses that the guest's
kernel does not know, and confirms what is answered. As JSON it tells how many of COUNT were established and how many
refused; when its standard input ends, it resets those that it has.
"""

import ctypes
import json
import select
import socket
import struct
import sys
import time

from attacker import INTERFACE, segment

ADDRESSES = [bytes([192, 0, 2, last]) for last in range(70, 72)]
FIRST, PORTS = 1024, 60_000  # of each address
STEP = 200  # SYNs before their answers are looked at
PATIENCE = 1.0  # seconds of silence until what was not answered is sent again
ATTEMPTS = 10
SYN, RST, ACK = 2, 4, 16
SO_ATTACH_FILTER = 26  # asm-generic/socket.h


def opened() -> socket.socket:
    """A socket that sees frames to those addresses alone: others are under way."""
    program = [
        (0x28, 0, 0, 12),  # the type of the frame
        (0x15, 0, 4, 0x0800),
        (0x20, 0, 0, 30),  # the destination
        (0x54, 0, 0, 0xFFFFFFFE),
        (0x15, 0, 1, int.from_bytes(ADDRESSES[0], "big")),
        (0x06, 0, 0, 0x40000),
        (0x06, 0, 0, 0),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code)))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind((INTERFACE, 0x0800))
    return sock


class Holder:
    """The connections, each an address, a port of it and one of the server."""

    def __init__(self, count: int, server: bytes, ports: list[int]) -> None:
        self.server = server
        self.sock = opened()
        source = [(address, port) for address in ADDRESSES for port in range(FIRST, FIRST + PORTS)]
        self.waiting = {key: ports[number % len(ports)] for number, key in enumerate(source[:count])}
        self.open: dict[tuple[bytes, int], tuple[int, int]] = {}  # port of the server, the number that comes next
        self.asked: set[tuple[bytes, int]] = set()  # those whose answer `check` waits for
        self.ending = False
        self.refused = 0

    def send(self, frame: bytes) -> None:
        while True:
            try:
                self.sock.send(frame)
            except OSError:  # the queue of the tap is full
                time.sleep(0.001)
            else:
                return

    def listen(self, seconds: float) -> bool:
        """Take what has been answered; False: nothing was, for so long."""
        if not select.select([self.sock], [], [], seconds)[0]:
            return False
        while select.select([self.sock], [], [], 0)[0]:
            frame = self.sock.recv(2048)
            address, (theirs, port, seq, _, _, flags) = frame[30:34], struct.unpack("!HHIIBB", frame[34:48])
            key = address, port
            if flags & RST:
                self.asked.discard(key)
                self.refused += 1 if self.waiting.pop(key, None) or self.open.pop(key, None) else 0
            elif flags & SYN and (key in self.waiting or key in self.open):  # again, if our answer was lost
                self.waiting.pop(key, None)
                self.open[key] = theirs, (seq + 1) & 0xFFFFFFFF
                self.say(key, ACK, 1)
            elif flags & ACK and not self.ending:  # else the reset was lost
                self.asked.discard(key)
        return True

    def say(self, key: tuple[bytes, int], flags: int, seq: int) -> None:
        """Send a segment of an established connection."""
        theirs, ack = self.open[key]
        self.send(segment(key[1], self.server, theirs, flags, seq, ack, src=key[0]))

    def fill(self) -> None:
        """Open all of them."""
        for _ in range(ATTEMPTS):
            asked = list(self.waiting.items())
            for first in range(0, len(asked), STEP):
                for (address, port), theirs in asked[first : first + STEP]:
                    self.send(segment(port, self.server, theirs, SYN, 0, src=address))
                self.listen(0)
            while self.waiting and self.listen(PATIENCE):
                pass
            if not self.waiting:
                return

    def check(self, *, end: bool = False) -> None:
        """Ask after each one, as a keep-alive does: what gave way is reset. `end`: reset all first."""
        self.asked, self.ending = set(self.open), end
        for _ in range(ATTEMPTS):
            keys = [key for key in self.asked if key in self.open]
            for first in range(0, len(keys), STEP):
                for key in keys[first : first + STEP]:
                    if key in self.open:
                        if end:
                            self.say(key, RST, 1)
                        self.say(key, ACK, 0)
                self.listen(0)
            while self.asked and self.listen(PATIENCE):
                pass


def main() -> None:
    count, address, *ports = sys.argv[1:]
    holder = Holder(int(count), socket.inet_aton(address), [int(port) for port in ports])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    begin = time.monotonic()
    holder.fill()
    holder.check()
    took = time.monotonic() - begin
    told = {"open": len(holder.open), "refused": holder.refused, "silent": len(holder.waiting), "seconds": took}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    holder.check(end=True)
    sys.stdout.write(f"{len(holder.open)}\n")


if __name__ == "__main__":
    main()
