"""passt and a guest behind a stream socket: the link, the clients that come and go, and the whole of the network."""

import hashlib
import socket

import pytest

from system.machine import Machine, Passt
from system.namespaces import echo, receive, wait_until
from system.servers import sink, source
from system.topology import GATEWAY, HOST, SERVER, ANY

both_versions = pytest.mark.parametrize("version", [4, 6])
both_mtus = pytest.mark.parametrize("mtu", [1500, 65520])


@both_versions
@both_mtus
def test_64_megabytes_go_both_ways(
    passt: Passt, machine: Machine, version: int, mtu: int, payload: bytes
) -> None:
    data = payload
    digests: list[str] = []
    passt.background()
    machine.cable.connect(passt.socket)
    machine.configure(mtu)
    server = passt.topology.server
    down, up = server.serve_tcp(SERVER[version], source(data)), server.serve_tcp(SERVER[version], sink(digests))
    with machine.connect(SERVER[version], down.port) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection) == data
    with machine.connect(SERVER[version], up.port) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection) == b""
    wait_until(lambda: digests, "the end of the upload")
    assert digests == [hashlib.sha256(data).hexdigest()]
