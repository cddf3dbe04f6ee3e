"""The maker of sockets, asked over its own sockets: what it makes, and what one that is there to bind refuses."""

import errno
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from bucatini.datapath import socket_pool
from bucatini.guest.maker import Maker
from bucatini.host import isolation, process
from bucatini.lean import sockets

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
BELOW = 40000


@pytest.fixture
def maker(request: pytest.FixtureRequest) -> Iterator[Maker]:
    pool, theirs_of_pool = sockets.socketpair(sockets.AF_UNIX, sockets.SOCK_SEQPACKET)
    ours, theirs = sockets.socketpair(sockets.AF_UNIX, sockets.SOCK_SEQPACKET)
    isolation.tell_confined(theirs.fileno())
    ends = theirs_of_pool.fileno(), theirs.fileno(), request.param
    thread = threading.Thread(target=socket_pool.make_sockets, args=ends, daemon=True)
    thread.start()
    made = Maker(ours.detach())
    yield made
    made.sock.close()
    pool.close()
    thread.join(5)
    assert not thread.is_alive()
    theirs_of_pool.close()
    theirs.close()


def free_port(low: int, high: int) -> int:
    for port in range(low, high):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            try:
                udp.bind(("127.0.0.1", port))
                tcp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def asked(maker: Maker) -> list[tuple[str, int]]:
    """Ask for one of each; the names of what was asked for, and the errors."""
    answers: list[tuple[int, int]] = []

    def done(fd: int, error: int) -> None:
        answers.append((fd, error))

    for port in (free_port(BELOW - 2000, BELOW), free_port(BELOW, BELOW + 2000), 0):
        for protocol in (TCP, UDP):
            maker.bind(done, protocol, 4, port, address=bytes(10) + b"\xff\xff\x7f\x00\x00\x01")
    maker.diagnostics(done)
    maker.table(done, TCP, 4)
    maker.wait()
    for fd, _ in answers:
        if fd >= 0:
            os.close(fd)
    return [("made" if fd >= 0 else "refused", error) for fd, error in answers]


@pytest.mark.parametrize("maker", [0], indirect=True)
def test_the_maker_in_the_namespace_makes_what_it_is_asked_for(maker: Maker) -> None:
    assert asked(maker) == [("made", 0)] * 8


@pytest.mark.parametrize("maker", [0], indirect=True)
@pytest.mark.parametrize("taken", [False, True])
def test_a_port_of_udp_is_shared_unless_somebody_has_it_at_another_address(maker: Maker, taken: bool) -> None:
    answers: list[tuple[int, int]] = []
    port = free_port(BELOW, BELOW + 2000)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        if taken:
            other.bind(("127.0.0.2", port))
        address = bytes(10) + b"\xff\xff\x7f\x00\x00\x01"
        maker.bind(lambda fd, error: answers.append((fd, error)), UDP, 4, port, address=address)
        maker.wait()
    with socket.socket(fileno=answers[0][0]) as made:
        assert bool(made.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)) == (not taken)


@pytest.mark.parametrize("maker", [BELOW], indirect=True)
def test_one_that_is_there_for_low_ports_refuses_everything_else(maker: Maker) -> None:
    assert asked(maker) == [("made", 0)] * 2 + [("refused", errno.EPERM)] * 6


@pytest.mark.parametrize("maker", [BELOW], indirect=True)
def test_it_makes_no_sockets_for_the_pool_either(maker: Maker) -> None:
    answers: list[tuple[int, int]] = []
    maker._ask(lambda fd, error: answers.append((fd, error)), 1, TCP, 4)  # MAKE
    maker.wait()
    assert answers == [(-1, errno.EPERM)]


def test_where_low_ports_end_is_the_sysctl() -> None:
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
        assert process.unprivileged_ports() == int(file.read())
