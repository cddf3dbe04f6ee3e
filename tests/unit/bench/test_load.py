"""Load that is paced, over a socket of this machine's loopback."""

import socket
from collections.abc import Iterator

import pytest

from bucatini.bench import load

SIZE = 1400
BATCH = 32  # datagrams that leave at once


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A receiver of datagrams, and a sender connected to it."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(0)
        sender.connect(receiver.getsockname())
        yield receiver, sender


def test_a_paced_sender_sends_no_more_than_its_rate(ends: tuple[socket.socket, socket.socket]) -> None:
    """It may be late and then send fewer, so there is no limit below."""
    seconds, rate = 0.2, 20e6
    count = load.udp_paced(ends[1].fileno(), SIZE, seconds, rate)
    assert BATCH <= count <= seconds * rate / 8 / SIZE + BATCH


def test_what_it_counts_are_datagrams_of_that_size(ends: tuple[socket.socket, socket.socket]) -> None:
    receiver, sender = ends
    count = load.udp_paced(sender.fileno(), SIZE, 0.001, BATCH * SIZE * 8 / 0.001)
    assert [len(receiver.recv(2000)) for _ in range(count)] == [SIZE] * count
    with pytest.raises(BlockingIOError):
        receiver.recv(2000)
