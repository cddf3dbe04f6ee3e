"""Bound sockets of a namespace: what the kernel says by sock_diag and in /proc, and what follows from it."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from bucatini.errors import HostError
from bucatini.host import listeners
from bucatini.host.listeners import (
    Listener,
    ProcTables,
    SocketDiag,
    add_ports,
    is_loopback,
    no_ports,
    parse_line,
    parse_message,
)

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
V4_ANY, V6_ANY = bytes(4), bytes(16)


@pytest.fixture
def bound() -> Iterator[dict[str, socket.socket]]:
    made = {
        "tcp4": socket.create_server(("127.0.0.1", 0)),
        "tcp6 only": socket.create_server(("::", 0), family=socket.AF_INET6),
        "tcp both": socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True),
        "udp4": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "udp6": socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
        "connected": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    }
    made["udp4"].bind(("0.0.0.0", 0))
    made["udp6"].bind(("::1", 0))
    made["connected"].connect(("127.0.0.1", 9))
    yield made
    for sock in made.values():
        sock.close()


def entries(source: SocketDiag | ProcTables) -> list[Listener]:
    """What is bound; all of it is looked at."""
    found: list[Listener] = []
    for part in source.parts():
        assert part is not None
        found += part
    return found


def port(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def test_the_kernel_tells_protocol_version_port_address_and_inode(bound: dict[str, socket.socket]) -> None:
    with closing(SocketDiag()) as source:
        found = {entry.inode: entry for entry in entries(source)}
    expected = {
        "tcp4": (TCP, 4, bytes([127, 0, 0, 1])),
        "tcp6 only": (TCP, 6, V6_ANY),
        "tcp both": (TCP, 0, V6_ANY),
        "udp4": (UDP, 4, V4_ANY),
        "udp6": (UDP, 6, bytes(15) + b"\x01"),
    }
    for name, (protocol, version, address) in expected.items():
        inode = os.fstat(bound[name].fileno()).st_ino
        assert found[inode] == Listener(protocol, version, port(bound[name]), address, inode)
    assert os.fstat(bound["connected"].fileno()).st_ino not in found


def test_the_tables_tell_the_same_but_for_the_version_of_all_addresses(bound: dict[str, socket.socket]) -> None:
    mine = {os.fstat(sock.fileno()).st_ino for sock in bound.values()}
    with closing(SocketDiag()) as source:
        asked = {entry.inode: entry for entry in entries(source) if entry.inode in mine}
    with closing(ProcTables()) as tables:
        found = {entry.inode: entry for entry in entries(tables) if entry.inode in mine}
        bound["tcp4"].close()
        assert len([entry for entry in entries(tables) if entry.inode in mine]) == len(found) - 1
    assert found.keys() == asked.keys()
    for inode, entry in asked.items():
        version = 0 if entry.address == V6_ANY else entry.version
        assert found[inode] == entry._replace(version=version)


def test_messages_that_do_not_fit_are_passed_over() -> None:
    whole = bytes([socket.AF_INET, 10, 0, 0]) + (80).to_bytes(2, "big") + bytes(66)
    assert parse_message(TCP, whole) == Listener(TCP, 4, 80, V4_ANY, 0)
    for size in range(len(whole)):
        assert parse_message(TCP, whole[:size]) is None
    assert parse_message(TCP, bytes([99]) + whole[1:]) is None
    assert parse_message(TCP, whole[:4] + bytes(68)) is None  # not bound


@pytest.mark.parametrize(
    "line",
    [
        "",
        "0: ",
        "0: 0100007F:0050",
        "0: 0100007F:xx 0:0 0A 0 0 0 0 0 1",
        "0: 01007F:0050 0:0 0A 0 0 0 0 0 1",
        "0: 0100007F:10050 0:0 0A 0 0 0 0 0 1",
        "0: 0100007F:-050 0:0 0A 0 0 0 0 0 1",
        "0: -100007F:0050 0:0 0A 0 0 0 0 0 1",
    ],
)
def test_lines_that_do_not_fit_are_passed_over(line: str) -> None:
    assert parse_line(TCP, 4, line) is None


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, (bytes([127, 1, 2, 3]), bytes(15) + b"\x01", bytes(10) + b"\xff\xff\x7f\0\0\1")))
    assert not any(map(is_loopback, (V4_ANY, V6_ANY, bytes([192, 0, 2, 1]))))


def test_ports_are_of_the_versions_that_they_are_bound_for() -> None:
    loopback, public = bytes([127, 0, 0, 1]), bytes([192, 0, 2, 1])
    found = [
        Listener(TCP, 4, 80, V4_ANY, 1),
        Listener(TCP, 6, 80, V6_ANY, 2),
        Listener(TCP, 4, 81, loopback, 3),
        Listener(TCP, 4, 82, public, 4),
        Listener(UDP, 0, 83, V6_ANY, 5),
        Listener(TCP, 4, 84, V4_ANY, 6),
    ]

    def ports(**which: bool) -> dict[int, dict[int, int]]:
        result = no_ports()
        for at in range(0, len(found), 2):  # in parts
            add_ports(result, found[at : at + 2], not_ours={6}, **which)
        return result

    assert ports(loopback=False, others=False) == {TCP: {80: 0}, UDP: {83: 0}}
    assert ports(loopback=True, others=False) == {TCP: {80: 0, 81: 4}, UDP: {83: 0}}
    assert ports(loopback=False, others=True) == {TCP: {80: 0, 82: 4}, UDP: {83: 0}}
    result = no_ports()
    add_ports(result, found, loopback=False, others=False, not_ours=set())
    assert result == {TCP: {80: 0, 84: 4}, UDP: {83: 0}}


@pytest.fixture
def many() -> Iterator[set[int]]:
    """Inodes of as many sockets as several parts hold."""
    made = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(900)]
    for sock in made:
        sock.bind(("127.0.0.1", 0))
    yield {os.fstat(sock.fileno()).st_ino for sock in made}
    for sock in made:
        sock.close()


@pytest.mark.parametrize("kind", [SocketDiag, ProcTables])
def test_sockets_come_in_parts(kind: type[SocketDiag | ProcTables], many: set[int]) -> None:
    with closing(kind()) as source:
        parts = [{entry.inode for entry in part or ()} & many for part in source.parts()]
        assert set().union(*parts) == many
        assert max(map(len, parts)) < 600


@pytest.mark.parametrize("kind", [SocketDiag, ProcTables])
def test_of_sockets_without_end_some_are_looked_at(
    kind: type[SocketDiag | ProcTables], many: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(kind()) as source:
        with monkeypatch.context() as patch:
            patch.setattr(listeners, "SOCKETS", 600)
            parts = list(source.parts())
            assert None in parts
            seen = [entry for part in parts for entry in part or () if entry.inode in many]
            assert len(seen) <= 600
        # And all of them, when that is allowed again
        assert {entry.inode for entry in entries(source)} >= many


@pytest.mark.parametrize("kind", [SocketDiag, ProcTables])
def test_a_look_that_was_given_up_does_not_disturb_the_next(
    kind: type[SocketDiag | ProcTables], many: set[int]
) -> None:
    with closing(kind()) as source:
        for _ in range(3):
            for part in source.parts():
                if part is not None and many & {entry.inode for entry in part}:
                    break
        found = [entry.inode for entry in entries(source) if entry.inode in many]
        assert len(found) == len(many)
        assert set(found) == many


def test_a_kernel_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(SocketDiag()) as source:
        monkeypatch.setattr(source.netlink, "_send", lambda *_: None)
        with pytest.raises(HostError, match="list bound sockets"):
            entries(source)
