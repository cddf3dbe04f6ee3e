"""The delay line over two pairs of sockets: what it loses, how long it keeps a frame, how fast it lets them through."""

import socket
import threading
import time
from typing import Any, NamedTuple

import pytest

from bucatini.bench import delay

pytestmark = pytest.mark.release  # the sanitizers' memory takes longer to get than a test lasts

SECONDS = 0.5


class Outcome(NamedTuple):
    arrived: list[tuple[int, float]]  # number of the frame, seconds since the first was sent
    counts: list[tuple[int, int, int, int]]


def carry(frames: int, size: int, **options: Any) -> Outcome:
    """Send frames into one side as fast as it takes them; what came out of the other."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    (left, left_line), (right, right_line) = pairs
    for sock in (left_line, right_line):
        sock.setblocking(False)
    for sock in (left, right, left_line, right_line):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    counts: list[tuple[int, int, int, int]] = []
    line = threading.Thread(
        target=lambda: counts.extend(
            delay.run(
                left_line.fileno(), right_line.fileno(), seconds=SECONDS, **{"backlog": 1, "rate": 1e9, **options}
            )
        )
    )
    arrived = []
    right.settimeout(2 * SECONDS)
    line.start()
    begin = time.monotonic()

    def send() -> None:
        for number in range(frames):
            left.send(number.to_bytes(4, "big").ljust(size, b"\0"))

    sender = threading.Thread(target=send)
    sender.start()
    try:
        while len(arrived) < frames:
            number = int.from_bytes(right.recv(70000)[:4], "big")
            arrived.append((number, time.monotonic() - begin))
    except TimeoutError:
        pass
    sender.join()
    line.join()
    for sock in (left, right, left_line, right_line):
        sock.close()
    return Outcome(arrived, counts)


def test_frames_arrive_late_in_order_and_all() -> None:
    found = carry(50, 100, delay=0.1)
    assert [number for number, _ in found.arrived] == list(range(50))
    assert all(at >= 0.1 for _, at in found.arrived)
    assert found.counts == [(50, 0, 0, 0), (0, 0, 0, 0)]


def test_the_rate_is_kept() -> None:
    # 100 frames of 1000 bytes at 4 Mbit/s take 0.2 s
    found = carry(100, 1000, delay=0.0, rate=4e6)
    assert len(found.arrived) == 100
    assert found.arrived[-1][1] >= 0.19


def test_a_full_queue_drops_the_tail() -> None:
    # 1 Mbit/s and 40 ms of queue take 5 frames of 1000 bytes (and the one in service) of those that come at once
    found = carry(50, 1000, delay=0.0, rate=1e6, backlog=0.04)
    carried, dropped, lost, _ = found.counts[0]
    assert carried + dropped == 50
    assert lost == 0
    assert 5 <= carried <= 20
    assert [number for number, _ in found.arrived][:5] == list(range(5))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_seed_says_which_frames_are_lost(seed: int) -> None:
    first, second = (carry(400, 100, delay=0.0, loss=0.1, seed=seed) for _ in range(2))
    numbers = [number for number, _ in first.arrived]
    assert numbers == [number for number, _ in second.arrived]
    assert 330 <= len(numbers) <= 390
    assert first.counts[0][2] == 400 - len(numbers)


def test_seeds_differ() -> None:
    lost = [[number for number, _ in carry(400, 100, delay=0.0, loss=0.1, seed=seed).arrived] for seed in (1, 2)]
    assert lost[0] != lost[1]


def test_some_frames_are_overtaken() -> None:
    found = carry(400, 100, delay=0.0, reorder=0.1, late=0.05)
    numbers = [number for number, _ in found.arrived]
    assert sorted(numbers) == list(range(400))
    assert numbers != sorted(numbers)
    assert found.counts[0][3] == sum(1 for _, at in found.arrived if at >= 0.05)


def test_frames_beyond_the_mtu_are_dropped() -> None:
    found = carry(3, 3000, delay=0.0, mtu=1500)
    assert found.arrived == []
    assert found.counts[0][1] == 3
