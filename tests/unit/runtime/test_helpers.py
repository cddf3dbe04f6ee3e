"""The processes left outside the wall, from inside: a start waits until they are confined."""

import os
from collections.abc import Iterator
from typing import cast

import pytest

from bucatini.errors import HostError
from bucatini.guest import maker
from bucatini.host import isolation
from bucatini.host.view import NOTHING, HostWatch, Own
from bucatini.lean import sockets
from bucatini.runtime import lookout


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe2(os.O_DIRECT)
    yield reader, writer
    os.close(reader)


def test_a_lookout_that_is_confined_tells_of_what_changes(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    told: list[object] = []
    isolation.tell_confined(writer)
    end = lookout.Lookout(reader, lambda: told.append("gone"), told.append, lambda *found: told.append(found))
    os.write(writer, lookout.packed((("192.0.2.1", "2001:db8::1"), ("example.org",))))
    os.write(writer, lookout.packed_addresses((Own("192.0.2.2", 3), NOTHING)))
    os.write(writer, lookout.GONE)
    os.set_blocking(reader, False)
    assert end.on_readable()
    assert told == [(("192.0.2.1", "2001:db8::1"), ("example.org",)), (Own("192.0.2.2", 3), Own("", 0)), "gone"]
    os.close(writer)
    assert not end.on_readable()


def test_a_lookout_that_ends_instead_is_an_error(pipe: tuple[int, int]) -> None:
    os.close(pipe[1])
    with pytest.raises(HostError, match="confine the process that watches files"):
        lookout.Lookout(pipe[0], lambda: None, lambda resolvers: None, lambda v4, v6: None)


def test_a_lookout_that_does_not_answer_is_an_error(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "CONFINED_MS", 10)
    with pytest.raises(HostError, match="timed out"):
        lookout.Lookout(pipe[0], lambda: None, lambda resolvers: None, lambda v4, v6: None)
    os.close(pipe[1])


class Host:
    """A host whose changes matter as it is told."""

    def __init__(self) -> None:
        self.now = (Own("192.0.2.2", 2), NOTHING)
        self.matters = True
        self.looks = 0
        self.changes = self

    def seen(self) -> bool:
        return self.matters

    def look(self) -> tuple[Own, Own]:
        self.looks += 1
        if self.looks == 3:
            raise HostError("list interfaces", 12)
        return self.now


def test_the_hosts_addresses_are_looked_at_when_changes_have_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    monkeypatch.setattr(lookout.time, "monotonic", lambda: 0.0)  # looking takes no time
    follow = lookout.Addresses(cast("HostWatch", host), host.now)
    assert follow.wait(10) == 1  # at once: they may have changed before somebody listened
    assert follow.changed(10) is None
    assert host.looks == 1
    assert follow.wait(10) is None
    host.now = (Own("203.0.113.5", 3), NOTHING)
    assert follow.changed(11) is None  # nobody has said that there is anything
    assert follow.changed(12, told=True) is None
    assert follow.wait(12.1) in (100, 101)
    assert follow.changed(12.19) is None
    assert host.looks == 1
    assert follow.changed(12.21) == host.now
    assert follow.wait(12.21) is None
    assert host.looks == 2
    # A look that fails is made again
    host.now = (NOTHING, NOTHING)
    assert follow.changed(20, told=True) is None
    assert follow.changed(21) is None
    assert follow.changed(21 + lookout.RETRY - 0.1) is None
    assert host.looks == 3
    assert follow.changed(21 + lookout.RETRY) == host.now


def test_changes_without_end_do_not_put_a_look_off(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    follow = lookout.Addresses(cast("HostWatch", host), host.now)
    monkeypatch.setattr(lookout.time, "monotonic", lambda: 0.0)
    assert follow.changed(10) is None
    for tenth in range(110, 116):
        assert follow.changed(tenth / 10, told=True) is None
    assert host.looks > 1


def test_changes_that_come_all_the_time_wake_nobody_for_each() -> None:
    host = Host()
    host.matters = False
    follow = lookout.Addresses(cast("HostWatch", host), host.now)
    assert follow.changed(10) is None
    assert follow.hears(10)
    assert follow.changed(11, told=True) is None
    assert not follow.hears(11.1)
    assert follow.wait(11.1) in (100, 101)
    assert follow.hears(11.2)
    assert follow.wait(11.2) is None
    assert host.looks == 1


def test_looking_takes_one_part_in_twenty_of_the_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    follow = lookout.Addresses(cast("HostWatch", host), host.now)
    monkeypatch.setattr(lookout.time, "monotonic", lambda: 13.0)  # it took three seconds
    assert follow.changed(10) is None
    assert follow.changed(13, told=True) is None
    assert follow.changed(69) is None
    assert host.looks == 1
    assert follow.changed(70) is None
    assert host.looks == 2


@pytest.mark.parametrize("message", [b"", b"-"])
def test_a_maker_that_is_not_confined_is_an_error(message: bytes) -> None:
    ours, theirs = sockets.socketpair(sockets.AF_UNIX, sockets.SOCK_SEQPACKET)
    if message:
        theirs.send(message)
    theirs.close()
    with ours, pytest.raises(HostError, match="confine the process that makes sockets"):
        maker.Maker(ours.fileno())


def test_a_maker_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "CONFINED_MS", 10)
    ours, theirs = sockets.socketpair(sockets.AF_UNIX, sockets.SOCK_SEQPACKET)
    with ours, theirs, pytest.raises(HostError, match="timed out"):
        maker.Maker(ours.fileno())


def test_a_maker_that_is_confined_is_asked() -> None:
    ours, theirs = sockets.socketpair(sockets.AF_UNIX, sockets.SOCK_SEQPACKET)
    with theirs:
        isolation.tell_confined(theirs.fileno())
        made = maker.Maker(ours.detach())
        assert made.has_room()
        made.sock.close()
