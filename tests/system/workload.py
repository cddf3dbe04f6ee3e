"""A little of everything that the programs do, for tests of what they call while they do it."""

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from scapy.all import (
    ARP,
    BOOTP,
    DHCP,
    DUID_LL,
    IP,
    UDP,
    DHCP6_Solicit,
    DHCP6OptClientId,
    Ether,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)  # fmt: skip
from scapy.utils6 import in6_mactoifaceid

from system.namespaces import Namespace, echo, receive, wait_until
from system.servers import source
from system.topology import GATEWAY4, GATEWAY6, HOST, SERVER, Topology

DATAGRAM = socket.SOCK_DGRAM
FORWARD = "169.254.1.1"  # of --dns-forward
UDP_SEGMENT = 103  # linux/udp.h
ETH_P_ALL = 3  # linux/if_ether.h


def use(topology: Topology, guest: Namespace, interface: str) -> None:
    """Everything that a guest may begin: TCP, UDP, ping, names, and what is refused."""
    for version in (4, 6):
        server = topology.server.serve_tcp(SERVER[version], source(bytes(1 << 20)))
        with guest.connect(SERVER[version], server.port) as sock:
            sock.sendall(bytes(1 << 20))
            sock.shutdown(socket.SHUT_WR)
            assert len(receive(sock)) == 1 << 20
        with guest.connect(SERVER[version], topology.server.serve_tcp(SERVER[version], echo).port) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        guest.run("ping", f"-{version}", "-c1", "-W5", SERVER[version])
        exchange_superframes(topology, guest, version)
        with guest.connect(SERVER[version], 9, kind=DATAGRAM) as refused:
            refused.send(b"x")
            with contextlib.suppress(ConnectionRefusedError):
                assert not refused.recv(1)
        with contextlib.suppress(ConnectionRefusedError):
            guest.connect(SERVER[version], 9)
    with guest.connect(FORWARD, 53, kind=DATAGRAM) as sock:
        sock.send(b"query")
        assert sock.recv(10) == b"query"
    use_services(guest, interface)


def exchange_superframes(topology: Topology, guest: Namespace, version: int) -> None:
    """Runs of datagrams in both directions."""

    def burst(_: bytes, peer: object) -> None:
        server.listener.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        server.listener.sendto(bytes(20_000), peer)  # type: ignore[arg-type]

    server = topology.server.serve_udp(SERVER[version], burst)
    with guest.connect(SERVER[version], server.port, kind=DATAGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        sock.send(bytes(2000))
        assert sum(len(sock.recv(2000)) for _ in range(20)) == 20_000


def use_services(guest: Namespace, interface: str) -> None:
    """What is answered besides the network: ARP, neighbour discovery, DHCP, DHCPv6."""
    with guest.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))) as sock:
        sock.bind((interface, 0))
        sock.settimeout(5)
        for question, is_answer in questions(sock.getsockname()[4]):
            sock.send(bytes(question))
            ask_until(sock, is_answer)


def questions(hardware: bytes) -> list[tuple[Ether, Callable[[Ether], bool]]]:
    """Frames to the services from who has this MAC address, and how their answers are known."""
    mac = hardware.hex(":")
    ours = f"fe80::{in6_mactoifaceid(mac)}"
    broadcast = Ether(src=mac, dst="ff:ff:ff:ff:ff:ff")
    return [
        (broadcast / ARP(hwsrc=mac, psrc=HOST[4], pdst=GATEWAY4), lambda a: ARP in a and a[ARP].op == 2),
        (
            broadcast
            / IP(src="0.0.0.0", dst="255.255.255.255")
            / UDP(sport=68, dport=67)
            / BOOTP(chaddr=hardware, xid=77, flags=0x8000)
            / DHCP(options=[("message-type", "discover"), "end"]),
            lambda a: BOOTP in a and a[BOOTP].op == 2,
        ),
        (
            Ether(src=mac, dst="33:33:00:00:00:02") / IPv6(src=ours, dst="ff02::2", hlim=255) / ICMPv6ND_RS(),
            lambda a: ICMPv6ND_RA in a,
        ),
        (
            Ether(src=mac, dst="33:33:ff:00:00:01")
            / IPv6(src=ours, dst="ff02::1:ff00:1", hlim=255)
            / ICMPv6ND_NS(tgt=GATEWAY6)
            / ICMPv6NDOptSrcLLAddr(lladdr=mac),
            lambda a: ICMPv6ND_NA in a,
        ),
        (
            Ether(src=mac, dst="33:33:00:01:00:02")
            / IPv6(src=ours, dst="ff02::1:2")
            / UDP(sport=546, dport=547)
            / DHCP6_Solicit(trid=77)
            / DHCP6OptClientId(duid=DUID_LL(lladdr=mac)),
            lambda a: UDP in a and a[UDP].dport == 546,
        ),
    ]


def ask_until(sock: socket.socket, is_answer: Callable[[Ether], bool]) -> None:
    """Take frames until one is the answer."""
    while True:
        data, (_, _, kind, *_) = sock.recvfrom(1 << 16)
        if kind != socket.PACKET_OUTGOING and is_answer(Ether(data)):
            return


def answers(where: Namespace, address: str, port: int, *, kind: int = socket.SOCK_STREAM) -> bool:
    """Whether a server that echoes is behind this port."""
    try:
        with where.connect(address, port, kind=kind, timeout=2) as sock:
            sock.send(b"x")
            return sock.recv(1) == b"x"
    except OSError:
        return False


def transfer(host: Namespace, guest: Namespace, port: int) -> None:
    """So much past the tap at once that it rests; a port that forwards itself may not be there yet."""
    size, times = 1 << 20, 20

    def send(sock: socket.socket) -> None:
        for _ in range(times):
            sock.sendall(bytes(size))
            assert sock.recv(1) == b"x"

    def received() -> bool:
        with contextlib.suppress(ConnectionError), host.connect("127.0.0.1", port) as sock:
            for _ in range(times):
                assert len(receive(sock, size)) == size
                sock.sendall(b"x")
            return True
        return False

    guest.serve_tcp("0.0.0.0", send, port)
    wait_until(received, "the transfer")


def run_out_of_descriptors(pid: int, where: Namespace, address: str, port: int, refused: Callable[[], bool]) -> None:
    """Connect to a forward while its owner has no descriptor left, until `refused`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    uid, gid = (next(line.split()[1] for line in lines if line.startswith(f"{name}:")) for name in ("Uid", "Gid"))
    # As who it is: root may need a capability for it
    be = ("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups")

    def knock() -> bool:
        used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        first = min(set(range(len(used) + 1)) - used)  # connections end meanwhile, so it is another one each time
        where.run(*be, "prlimit", f"--pid={pid}", f"--nofile={first}:")
        answers(where, address, port)
        return refused()

    wait_until(knock, "the refusal")
