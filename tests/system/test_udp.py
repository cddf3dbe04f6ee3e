"""UDP that the guest begins."""

import random
import socket
import struct
import time
from typing import Any, NamedTuple

import pytest

from system.namespaces import Namespace
from system.programs import need
from system.quiet import nearly_idle
from system.topology import ANY, GATEWAY, HOST, LOOPBACK, SERVER, Pasta
from system.users import only_unprivileged

both_versions = pytest.mark.parametrize("version", [4, 6])
DATAGRAM = socket.SOCK_DGRAM
IP_RECVERR, IPV6_RECVERR = 11, 25  # linux/in.h, linux/in6.h
IP_RECVTTL = 12  # linux/in.h
UDP_SEGMENT = 103  # linux/udp.h
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
SIZES = [1, 2, 17, 512, 1400, 1472, 1473, 4096, 8972, 16384, 32768, 60000, 65_507]
MAPPED = {4: "192.0.2.99", 6: "2001:db8::99"}


def reply(data: bytes, _: Any) -> bytes:
    """Echo."""
    return data


class Icmp(NamedTuple):
    """What a socket's error queue says about a datagram."""

    errno: int
    type: int
    code: int
    offender: str


def last_error(connection: socket.socket) -> Icmp:
    """Take one entry of the error queue: ip(7), struct sock_extended_err and then the address of its sender."""
    _, ancillary, _, _ = connection.recvmsg(1 << 16, 512, socket.MSG_ERRQUEUE)
    for _, _, data in ancillary:
        number, _origin, kind, code, _pad, _info, _data = struct.unpack_from("=IBBBBII", data)
        family = struct.unpack_from("=H", data, 16)[0]
        raw = data[20:24] if family == socket.AF_INET else data[24:40]
        return Icmp(number, kind, code, socket.inet_ntop(family, raw))
    raise AssertionError("no entry in the error queue")


def connect(guest: Namespace, version: int, address: str, port: int) -> socket.socket:
    connection = guest.connect(address, port, kind=DATAGRAM)
    if version == 4:
        connection.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    else:
        connection.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    return connection


@both_versions
def test_U7_datagrams_of_all_sizes_arrive_whole(pasta: Pasta, version: int) -> None:
    server = pasta.topology.server.serve_udp(SERVER[version], reply)
    with pasta.guest("--config-net").connect(SERVER[version], server.port, kind=DATAGRAM) as connection:
        for size in SIZES:
            data = random.Random(size).randbytes(size)
            connection.send(data)
            assert connection.recv(1 << 16) == data, f"{size} bytes"


@only_unprivileged
@both_versions
def test_U7_datagrams_of_every_third_size_arrive_whole(pasta: Pasta, version: int) -> None:
    """From 2 to 65,507 bytes, there and back."""
    data = random.Random(7).randbytes(2 * 65_507)
    server = pasta.topology.server.serve_udp(SERVER[version], reply)
    with pasta.guest("--config-net").connect(SERVER[version], server.port, kind=DATAGRAM) as connection:
        for size in range(2, 65_508, 3):
            sent = data[size : 2 * size]
            connection.send(sent)
            assert connection.recv(1 << 16) == sent, f"{size} bytes"


@only_unprivileged
@both_versions
@pytest.mark.parametrize("size", [65_399, 65_001, 32_000, 1000])
def test_U7_datagrams_that_the_guest_sends_at_once_arrive_whole(pasta: Pasta, version: int, size: int) -> None:
    """UDP_SEGMENT (udp(7)): the guest's kernel hands them over as one superframe, where it is large enough."""
    total = 65_400
    server = pasta.topology.server.bind(SERVER[version], 0)
    server.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
    server.settimeout(5)
    connection = pasta.guest("--config-net").connect(SERVER[version], server.getsockname()[1], kind=DATAGRAM)
    connection.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
    data = random.Random(size).randbytes(total)
    connection.send(data)
    got = [server.recv(70_000) for _ in range(-(-total // size))]
    assert b"".join(got) == data
    assert {len(part) for part in got[:-1]} == {size}
    connection.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)
    connection.send(b"next")
    assert server.recv(100) == b"next"


@both_versions
def test_an_empty_datagram_arrives(pasta: Pasta, version: int) -> None:
    server = pasta.topology.server.serve_udp(SERVER[version], reply)
    with pasta.guest("--config-net").connect(SERVER[version], server.port, kind=DATAGRAM) as connection:
        connection.send(b"")
        assert connection.recv(1 << 16) == b""


@both_versions
def test_U8_fragments_of_the_guest_are_put_together(pasta: Pasta, version: int) -> None:
    server = pasta.topology.server.serve_udp(SERVER[version], reply)
    with pasta.guest("--config-net", "-m", "1500").connect(SERVER[version], server.port, kind=DATAGRAM) as connection:
        for size in (1472, 1473, 3000, 9000, 60000):
            data = random.Random(size).randbytes(size)
            connection.send(data)
            assert connection.recv(1 << 16) == data, f"{size} bytes"


@both_versions
def test_order_is_kept_within_a_burst(pasta: Pasta, version: int) -> None:
    listener = pasta.topology.server.bind(SERVER[version])
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    with pasta.guest("--config-net").connect(SERVER[version], listener.getsockname()[1], kind=DATAGRAM) as connection:
        # The first one lets the host find its neighbour: until it has, it keeps only a few.
        connection.send(b"first")
        assert listener.recv(100) == b"first"
        sent = [b"%05d" % number for number in range(200)]
        for data in sent:
            connection.send(data)
        assert [listener.recv(100) for _ in sent] == sent


@both_versions
def test_U1_a_closed_port_is_reported(pasta: Pasta, version: int) -> None:
    guest = pasta.guest("--config-net")
    with guest.connect(SERVER[version], 9, kind=DATAGRAM) as connection:
        connection.send(b"anybody?")
        connection.settimeout(1)
        with pytest.raises(ConnectionRefusedError):
            connection.recv(100)


@both_versions
def test_U1_the_report_comes_from_the_address_that_was_asked(pasta: Pasta, version: int) -> None:
    guest = pasta.guest("--config-net")
    with connect(guest, version, SERVER[version], 9) as connection:
        connection.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            connection.recv(100)
        error = last_error(connection)
    assert (error.type, error.code) == ((3, 3) if version == 4 else (1, 4))
    assert error.offender == SERVER[version]


@only_unprivileged
@both_versions
def test_U1_what_a_filter_of_the_network_prohibits_is_reported_as_that(pasta: Pasta, version: int) -> None:
    kind = {4: "icmp type admin-prohibited", 6: "icmpv6 type admin-prohibited"}[version]
    hook = "type filter hook input priority 0"
    rules = f"table inet filter {{\nchain input {{\n{hook}\nudp dport 33500 reject with {kind}\n}}\n}}\n"
    need("nft", "nftables")
    pasta.topology.server.run("nft", "-f", "-", input=rules)
    connection = connect(pasta.guest("--config-net"), version, SERVER[version], 33500)
    connection.send(b"?")
    with pytest.raises(OSError):
        connection.recv(100)
    found = last_error(connection)
    assert (found.type, found.code) == {4: (3, 13), 6: (1, 1)}[version]


@both_versions
@pytest.mark.parametrize("options", [(), ("--map-host-loopback",)], ids=["gateway", "mapped"])
def test_U2_a_closed_port_of_the_host_is_reported_by_the_address_that_stands_for_it(
    pasta: Pasta, version: int, options: tuple[str, ...]
) -> None:
    address = MAPPED[version] if options else GATEWAY[version]
    guest = pasta.guest("--config-net", *(f"{option}={address}" for option in options))
    with connect(guest, version, address, 9) as connection:
        connection.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            connection.recv(100)
        assert last_error(connection).offender == address


@both_versions
def test_map_host_loopback_reaches_the_host(pasta: Pasta, version: int) -> None:
    server = pasta.topology.host.serve_udp(LOOPBACK[version], reply)
    guest = pasta.guest("--config-net", "--map-host-loopback", MAPPED[version])
    with guest.connect(MAPPED[version], server.port, kind=DATAGRAM) as connection:
        connection.send(b"hello")
        assert connection.recv(100) == b"hello"


@both_versions
def test_map_guest_addr_reaches_the_host_at_the_address_that_the_guest_has_too(pasta: Pasta, version: int) -> None:
    server = pasta.topology.host.serve_udp(HOST[version], reply)
    guest = pasta.guest("--config-net", "--map-guest-addr", MAPPED[version])
    with guest.connect(MAPPED[version], server.port, kind=DATAGRAM) as connection:
        connection.send(b"hello")
        assert connection.recv(100) == b"hello"


@both_versions
def test_U6_the_source_port_is_kept(pasta: Pasta, version: int) -> None:
    server = pasta.topology.server.serve_udp(SERVER[version], reply)
    guest = pasta.guest("--config-net")
    connection = guest.open_socket(SERVER[version], DATAGRAM)
    connection.bind(("", 23456))
    connection.sendto(b"hello", (SERVER[version], server.port))
    assert connection.recv(100) == b"hello"
    assert server.peers == [(HOST[version], 23456)]


@both_versions
def test_one_socket_of_the_guest_talks_to_several_servers(pasta: Pasta, version: int) -> None:
    servers = [pasta.topology.server.serve_udp(SERVER[version], reply) for _ in range(5)]
    connection = pasta.guest("--config-net").open_socket(SERVER[version], DATAGRAM)
    for _ in range(3):
        for server in servers:
            data = b"%d" % server.port
            connection.sendto(data, (SERVER[version], server.port))
            assert connection.recvfrom(100)[:1] == (data,)


@both_versions
def test_U5_two_instances_do_not_get_each_others_answers(pasta: Pasta, version: int) -> None:
    server = pasta.topology.server.serve_udp(SERVER[version], reply)
    guests = [pasta.guest("--config-net") for _ in range(2)]
    sockets = [guest.open_socket(SERVER[version], DATAGRAM) for guest in guests]
    for one in sockets:
        one.bind(("", 5000))
    for number in range(24):
        for which, one in enumerate(sockets):
            one.sendto(b"%d %d" % (which, number), (SERVER[version], server.port))
        for which, one in enumerate(sockets):
            assert one.recv(100) == b"%d %d" % (which, number)


@only_unprivileged
@both_versions
def test_an_answer_from_elsewhere_does_not_reach_the_guest(pasta: Pasta, version: int) -> None:
    other = pasta.topology.server.bind(SERVER[version])

    def twice(data: bytes, peer: Any) -> bytes:
        other.sendto(b"forged", peer)
        return data

    server = pasta.topology.server.serve_udp(SERVER[version], twice)
    connection = pasta.guest("--config-net").open_socket(SERVER[version], DATAGRAM)
    for _ in range(5):
        connection.sendto(b"genuine", (SERVER[version], server.port))
        data, peer = connection.recvfrom(100)
        assert (data, peer[:2]) == (b"genuine", (SERVER[version], server.port))


@both_versions
def test_an_answer_to_a_client_that_has_gone_is_reported(pasta: Pasta, version: int) -> None:
    guest = pasta.guest("--config-net", "-u", "8080")
    receiver = guest.bind(ANY[version], 8080)
    client = pasta.topology.server.connect(HOST[version], 8080, kind=DATAGRAM, source=SERVER[version])
    client.send(b"question")
    data, peer = receiver.recvfrom(100)
    assert data == b"question"
    client.close()
    receiver.connect(peer)
    receiver.settimeout(5)
    with nearly_idle(guest.pid):
        for _ in range(3):
            receiver.send(b"answer")
            with pytest.raises(ConnectionRefusedError):
                receiver.recv(100)
            time.sleep(0.5)
    # The forward serves others as before
    receiver.close()
    receiver = guest.bind(ANY[version], 8080)
    client = pasta.topology.server.connect(HOST[version], 8080, kind=DATAGRAM, source=SERVER[version])
    client.send(b"question")
    receiver.sendto(b"answer", receiver.recvfrom(100)[1])
    assert client.recv(100) == b"answer"


@both_versions
def test_answers_of_a_forward_have_the_ttl_and_the_traffic_class_of_the_guest(pasta: Pasta, version: int) -> None:
    guest = pasta.guest("--config-net", "-u", "8080")
    receiver = guest.bind(ANY[version], 8080)
    client = pasta.topology.server.connect(HOST[version], 8080, kind=socket.SOCK_DGRAM, source=SERVER[version])
    if version == 4:
        level, ttl, traffic = socket.IPPROTO_IP, socket.IP_TTL, socket.IP_TOS
        received = IP_RECVTTL, socket.IP_RECVTOS
    else:
        level, ttl, traffic = socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, socket.IPV6_TCLASS
        received = socket.IPV6_RECVHOPLIMIT, socket.IPV6_RECVTCLASS
    for option in received:
        client.setsockopt(level, option, 1)
    client.send(b"question")
    _, peer = receiver.recvfrom(100)
    for hops, tos in ((64, 0), (33, 0), (64, 0x2), (12, 0xB8)):
        receiver.setsockopt(level, ttl, hops)
        receiver.setsockopt(level, traffic, tos)
        receiver.sendto(b"answer", peer)
        _, control, _, _ = client.recvmsg(100, 200)
        assert sorted(data[0] for _, _, data in control) == sorted((hops, tos))
