"""TCP from the guest, by real programs."""

import pytest

from system.namespaces import echo
from system.topology import SERVER, Pasta


@pytest.mark.parametrize("version", [4, 6])
def test_echo(pasta: Pasta, version: int) -> None:
    server = pasta.topology.server.serve_tcp(SERVER[version], echo)
    guest = pasta.guest("--config-net")
    with guest.connect(SERVER[version], server.port) as connection:
        connection.sendall(b"hello")
        assert connection.recv(5) == b"hello"
    assert guest.finish() == 0
