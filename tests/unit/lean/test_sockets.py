"""`bucatini.lean.sockets` and `signals` beside the modules that they stand for."""

import os
import signal
import socket
from typing import Any

import pytest

from bucatini.lean import signals, sockets


@pytest.mark.parametrize(("lean", "whole"), [(sockets, socket), (signals, signal)])
def test_what_both_have_is_the_same_number(lean: Any, whole: Any) -> None:
    names = [name for name in dir(whole) if name.isupper() and hasattr(lean, name)]
    assert len(names) > 40
    assert not [name for name in names if getattr(lean, name) != getattr(whole, name)]


def test_a_pair_and_descriptors_on_it() -> None:
    ours, theirs = sockets.socketpair(sockets.AF_UNIX, sockets.SOCK_SEQPACKET)
    reader, writer = os.pipe()
    with ours, theirs:
        assert not os.get_inheritable(ours.fileno())
        assert sockets.send_fds(ours, [b"ab", b"c"], [reader, writer]) == 3
        data, fds, flags, _ = sockets.recv_fds(theirs, 100, 2)
        assert (data, len(fds), flags & socket.MSG_CTRUNC) == (b"abc", 2, 0)
        os.write(fds[1], b"through")
        assert os.read(reader, 100) == b"through"
    assert ours.fileno() == -1
    for fd in (reader, writer, *fds):
        os.close(fd)


def test_data_without_descriptors() -> None:
    ours, theirs = sockets.socketpair()
    with ours, theirs:
        ours.send(b"plain")
        assert sockets.recv_fds(theirs, 3, 2)[:2] == (b"pla", [])


def test_a_connection_is_taken() -> None:
    with sockets.socket(sockets.AF_INET, sockets.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as client:
            connection, address = listener.accept()
            with connection:
                assert address == client.getsockname()
                client.sendall(b"x")
                assert connection.recv(10) == b"x"
