"""Known cases of UDP, pings, DNS and frames of the guest: numbers as in docs/cases.txt."""

import contextlib
import errno
import os
import random
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from scapy.all import ARP, IP, TCP, UDP, Dot1Q, Ether, IPv6

from system.namespaces import NamedNamespace, Namespace, alive, echo, wait_until
from system.programs import need
from system.quiet import nearly_idle
from system.topology import ANY, FAR, GATEWAY, HOST, HOST4, SERVER, SERVER4, Guest, Pasta
from system.users import only_unprivileged

pytestmark = only_unprivileged
both_versions = pytest.mark.parametrize("version", [4, 6])
DATAGRAM = socket.SOCK_DGRAM
IP_RECVERR, IP_RECVTTL, IPV6_RECVERR = 11, 12, 25  # linux/in.h, linux/in6.h
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
SOL_PACKET, PACKET_VNET_HDR = 263, 15  # linux/socket.h, linux/if_packet.h
FORBIDDEN = {4: "198.51.100.9", 6: "2001:db8:100::9"}
OWN = {4: "192.0.2.50", 6: "2001:db8::50"}  # for -a
OTHER = {4: "192.0.2.60", 6: "2001:db8::60"}  # somebody else's beside the guest
FORWARD = {4: "169.254.1.1", 6: "fd00::53"}
OUR_MAC = "9a:55:9a:55:9a:55"
OTHER_MAC = "02:00:00:00:00:60"


def reply(data: bytes, _: Any) -> bytes:
    """Echo."""
    return data


FITTING = 64  # datagrams of 1400 bytes, in the receive buffer that the kernel gives by default


def paced(count: int, interval: float) -> Iterator[int]:
    """Count up, one each `interval` seconds; what is late is not made up for by more than four."""
    due = time.monotonic()
    for number in range(count):
        if (wait := due - time.monotonic()) > 0:
            time.sleep(wait)
        due = max(due, time.monotonic() - 4 * interval) + interval
        yield number


def roomy(made: socket.socket) -> socket.socket:
    """So large a receive buffer that what is lost was lost before."""
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    return made


def find_neighbour(pasta: Pasta, version: int) -> None:
    """Let host and server find each other's MAC address: until they have, a kernel keeps only a few datagrams."""
    server = pasta.topology.server
    with server.connect(HOST[version], 9, kind=DATAGRAM, source=SERVER[version]) as connection:
        connection.send(b"")
        with pytest.raises(ConnectionRefusedError):
            connection.recv(1)


def packet_socket(guest: Guest, *, vnet: bool = False) -> socket.socket:
    """A socket that sends frames as they are; with `vnet` behind a virtio-net header."""
    made = guest.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    if vnet:
        made.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    made.bind(("host0", 0))
    return made


def mac_of(guest: Guest) -> str:
    """The MAC address of the guest's interface."""
    shown = guest.run("ip", "-o", "link", "show", "dev", "host0").stdout
    return shown.split("link/ether ")[1].split()[0]


# U3


@both_versions
def test_U3_a_datagram_whose_time_is_up_is_reported_by_the_router(
    pasta: Pasta, far: NamedNamespace, version: int
) -> None:
    connection = pasta.guest("--config-net").connect(FAR[version], 33434, kind=DATAGRAM)
    level = socket.IPPROTO_IP if version == 4 else socket.IPPROTO_IPV6
    hops = socket.IP_TTL if version == 4 else socket.IPV6_UNICAST_HOPS
    connection.setsockopt(level, IP_RECVERR if version == 4 else IPV6_RECVERR, 1)
    for ttl, number, kind_code, reporter in (
        (1, errno.EHOSTUNREACH, {4: (11, 0), 6: (3, 0)}, GATEWAY),
        (2, errno.ECONNREFUSED, {4: (3, 3), 6: (1, 4)}, FAR),
        (1, errno.EHOSTUNREACH, {4: (11, 0), 6: (3, 0)}, GATEWAY),
    ):
        connection.setsockopt(level, hops, ttl)
        connection.send(b"probe")
        with pytest.raises(OSError) as caught:
            connection.recv(100)
        assert caught.value.errno == number
        data, ancillary, _, _ = connection.recvmsg(100, 512, socket.MSG_ERRQUEUE)
        # struct sock_extended_err and then the address of its sender: ip(7)
        error = next(content for _, _, content in ancillary if len(content) >= 32)
        assert data == b"probe"
        assert struct.unpack_from("=BB", error, 5) == kind_code[version]
        address = error[20:24] if version == 4 else error[24:40]
        assert socket.inet_ntop(connection.family, address) == reporter[version]


@both_versions
def test_U3_traceroute_names_every_hop(pasta: Pasta, far: NamedNamespace, version: int) -> None:
    need("traceroute", "traceroute")
    command = ["traceroute", f"-{version}", "-U", "-n", "-q1", "-w3", "-m4", FAR[version]]
    output = pasta.run("--config-net", command=command).stdout
    found = [match.groups() for match in re.finditer(r"^ *(\d+) +(\S+)", output, re.MULTILINE)]
    assert found == [("1", GATEWAY[version]), ("2", FAR[version])], output


# U5


@both_versions
def test_U5_bursts_of_two_instances_from_one_port_do_not_cross(pasta: Pasta, version: int) -> None:
    find_neighbour(pasta, version)
    server = pasta.topology.server.serve_udp(SERVER[version], reply)
    sockets = []
    for _ in range(2):
        guest = pasta.guest("--config-net")
        # A kernel that has just found a neighbour sends what waited for it beside what comes, in either order.
        with guest.connect(SERVER[version], server.port, kind=DATAGRAM) as connection:
            connection.send(b"neighbour")
            assert connection.recv(100) == b"neighbour"
        sockets.append(guest.open_socket(SERVER[version], DATAGRAM))
        sockets[-1].bind(("", 5000))
    for number in range(24):
        for which, one in enumerate(sockets):
            one.sendto(b"%d %d" % (which, number), (SERVER[version], server.port))
    for which, one in enumerate(sockets):
        assert [one.recv(100) for _ in range(24)] == [b"%d %d" % (which, number) for number in range(24)]
    assert len(set(server.peers[2:])) == 2


# U9


@contextlib.contextmanager
def apart(guest: Guest) -> Iterator[None]:
    """Pasta and the caller run on processors of their own, if there are two: at the same time."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(guest.pid, {max(before)})
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        os.sched_setaffinity(guest.pid, before)


def bursts_of_new_clients(pasta: Pasta, version: int, clients: int, *, in_order: bool) -> None:
    """Forty times, clients that were never heard of send fifty datagrams each to a forward, all at once."""
    server = pasta.topology.server
    guest = pasta.guest("--config-net", "-u", "8080")
    receiver = roomy(guest.bind(ANY[version], 8080))
    receiver.settimeout(2)
    find_neighbour(pasta, version)
    for turn in range(40):
        sockets = [server.connect(HOST[version], 8080, kind=DATAGRAM, source=SERVER[version]) for _ in range(clients)]
        # Some are waiting when the first one opens its flow, others come at that very moment
        with apart(guest):
            if turn % 2:
                os.kill(guest.pid, signal.SIGSTOP)
            for number in range(50):
                if number == turn // 2:
                    os.kill(guest.pid, signal.SIGCONT)
                for which, one in enumerate(sockets):
                    one.send(b"%d %d" % (which, number))
        came: dict[tuple[str, int], list[bytes]] = {}
        with contextlib.suppress(TimeoutError):
            for _ in range(50 * clients):
                data, peer = receiver.recvfrom(100)
                came.setdefault(peer[:2], []).append(data)
        for which, one in enumerate(sockets):
            peer = one.getsockname()[:2]
            sent = [b"%d %d" % (which, number) for number in range(50)]
            assert sorted(came[peer]) == sorted(sent)
            assert came[peer] == sent or not in_order
            receiver.sendto(b"for %d" % which, peer)
            assert one.recv(100) == b"for %d" % which
            one.close()


@both_versions
def test_U9_bursts_of_several_new_clients_of_a_forward_arrive_whole(pasta: Pasta, version: int) -> None:
    bursts_of_new_clients(pasta, version, 4, in_order=False)


@both_versions
def test_U9_a_burst_of_a_new_client_of_a_forward_arrives_in_order(pasta: Pasta, version: int) -> None:
    bursts_of_new_clients(pasta, version, 1, in_order=True)


@both_versions
def test_U9_bursts_of_several_new_clients_of_a_forward_arrive_in_order(pasta: Pasta, version: int) -> None:
    bursts_of_new_clients(pasta, version, 4, in_order=True)


@both_versions
def test_U9_a_flow_of_the_guest_gets_nothing_that_others_send_to_its_port(pasta: Pasta, version: int) -> None:
    guest, server = pasta.guest("--config-net"), pasta.topology.server
    find_neighbour(pasta, version)
    with guest.connect(SERVER[version], 9, kind=DATAGRAM) as first:
        # The guest's kernel, too, has to find its neighbour first
        first.send(b"")
        with pytest.raises(ConnectionRefusedError):
            first.recv(1)
    sender = roomy(guest.open_socket(SERVER[version], DATAGRAM))
    sender.bind(("", 23456))
    stop = threading.Event()
    stray = server.bind(SERVER[version])

    def disturb() -> None:
        while not stop.wait(0.001):
            for _ in range(20):
                stray.sendto(b"stray", (HOST[version], 23456))

    with apart(guest), ThreadPoolExecutor() as pool:
        disturbing = pool.submit(disturb)
        try:
            for which in range(10):
                # A new flow each, from the same port
                listener = roomy(server.bind(SERVER[version]))
                there = listener.getsockname()[:2]
                burst = [b"%d %d" % (which, number) for number in range(50)]
                for data in burst:
                    sender.sendto(data, there)
                assert [listener.recv(100) for _ in burst] == burst
                for data in burst:
                    listener.sendto(data, (HOST[version], 23456))
                answers = [sender.recvfrom(100) for _ in burst]
                assert [data for data, _ in answers] == burst
                assert {peer[:2] for _, peer in answers} == {there}
        finally:
            stop.set()
        disturbing.result(5)


# U10


def forbid_route(host: NamedNamespace, version: int) -> None:
    """connect() of a socket fails: EACCES."""
    host.run("ip", f"-{version}", "rule", "add", "to", FORBIDDEN[version], "prohibit")


def forbid_sending(host: NamedNamespace, version: int) -> None:
    """Sending fails: EPERM."""
    need("nft", "nftables")
    rule = f"ip{'' if version == 4 else '6'} daddr {FORBIDDEN[version]} drop"
    host.run(
        "nft", "-f", "-",
        input=f"table inet forbid {{ chain out {{ type filter hook output priority 0; {rule}; }}; }}\n",
    )  # fmt: skip


@both_versions
@pytest.mark.parametrize("forbid", [forbid_route, forbid_sending], ids=["connect", "send"])
def test_U10_what_the_host_forbids_stops_that_flow_alone_and_costs_no_cpu(
    pasta: Pasta, version: int, forbid: Callable[[NamedNamespace, int], None]
) -> None:
    forbid(pasta.topology.host, version)
    server = pasta.topology.server.serve_udp(SERVER[version], reply)
    guest = pasta.guest("--config-net")
    denied = guest.connect(FORBIDDEN[version], 9, kind=DATAGRAM)
    denied.setblocking(False)
    other = guest.connect(SERVER[version], server.port, kind=DATAGRAM)
    found = set()
    with nearly_idle(guest.pid):
        for number in paced(60, 0.05):
            for attempt in (lambda: denied.send(b"anybody?"), lambda: denied.recv(100)):
                try:
                    attempt()
                except BlockingIOError:
                    pass
                except OSError as error:
                    found.add(error.errno)
            other.send(b"%d" % number)
            assert other.recv(100) == b"%d" % number
    # RFC 1812 §5.2.7.1 and RFC 4443 §3.1: administratively prohibited, as Linux reports it
    assert found == {errno.EHOSTUNREACH if version == 4 else errno.EACCES}
    assert alive(guest.pid)


# U11


def query(name: str, number: int) -> bytes:
    """A DNS query for the address of `name`: RFC 1035 §4.1."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"


def resolve(data: bytes, _: Any) -> bytes:
    """The answer to a query, with one address."""
    head = data[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0)
    return head + data[12:] + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xcb\0\x71\x4d"


def check_answer(answer: bytes, asked: bytes) -> None:
    assert answer[:2] == asked[:2]
    assert answer[12 : len(asked)] == asked[12:]
    assert answer.endswith(socket.inet_aton("203.0.113.77"))


def test_U11_one_shot_queries_are_all_answered_and_their_sockets_go_before_those_of_streams(pasta: Pasta) -> None:
    """Flows to port 53 that were answered end after 10 s, others after 30 s; streams live on (180 s: not tested)."""
    for version in (4, 6):
        pasta.topology.server.serve_udp(SERVER[version], resolve, port=53)
    guest = pasta.guest("--config-net")
    guest.settle()
    server = pasta.topology.server.serve_udp(SERVER4, reply)
    begin = time.monotonic()
    for exchanges in (1, 10):
        other = guest.connect(SERVER4, server.port, kind=DATAGRAM)
        for _ in range(exchanges):
            other.send(b"x")
            assert other.recv(10) == b"x"
    both = guest.descriptors()  # with the two sockets

    def ask() -> int:
        most = 0
        for number in range(2000):
            version = (4, 6)[number % 2]
            asked = query("name.test", number)
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            with socket.socket(family, DATAGRAM) as one:
                one.settimeout(5)
                one.bind(("", 10000 + number))
                one.connect((SERVER[version], 53))
                one.send(asked)
                check_answer(one.recv(512), asked)
            if number % 200 == 199:
                most = max(most, guest.descriptors())
        return most

    assert guest.inside(ask) <= both + 2000
    wait_until(lambda: guest.descriptors() == both, "end of the queries' sockets", 14)
    wait_until(lambda: guest.descriptors() == both - 1, "end of the socket of the other answer", 30)
    assert 29 <= time.monotonic() - begin < 40
    time.sleep(1)  # what shall not happen has to be given time
    assert guest.descriptors() == both - 1


# U12


@both_versions
def test_U12_a_port_that_refuses_for_ever_costs_no_cpu(pasta: Pasta, version: int) -> None:
    # All refusals are told, not one a second
    pasta.topology.server.sysctl(net__ipv4__icmp_ratelimit=0, net__ipv6__icmp__ratelimit=0)
    guest = pasta.guest("--config-net")
    connection = guest.connect(SERVER[version], 9, kind=DATAGRAM, timeout=1)
    with nearly_idle(guest.pid):
        for _ in paced(60, 0.05):
            connection.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                connection.recv(100)


# U13

# A forward of both versions has one socket, of IPv6, to which the kernel gives no IPv4 multicast
ALL = {4: "0.0.0.0", 6: "[::]"}
SSDP, MDNS4, MDNS6 = "239.255.255.250", "224.0.0.251", "ff02::fb"
GROUPS = pytest.mark.parametrize(("group", "port"), [(SSDP, 1900), (MDNS4, 5353), (MDNS6, 5353)])


def member(namespace: Namespace, interface: str, group: str, port: int) -> socket.socket:
    """A socket bound to the port that has joined the group on an interface."""
    made = namespace.open_socket(group, DATAGRAM)
    index = namespace.inside(lambda: socket.if_nametoindex(interface))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ":" in group:
        raw = socket.inet_pton(socket.AF_INET6, group)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, raw + struct.pack("=I", index))
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
    else:
        request = socket.inet_aton(group) + bytes(4) + struct.pack("=i", index)  # struct ip_mreqn
        made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
    made.bind(("", port))
    return made


@GROUPS
def test_U13_multicast_of_the_guest_leaves_the_host(pasta: Pasta, group: str, port: int) -> None:
    listener = member(pasta.topology.server, "server0", group, port)
    sender = member(pasta.guest("--config-net"), "host0", group, port)
    sender.sendto(b"search", (group, port))
    listener.settimeout(3)
    assert listener.recv(100) == b"search"


@GROUPS
def test_U13_multicast_of_the_guest_goes_as_far_as_the_guest_says(pasta: Pasta, group: str, port: int) -> None:
    listener = member(pasta.topology.server, "server0", group, port)
    sender = member(pasta.guest("--config-net"), "host0", group, port)
    if ":" in group:
        level, option, received = socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, socket.IPV6_RECVHOPLIMIT
    else:
        level, option, received = socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, IP_RECVTTL
    listener.setsockopt(level, received, 1)
    listener.settimeout(3)
    for hops in (1, 255, 4):
        sender.setsockopt(level, option, hops)
        sender.sendto(b"search", (group, port))
        _, control, _, _ = listener.recvmsg(100, 100)
        assert control[0][2][0] == hops


@GROUPS
def test_U13_multicast_of_the_guest_does_not_come_back_to_it(pasta: Pasta, group: str, port: int) -> None:
    version = 6 if ":" in group else 4
    server = pasta.topology.server.serve_udp(SERVER[version], reply)
    # A member on the host makes its kernel deliver to all sockets of the port, the forward's among them
    _member = member(pasta.topology.host, "host0", group, 0)
    guest = pasta.guest("--config-net", "-u", f"{ALL[version]}/{port}")
    sender = member(guest, "host0", group, port)
    for number in range(5):
        sender.sendto(b"search", (group, port))
        sender.sendto(b"%d" % number, (SERVER[version], server.port))
        assert sender.recv(100) == b"%d" % number
    sender.settimeout(0.5)
    with pytest.raises(TimeoutError):
        sender.recv(100)


@contextlib.contextmanager
def group_at_a_forward(pasta: Pasta, group: str, port: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The guest's socket behind a forward of a host that is in the group, and the server's, which sends."""
    version = 6 if ":" in group else 4
    with member(pasta.topology.host, "host0", group, 0):
        guest = pasta.guest("--config-net", "-u", f"{ALL[version]}/{port}")
        receiver = guest.bind(ANY[version], port)
        find_neighbour(pasta, version)
        yield receiver, member(pasta.topology.server, "server0", group, port)


@GROUPS
def test_U13_multicast_of_the_network_does_not_become_unicast(pasta: Pasta, group: str, port: int) -> None:
    version = 6 if ":" in group else 4
    with group_at_a_forward(pasta, group, port) as (receiver, sender):
        sender.sendto(b"search", (group, port))
        # What is sent later, to the host alone, is the first to arrive
        client = pasta.topology.server.connect(HOST[version], port, kind=DATAGRAM, source=SERVER[version])
        client.send(b"unicast")
        assert receiver.recv(100) == b"unicast"


@GROUPS
def test_U13_multicast_of_one_who_was_let_through_before_does_not_become_unicast(
    pasta: Pasta, group: str, port: int
) -> None:
    version = 6 if ":" in group else 4
    with group_at_a_forward(pasta, group, port) as (receiver, sender):
        for number in range(3):
            sender.sendto(b"%d" % number, (HOST[version], port))
            assert receiver.recv(100) == b"%d" % number
            sender.sendto(b"search", (group, port))


# U14


@both_versions
def test_U14_nothing_of_a_paced_download_is_lost(pasta: Pasta, version: int) -> None:
    """100 Mbit/s in datagrams of 1400 bytes, eight at a time; what a gigabit costs is the benchmark's affair."""
    find_neighbour(pasta, version)
    sender = pasta.topology.server.bind(SERVER[version])
    receiver = roomy(pasta.guest("--config-net").connect(SERVER[version], sender.getsockname()[1], kind=DATAGRAM))
    receiver.send(b"go")
    _, peer = sender.recvfrom(100)
    burst, seconds = 8, 2
    batches = int(100e6 * seconds / 8 / 1400 / burst)
    pad = bytes(1396)
    came = []
    receiver.setblocking(False)
    for batch in paced(batches, seconds / batches):
        for number in range(burst):
            sender.sendto(struct.pack("!I", batch * burst + number) + pad, peer)
        # On a machine that has something else to do it waits, so that not more is on its way than fits into a socket
        receiver.settimeout(1)
        with contextlib.suppress(TimeoutError):
            while len(came) < (batch + 1) * burst - FITTING:
                came.append(receiver.recv(2000))
        receiver.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                came.append(receiver.recv(2000))
    receiver.settimeout(1)
    with contextlib.suppress(TimeoutError):
        while len(came) < batches * burst:
            came.append(receiver.recv(2000))
    assert {len(data) for data in came} == {1400}
    assert [int.from_bytes(data[:4], "big") for data in came] == list(range(batches * burst))


@both_versions
@pytest.mark.parametrize("begins", ["guest", "host"])
def test_U14_a_burst_that_comes_while_another_has_the_processor_is_not_lost(
    pasta: Pasta, version: int, begins: str
) -> None:
    if int(Path("/proc/sys/net/core/rmem_max").read_text()) < 1 << 20:
        pytest.skip("net.core.rmem_max is below 1 MiB, and cuts what sockets may hold")
    number = 500  # of 1400 bytes: 5 ms of a gigabit, five times what a socket takes by default
    guest = pasta.guest("--config-net", "-u", "8080")
    find_neighbour(pasta, version)
    if begins == "guest":
        sender = pasta.topology.server.bind(SERVER[version], 0)
        receiver = guest.connect(SERVER[version], sender.getsockname()[1], kind=DATAGRAM)
        receiver.send(b"here I am")
        sender.connect(sender.recvfrom(100)[1])
    else:
        receiver = guest.bind(ANY[version], 8080)
        sender = pasta.topology.server.connect(HOST[version], 8080, kind=DATAGRAM, source=SERVER[version])
        sender.send(b"here I am")
        assert receiver.recv(100) == b"here I am"
    roomy(receiver)
    os.kill(guest.pid, signal.SIGSTOP)
    try:
        for count in range(number):
            sender.send(b"%04d" % count + bytes(1396))
    finally:
        os.kill(guest.pid, signal.SIGCONT)
    assert [receiver.recv(2000)[:4] for _ in range(number)] == [b"%04d" % count for count in range(number)]


# U16


@both_versions
@pytest.mark.parametrize("options", [(), ("--no-map-gw",)], ids=["map-gw", "no-map-gw"])
def test_U16_the_gateway_and_the_host_answer_pings(pasta: Pasta, version: int, options: tuple[str, ...]) -> None:
    need("ping", "iputils-ping")
    # With an address of its own the guest can name the host's
    guest = pasta.guest("--config-net", "-a", OWN[4], "-a", OWN[6], *options)
    for address in (GATEWAY[version], HOST[version]):
        result = guest.run("ping", f"-{version}", "-c", "3", "-i", "0.2", "-W", "5", address, check=False)
        assert "3 received, 0% packet loss" in result.stdout, address


# D4


@both_versions
def test_D4_ten_thousand_queries_in_sequence_are_all_answered(pasta: Pasta, version: int) -> None:
    pasta.topology.server.serve_udp(SERVER[version], resolve, port=53)
    guest = pasta.guest("--config-net", "--dns-forward", FORWARD[version], "--dns-host", SERVER[version])

    def ask() -> None:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        for number in range(10_000):
            asked = query(f"name{number}.test", number)
            with socket.socket(family, DATAGRAM) as one:
                one.settimeout(5)
                one.connect((FORWARD[version], 53))
                one.send(asked)
                check_answer(one.recv(512), asked)

    guest.inside(ask)


@both_versions
def test_D4_fifty_queries_at_the_same_time_are_all_answered(pasta: Pasta, version: int) -> None:
    find_neighbour(pasta, version)
    pasta.topology.server.serve_udp(SERVER[version], resolve, port=53)
    guest = pasta.guest("--config-net", "--dns-forward", FORWARD[version], "--dns-host", SERVER[version])
    for _ in range(4):
        sockets = [guest.connect(FORWARD[version], 53, kind=DATAGRAM) for _ in range(50)]
        asked = [query(f"name{number}.test", number) for number in range(50)]
        for one, data in zip(sockets, asked, strict=True):
            one.send(data)
        for one, data in zip(sockets, asked, strict=True):
            check_answer(one.recv(512), data)
            one.close()


# D17


@both_versions
@pytest.mark.parametrize("mac", [None, OTHER_MAC], ids=["address", "machine"])
def test_D17_a_forward_goes_to_the_given_address_whoever_speaks_first(
    pasta: Pasta, version: int, mac: str | None
) -> None:
    guest = pasta.guest("--config-net", "-a", OWN[4], "-a", OWN[6], "-t", "8080")
    listener = guest.listen(OWN[version], 8080)
    heard = pasta.topology.server.bind(SERVER[version])
    ether = Ether(src=mac or mac_of(guest), dst=OUR_MAC)
    ip = IP(src=OTHER[4], dst=SERVER[4]) if version == 4 else IPv6(src=OTHER[6], dst=SERVER[6])
    frame = bytes(ether / ip / UDP(sport=4000, dport=heard.getsockname()[1]) / b"first")
    with packet_socket(guest) as raw:
        raw.send(frame)
    assert heard.recv(100) == b"first"
    client = pasta.topology.server.connect(HOST[version], 8080, source=SERVER[version])
    client.sendall(b"question")
    listener.settimeout(5)
    connection, _ = listener.accept()
    with connection:
        assert connection.recv(100) == b"question"
        connection.sendall(b"answer")
    assert client.recv(100) == b"answer"


# L15


def malformed(base: Ether, source: random.Random) -> Iterator[bytes]:
    """Frames around a good TCP SYN, none of which may open a connection."""
    good = bytes(base)
    for _ in range(150):
        # The kernel itself refuses less than an Ethernet header
        yield good[: source.randrange(14, len(good))]
    for _ in range(150):
        broken = bytearray(good)
        broken[24] ^= source.randrange(1, 256)  # IP checksum
        yield bytes(broken)
        broken = bytearray(good)
        broken[50] ^= source.randrange(1, 256)  # TCP checksum
        yield bytes(broken)
        broken = base.copy()
        broken[IP].len = source.choice([0, 19, 20, 39, len(good), 65535])
        del broken[IP].chksum
        yield bytes(broken)
        broken = base.copy()
        broken[IP].ihl = source.choice([0, 4, 11, 15])
        del broken[IP].chksum
        yield bytes(broken)
        broken = base.copy()
        broken[TCP].dataofs = source.choice([0, 4, 6, 15])
        del broken[TCP].chksum
        yield bytes(broken)
        inner = Dot1Q(vlan=source.randrange(1, 4095)) / base.payload.copy()
        yield bytes(Ether(src=base.src, dst=base.dst) / inner)
        yield bytes(Ether(src=base.src, dst=base.dst, type=0x88A8) / Dot1Q(vlan=7) / inner)
        yield bytes(Ether(src=base.src, dst=base.dst, type=source.randrange(0x0600)) / bytes(base.payload))


def noise(base: Ether, source: random.Random) -> Iterator[bytes]:
    """Random frames, good ones with some bytes changed, and some larger than the MTU."""
    ether = Ether(src=base.src, dst=base.dst)
    good = [
        bytes(frame)
        for frame in (
            base,
            ether / ARP(psrc=HOST4, pdst=GATEWAY[4]),
            ether / IP(src=HOST4, dst=SERVER4) / UDP(sport=68, dport=67) / source.randbytes(300),
            ether / IP(src=HOST4, dst=SERVER4, flags="MF") / UDP(sport=7, dport=7) / bytes(64),
            ether / IPv6(src=HOST[6], dst=SERVER[6]) / UDP(sport=7, dport=7) / bytes(64),
            ether / IPv6(src=HOST[6], dst=SERVER[6], nh=0) / source.randbytes(64),
            ether / IPv6(src="fe80::1:2", dst="ff02::1:2") / UDP(sport=546, dport=547) / source.randbytes(100),
            ether / IPv6(src="fe80::1:2", dst="ff02::2", nh=58, hlim=255) / b"\x85\0\0\0\0\0\0\0",
        )
    ]
    for _ in range(700):
        yield source.randbytes(source.randrange(14, 1500))
        kind = source.choice([b"\x08\x00", b"\x86\xdd", b"\x08\x06"])
        yield good[0][:12] + kind + source.randbytes(source.randrange(0, 200))
        broken = bytearray(source.choice(good))
        for _ in range(source.randrange(1, 6)):
            broken[source.randrange(len(broken))] = source.randrange(256)
        yield bytes(broken)
    for size in (1501, 1600, 4000, 8900):
        for _ in range(10):
            yield bytes(ether / IP(src=HOST4, dst=SERVER4) / UDP(sport=7, dport=7) / bytes(size - 28))
            yield source.randbytes(size + 14)


def test_L15_a_flood_of_malformed_frames_does_no_harm_and_fills_no_log(pasta: Pasta) -> None:
    server, log = pasta.topology.server, pasta.workspace / "log"
    web = server.serve_tcp(SERVER4, echo)
    beside = server.serve_udp(SERVER4, reply)
    guest = pasta.guest("--config-net", "-m", "1500", "--log-file", str(log), "--stats", "1")
    base = Ether(src=mac_of(guest), dst=OUR_MAC) / IP(src=HOST4, dst=SERVER4) / TCP(sport=4000, dport=web.port)
    source = random.Random(15)
    guest.run("ip", "link", "set", "host0", "mtu", "9000")
    connection = guest.connect(SERVER4, beside.port, kind=DATAGRAM)

    def entries() -> list[str]:
        return [line for line in log.read_text().splitlines() if "statistics:" not in line]

    def flood(frames: Iterator[bytes], send: Callable[[bytes], object]) -> None:
        for number, frame in enumerate(frames):
            send(frame)
            if number % 50 == 49:
                # The queue is never full, and other traffic goes on
                connection.send(b"%d" % number)
                assert connection.recv(100) == b"%d" % number
        fetch = guest.connect(SERVER4, web.port)
        fetch.sendall(b"afterwards")
        assert fetch.recv(100) == b"afterwards"

    before = len(entries())
    with packet_socket(guest) as raw, packet_socket(guest, vnet=True) as offloading:

        def offload(frame: bytes) -> None:
            kind = source.choice([0, 1, 3, 4, 5, 0x81])
            # struct virtio_net_hdr; the kernel itself refuses some
            with contextlib.suppress(OSError):
                offloading.send(struct.pack("=BBHHHH", 0, kind, 54, source.randrange(1, 2000), 34, 16) + frame)

        flood(malformed(base, source), raw.send)
        assert len(web.peers) == 1, "a malformed SYN has opened a connection"
        flood(noise(base, source), raw.send)
        flood(noise(base, source), offload)
    assert alive(guest.pid)
    assert len(entries()) <= before + 3
    assert guest.finish() == 0
    assert len(guest.output) <= 3, guest.output
    # They have arrived, and none ended in an exception
    text = log.read_text()
    for counter in ("drop_ethertype", "drop_ip_header", "drop_ip_checksum", "drop_l4_checksum", "drop_tcp_header"):
        assert f"{counter} " in text
    assert "slow_errors" not in text


# L17


@both_versions
def test_L17_no_datagram_is_cut_short_beside_bulk_traffic(pasta: Pasta, version: int, payload: bytes) -> None:
    find_neighbour(pasta, version)
    server = pasta.topology.server
    beside = server.serve_udp(SERVER[version], reply)
    bulk = server.serve_tcp(SERVER[version], echo)
    guest = pasta.guest("--config-net")
    largest = 65520 - (28 if version == 4 else 48)  # one frame at the MTU; larger ones are fragmented
    sizes = [size + more for size in (4096, 8192, 16384, 32768, largest) for more in (-1, 0, 1)]
    source = random.Random(17)
    transfer = guest.connect(SERVER[version], bulk.port)
    transfer.settimeout(60)
    part = payload[: 32 << 20]

    def receive_all() -> bool:
        got = bytearray()
        while len(got) < len(part):
            got += transfer.recv(1 << 20)
        return got == part

    connection = guest.connect(SERVER[version], beside.port, kind=DATAGRAM, timeout=1)
    sent: list[bytes] = []
    came: set[int] = set()
    with ThreadPoolExecutor() as pool:
        sending, receiving = pool.submit(transfer.sendall, part), pool.submit(receive_all)
        # A full queue may lose one, so not every one has to come, but each that does has to be whole
        while len(sent) < 3 * len(sizes) or (not receiving.done() and len(sent) < 2000):
            data = struct.pack("!I", len(sent)) + source.randbytes(sizes[len(sent) % len(sizes)] - 4)
            sent.append(data)
            connection.send(data)
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(1 << 17)
                assert answer == sent[int.from_bytes(answer[:4], "big")], f"{len(answer)} bytes"
                came.add(len(answer))
        sending.result(30)
        assert receiving.result(30)
    assert sorted(came) == sizes
