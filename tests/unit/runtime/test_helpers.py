"""The processes left outside the wall, from inside: a start waits until they are confined."""

import os
from collections.abc import Iterator

import pytest

from bucatini.errors import HostError
from bucatini.guest import maker
from bucatini.host import isolation
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
    end = lookout.Lookout(reader, lambda: told.append("gone"), told.append)
    os.write(writer, lookout.packed((("192.0.2.1", "2001:db8::1"), ("example.org",))))
    os.write(writer, lookout.GONE)
    os.set_blocking(reader, False)
    assert end.on_readable()
    assert told == [(("192.0.2.1", "2001:db8::1"), ("example.org",)), "gone"]
    os.close(writer)
    assert not end.on_readable()


def test_a_lookout_that_ends_instead_is_an_error(pipe: tuple[int, int]) -> None:
    os.close(pipe[1])
    with pytest.raises(HostError, match="confine the process that watches files"):
        lookout.Lookout(pipe[0], lambda: None, lambda resolvers: None)


def test_a_lookout_that_does_not_answer_is_an_error(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "CONFINED_MS", 10)
    with pytest.raises(HostError, match="timed out"):
        lookout.Lookout(pipe[0], lambda: None, lambda resolvers: None)
    os.close(pipe[1])


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
