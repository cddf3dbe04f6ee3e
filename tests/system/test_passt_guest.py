"""What a guest of passt finds: configuration by its own means, services, forwards; and how a silent one is found."""

import contextlib
import random
import re
import socket
import threading
import time

import pytest
from scapy.all import ARP, IP, TCP, UDP, Ether, ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6

from system.machine import INTERFACE, Machine, Passt, client, frames, receive_frame
from system.namespaces import alive, echo, receive, wait_until
from system.programs import need
from system.quiet import assert_quiet
from system.topology import (
    ANY,
    EXTRA,
    GATEWAY4,
    GATEWAY6,
    HOST,
    HOST4,
    HOST6,
    LOOPBACK,
    REJECTED,
    SERVER,
    SERVER4,
    elapsed,
)  # fmt: skip
from system.users import only_unprivileged

pytestmark = [only_unprivileged, pytest.mark.timeout(90)]
both_versions = pytest.mark.parametrize("version", [4, 6])
DATAGRAM = socket.SOCK_DGRAM
SIZES = [1, 2, 17, 512, 1400, 1472, 1473, 4096, 16384, 60000]
FORWARD = {4: "203.0.113.99", 6: "fd00::53"}


@pytest.fixture
def guest(passt: Passt, machine: Machine) -> Machine:
    """A guest that is connected to a passt with some forwards, and configured."""
    passt.background("-t", "8080:80,8090-8092:90-92", "-u", "8053:53", "--map-host-loopback", "192.0.2.77")
    machine.cable.connect(passt.socket)
    machine.configure()
    return machine


# Configuration by the guest's own means


def test_D5_udhcpc_configures_ipv4(passt: Passt, machine: Machine) -> None:
    client = need("udhcpc", "udhcpc")
    passt.topology.host.resolv_conf("nameserver 203.0.113.53\nsearch example.org lab.example.net\n")
    passt.background("-H", "guest", "--fqdn", "guest.example.org", "-m", "9000")
    machine.cable.connect(passt.socket)
    machine.ip(f"link set {INTERFACE} up")
    script, lease = passt.workspace / "script", passt.workspace / "lease"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = bound ] || exit 0\nenv >{lease}\nip address add $ip/$mask dev $interface\n'
        "ip route add default via $router dev $interface\nip link set $interface mtu $mtu\n"
    )
    script.chmod(0o755)
    options = [word for name in ("mtu", "search", "hostname", "81") for word in ("-O", name)]
    machine.run(client, "-i", INTERFACE, "-f", "-q", "-n", "-t", "5", "-T", "1", *options, "-s", str(script))
    found = dict(line.partition("=")[::2] for line in lease.read_text().splitlines())
    assert found["ip"] == HOST4
    assert found["router"] == GATEWAY4
    assert found["dns"] == "203.0.113.53"  # announced without being asked for, other than by pasta
    assert found["search"].split() == ["example.org", "lab.example.net"]
    assert found["hostname"] == "guest"
    assert found["lease"] == "4294967295"
    assert f"inet {HOST4}/24" in machine.run("ip", "-o", "address", "show", "dev", INTERFACE).stdout
    assert "mtu 9000" in machine.run("ip", "link", "show", INTERFACE).stdout
    server = passt.topology.server.serve_tcp(SERVER4, echo)
    with machine.connect(SERVER4, server.port) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"


def test_D6_the_kernel_of_the_guest_configures_ipv6(passt: Passt, machine: Machine) -> None:
    passt.background()
    machine.cable.connect(passt.socket)
    machine.sysctl(net__ipv6__conf__eth0__accept_ra=1)
    machine.ip(f"link set {INTERFACE} up")
    wait_until(lambda: "default via fe80" in machine.run("ip", "-6", "route").stdout, "a default route")
    shown = machine.run("ip", "-6", "address", "show", "dev", INTERFACE, "scope", "global").stdout
    assert re.search(r"inet6 2001:db8::[0-9a-f:]+/64", shown)
    server = passt.topology.server.serve_tcp(SERVER[6], echo)
    with machine.connect(SERVER[6], server.port) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"


def test_D7_dhclient_gets_the_hosts_address_and_names_by_dhcpv6(passt: Passt, machine: Machine) -> None:
    client = need("dhclient", "isc-dhcp-client")
    passt.topology.host.resolv_conf("nameserver 2001:db8:53::53\nsearch example.org\n")
    passt.background()
    machine.cable.connect(passt.socket)
    machine.sysctl(net__ipv6__conf__eth0__accept_dad=0)
    machine.ip(f"link set {INTERFACE} up")
    directory = passt.workspace
    script, lease = directory / "script", directory / "lease"
    script.write_text(
        f'#!/bin/sh\ncase "$reason" in BOUND*) env >{directory}/new && mv {directory}/new {lease};; esac\n'
    )
    script.chmod(0o755)
    (directory / "conf").write_text("also request dhcp6.name-servers, dhcp6.domain-search;\n")
    (directory / "leases").touch()
    files = {"-cf": "conf", "-lf": "leases", "-pf": "pid", "-sf": "script"}
    paths = [word for option, name in files.items() for word in (option, str(directory / name))]
    machine.start(client, "-6", "-d", *paths, INTERFACE)
    wait_until(lease.exists, "a lease of dhclient")
    found = dict(line.partition("=")[::2] for line in lease.read_text().splitlines())
    assert found["new_ip6_address"] == HOST6
    assert found["new_dhcp6_name_servers"] == "2001:db8:53::53"
    assert found["new_dhcp6_domain_search"].strip() == "example.org."


def test_names_are_not_announced_when_told_so(passt: Passt, machine: Machine) -> None:
    client = need("udhcpc", "udhcpc")
    passt.topology.host.resolv_conf("nameserver 203.0.113.53\nsearch example.org\n")
    passt.background("--no-dhcp-dns", "--no-dhcp-search")
    machine.cable.connect(passt.socket)
    machine.ip(f"link set {INTERFACE} up")
    script, lease = passt.workspace / "script", passt.workspace / "lease"
    script.write_text(f'#!/bin/sh\n[ "$1" = bound ] || exit 0\nenv >{lease}\n')
    script.chmod(0o755)
    machine.run(client, "-i", INTERFACE, "-f", "-q", "-n", "-t", "5", "-T", "1", "-O", "search", "-s", str(script))
    text = lease.read_text()
    assert "\ndns=" not in text
    assert "\nsearch=" not in text


# Services and protocols


@both_versions
def test_D1_queries_reach_the_hosts_resolver(passt: Passt, machine: Machine, version: int) -> None:
    resolver = passt.topology.host.serve_udp(LOOPBACK[version], lambda data, _: data.upper(), port=53)
    passt.background("--dns-forward", FORWARD[version], "--dns-host", LOOPBACK[version])
    machine.cable.connect(passt.socket)
    machine.configure()
    with machine.connect(FORWARD[version], 53, kind=DATAGRAM) as connection:
        connection.send(b"query")
        assert connection.recv(100) == b"QUERY"
    assert len(resolver.peers) == 1


@both_versions
@pytest.mark.parametrize("size", [56, 1400, 8000, 60000])
def test_U15_pings_are_answered(guest: Machine, version: int, size: int) -> None:
    guest.run("ping", f"-{version}", "-c", "3", "-i", "0.05", "-W", "5", "-s", str(size), SERVER[version])


@both_versions
@pytest.mark.parametrize("mtu", [1500, 65520])
def test_U7_datagrams_of_all_sizes_arrive_whole(passt: Passt, guest: Machine, version: int, mtu: int) -> None:
    guest.ip(f"link set {INTERFACE} mtu {mtu}")
    server = passt.topology.server.serve_udp(SERVER[version], lambda data, _: data)
    with guest.connect(SERVER[version], server.port, kind=DATAGRAM) as connection:
        for size in SIZES:
            data = random.Random(size).randbytes(size)
            connection.send(data)
            assert connection.recv(1 << 16) == data, f"{size} bytes"


@both_versions
def test_a_burst_of_datagrams_is_cut_into_right_frames(passt: Passt, guest: Machine, version: int) -> None:
    """Runs of datagrams are one superframe inside; the guest's kernel checks the checksum of each."""
    sizes = [100] * 20 + [1] * 10 + [1400] * 20 + [37]

    def burst(data: bytes, _: object) -> None:
        for index, size in enumerate(sizes):
            server.listener.sendto(bytes([index]) * size, server.peers[-1])

    server = passt.topology.server.serve_udp(SERVER[version], burst)
    with guest.connect(SERVER[version], server.port, kind=DATAGRAM) as connection:
        connection.send(b"x")
        got = [connection.recv(2000) for _ in sizes]
    assert got == [bytes([index]) * size for index, size in enumerate(sizes)]


@both_versions
def test_T1_U1_what_is_refused_is_refused_at_once(guest: Machine, version: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        guest.connect(SERVER[version], 9, timeout=2)
    with guest.connect(SERVER[version], 9, kind=DATAGRAM) as connection:
        connection.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            connection.recv(1)


@both_versions
def test_T2_what_cannot_be_reached_is_reported_at_once(guest: Machine, version: int) -> None:
    with pytest.raises(OSError, match=r"No route to host|Network is unreachable"):
        guest.connect(REJECTED[version], 9, timeout=5)


@both_versions
def test_T5_resets_go_both_ways(passt: Passt, guest: Machine, version: int) -> None:
    def abort(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    server = passt.topology.server.serve_tcp(SERVER[version], abort)
    with guest.connect(SERVER[version], server.port) as connection:
        connection.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    server = passt.topology.server.serve_tcp(SERVER[version], receive)
    connection = guest.connect(SERVER[version], server.port)
    connection.sendall(b"x")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    wait_until(lambda: server.errors, "the reset")
    assert isinstance(server.errors[0], ConnectionResetError)


def test_the_gateway_is_the_hosts_loopback_unless_mapped_elsewhere(passt: Passt, guest: Machine) -> None:
    server = passt.topology.host.serve_tcp(LOOPBACK[4], echo)
    with guest.connect("192.0.2.77", server.port) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
    with pytest.raises(OSError, match="refused"):
        guest.connect(GATEWAY4, server.port, timeout=5)


# Forwards


@both_versions
def test_L5_tcp_forwards_reach_the_guest(passt: Passt, guest: Machine, version: int) -> None:
    for port in (80, 90, 92):
        guest.serve_tcp(ANY[version], echo, port=port)
    for where, address in (
        (passt.topology.server, HOST[version]),
        (passt.topology.server, EXTRA[version]),
        (passt.topology.host, LOOPBACK[version]),
    ):
        for port in (8080, 8090, 8092):
            with where.connect(address, port) as connection:
                connection.sendall(b"x")
                assert connection.recv(1) == b"x"


def test_a_forwarded_connection_from_the_hosts_loopback_comes_from_the_gateway(passt: Passt, guest: Machine) -> None:
    server = guest.serve_tcp(ANY[4], echo, port=80)
    with passt.topology.host.connect(LOOPBACK[4], 8080) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
    assert server.peers[0][0] == "192.0.2.77"  # what stands for the host's loopback


@both_versions
def test_udp_reaches_a_guest_that_has_not_spoken(passt: Passt, guest: Machine, version: int) -> None:
    # Bound to this address: by SLAAC it has another, from which an unbound socket may answer
    guest.serve_udp(HOST[version], lambda data, _: data.upper(), port=53)
    with passt.topology.server.connect(HOST[version], 8053, kind=DATAGRAM) as connection:
        connection.send(b"query")
        assert connection.recv(100) == b"QUERY"


@both_versions
def test_all_ports_are_forwarded(passt: Passt, machine: Machine, version: int) -> None:
    passt.background("-t", "all", "-u", "none", "-q", timeout=60)
    machine.cable.connect(passt.socket)
    machine.configure()
    machine.serve_tcp(ANY[version], echo, port=7777)
    with passt.topology.server.connect(HOST[version], 7777) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"


# Being found


@both_versions
def test_T4_a_connection_waits_for_a_guest_that_boots_later(passt: Passt, machine: Machine, version: int) -> None:
    passt.background("-t", "8080:80")
    machine.cable.connect(passt.socket)
    client, seconds = elapsed(passt.topology.server.connect, HOST[version], 8080)
    assert seconds < 1
    client.sendall(b"early")
    time.sleep(1)
    machine.serve_tcp(ANY[version], echo, port=80)
    machine.configure()
    assert receive(client, 5) == b"early"


@both_versions
def test_T4_a_connection_waits_for_qemu_itself(passt: Passt, machine: Machine, version: int) -> None:
    passt.background("-t", "8080:80")
    client, seconds = elapsed(passt.topology.server.connect, HOST[version], 8080)
    assert seconds < 1
    client.sendall(b"early")
    machine.serve_tcp(ANY[version], echo, port=80)
    machine.configure()
    time.sleep(1)
    machine.cable.connect(passt.socket)
    assert receive(client, 5) == b"early"


@both_versions
def test_D18_a_silent_guest_is_found_after_a_restart(passt: Passt, machine: Machine, version: int) -> None:
    pid = passt.background("-t", "8080:80")
    machine.cable.connect(passt.socket)
    machine.configure()
    machine.serve_tcp(ANY[version], echo, port=80)
    with passt.topology.server.connect(HOST[version], 8080) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
    passt.terminate(pid)
    passt.background("-t", "8080:80")
    machine.cable.connect(passt.socket)
    connection, seconds = elapsed(passt.topology.server.connect, HOST[version], 8080)
    connection.sendall(b"x")
    assert connection.recv(1) == b"x"
    assert seconds < 5


def test_D18_the_questions_for_a_silent_guest_are_few(passt: Passt) -> None:
    pid = passt.background("-6")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(passt.socket)
        sock.settimeout(0.2)
        begin, asked = time.monotonic(), 0
        while time.monotonic() - begin < 4:
            with contextlib.suppress(TimeoutError):
                frame = Ether(receive_frame(sock))
                asked += "ICMPv6ND_NS" in frame and frame["ICMPv6ND_NS"].tgt == HOST6
        assert 4 <= asked <= 8
        assert_quiet(pid, 2)


def test_the_address_is_learnt_from_a_guest_that_chose_another(passt: Passt, machine: Machine) -> None:
    passt.background("-t", "8080:80")
    machine.cable.connect(passt.socket)
    machine.ip(
        f"link set {INTERFACE} up", f"address add 192.0.2.99/24 dev {INTERFACE}", f"route add default via {GATEWAY4}"
    )
    machine.serve_tcp(ANY[4], echo, port=80)
    answering = passt.topology.server.serve_tcp(SERVER4, echo)
    with machine.connect(SERVER4, answering.port) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
    assert answering.peers[0][0] == HOST4
    with passt.topology.server.connect(HOST4, 8080) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"


def claim(mac: str, address: str) -> bytes:
    """A guest speaks: it asks for the gateway, and so says whose address its own is."""
    ether = Ether(src=mac, dst="ff:ff:ff:ff:ff:ff")
    if ":" not in address:
        return bytes(ether / ARP(hwsrc=mac, psrc=address, pdst=GATEWAY4))
    asked = ICMPv6ND_NS(tgt=GATEWAY6) / ICMPv6NDOptSrcLLAddr(lladdr=mac)
    return bytes(Ether(src=mac, dst="33:33:ff:00:00:01") / IPv6(src=address, dst="ff02::1:ff00:1", hlim=255) / asked)


@both_versions
def test_D17_a_forward_goes_to_the_given_address_whoever_speaks_first(
    passt: Passt, machine: Machine, version: int
) -> None:
    given, taken = {4: ("192.0.2.50", "192.0.2.60"), 6: ("2001:db8::50", "2001:db8::60")}[version]
    passt.background("-t", "8080:80", "-a", given)
    other = claim("02:00:00:00:00:60", taken)
    with client(passt.socket) as sock:
        for number, frame in enumerate((other, claim(machine.mac, given), other)):
            sock.sendall(frames(frame))
            while True:  # until it is answered
                answer = Ether(receive_frame(sock))
                if answer.dst == ("02:00:00:00:00:60", machine.mac)[number % 2] and (
                    ARP in answer if version == 4 else ICMPv6ND_NA in answer
                ):
                    break
        connection = passt.topology.server.connect(HOST[version], 8080)
        while TCP not in (answer := Ether(receive_frame(sock))):
            pass
        connection.close()
    assert (answer[IP if version == 4 else IPv6].dst, answer[TCP].dport, answer.dst) == (given, 80, machine.mac)


@both_versions
def test_T19_a_guest_with_connections_of_a_passt_that_is_gone_gets_resets(
    passt: Passt, machine: Machine, version: int
) -> None:
    pid = passt.background()
    machine.cable.connect(passt.socket)
    machine.configure()
    server = passt.topology.server.serve_tcp(SERVER[version], echo)
    with machine.connect(SERVER[version], server.port) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        passt.terminate(pid)
        passt.background()
        machine.cable.connect(passt.socket)
        connection.sendall(b"y")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_T18_connections_of_a_guest_that_is_gone_are_given_up(passt: Passt, machine: Machine) -> None:
    """Another guest in its place answers for it: the host's end is told."""
    go_on = threading.Event()

    def later(connection: socket.socket) -> None:
        connection.sendall(b"x")
        assert go_on.wait(30)
        connection.sendall(b"y")
        receive(connection)

    pid = passt.background()
    machine.cable.connect(passt.socket)
    machine.configure()
    server = passt.topology.server.serve_tcp(SERVER4, later)
    connection = machine.connect(SERVER4, server.port)
    assert connection.recv(1) == b"x"
    machine.cable.disconnect()
    with Machine(passt.topology, "02:00:00:00:00:22") as other:
        other.cable.connect(passt.socket)
        other.configure()
        go_on.set()
        wait_until(lambda: server.errors, "the reset")
        assert isinstance(server.errors[0], ConnectionResetError)
        answering = passt.topology.server.serve_tcp(SERVER4, echo)
        with other.connect(SERVER4, answering.port) as again:
            again.sendall(b"x")
            assert again.recv(1) == b"x"
    assert alive(pid)


def test_T33_short_frames_are_padded(passt: Passt, machine: Machine) -> None:
    pid = passt.background("--no-ra")
    server = passt.topology.server.serve_udp(SERVER4, lambda data, _: data)
    mac = "02:00:00:00:00:11"
    ask = (
        Ether(src=mac, dst="9a:55:9a:55:9a:55") / IP(src=HOST4, dst=SERVER4) / UDP(sport=1000, dport=server.port) / b"z"
    )
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(passt.socket)
        sock.settimeout(5)
        sock.sendall(frames(bytes(ask)))
        while True:
            data = receive_frame(sock)
            assert len(data) >= 60
            frame = Ether(data)
            if UDP in frame and frame[UDP].dport == 1000:
                break
    assert bytes(frame[UDP].payload)[:1] == b"z"
    assert frame[UDP].len == 9
    assert frame[IP].len == 29
    passt.terminate(pid)


def test_iperf3_runs_both_ways(passt: Passt, guest: Machine) -> None:
    need("iperf3", "iperf3")
    for way in ((), ("-R",), ("-u", "-b", "20M", "-l", "1400"), ("-P", "4")):
        # One server for each: between two tests a server that stays does not listen for a moment
        server = passt.topology.server.start("iperf3", "-s", "-1", tcp=5201)
        result = guest.run("iperf3", "-c", GATEWAY4, "-t", "1", *way)  # it answers UDP from that address
        assert "receiver" in result.stdout
        server.communicate(timeout=10)
