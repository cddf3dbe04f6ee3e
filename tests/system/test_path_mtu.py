"""A link on the way that is narrower or wider than those at the ends, and the router's ICMP "too big"."""

import errno
import hashlib
import random
import socket
import struct

import pytest

from system.namespaces import NamedNamespace, Namespace, receive, wait_until
from system.servers import sink, source
from system.topology import ANY, FAR, HOST, Pasta
from system.users import only_unprivileged

pytestmark = only_unprivileged
both_versions = pytest.mark.parametrize("version", [4, 6])
mtus = pytest.mark.parametrize("mtu", [1280, 1400, 1500, 9000])
JUMBO = 9000
IP_MTU = {4: (socket.IPPROTO_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}  # linux/in.h, linux/in6.h
IP_RECVERR = {4: (socket.IPPROTO_IP, 11), 6: (socket.IPPROTO_IPV6, 25)}
DATAGRAM = socket.SOCK_DGRAM


def widths(pasta: Pasta, far: NamedNamespace, towards_host: int, towards_far: int) -> None:
    """The MTU of the router on each of its links.

    The ends believe in more, so they offer a segment size that does not fit, and the router has to say so.
    """
    pasta.topology.host.ip(f"link set host0 mtu {JUMBO}")
    far.ip(f"link set far0 mtu {JUMBO}")
    pasta.topology.server.ip(f"link set server0 mtu {towards_host}", f"link set server2 mtu {towards_far}")


def learnt(namespace: Namespace, address: str) -> int:
    """The MTU of the way to `address` as the kernel knows it."""
    with namespace.connect(address, 9, kind=DATAGRAM) as probe:
        return probe.getsockopt(*IP_MTU[6 if ":" in address else 4])


@both_versions
@mtus
def test_T22_an_upload_finds_the_width_of_the_path(
    pasta: Pasta, far: NamedNamespace, version: int, mtu: int, payload: bytes
) -> None:
    widths(pasta, far, JUMBO, mtu)
    data = payload[: 16 << 20]
    digests: list[str] = []
    server = far.serve_tcp(FAR[version], sink(digests))
    with pasta.guest("--config-net").connect(FAR[version], server.port) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection) == b""
    wait_until(lambda: digests, "the end of the upload")
    assert digests == [hashlib.sha256(data).hexdigest()]
    assert learnt(pasta.topology.host, FAR[version]) == mtu


@both_versions
@mtus
def test_T22_a_download_finds_the_width_of_the_path(
    pasta: Pasta, far: NamedNamespace, version: int, mtu: int, payload: bytes
) -> None:
    widths(pasta, far, mtu, JUMBO)
    data = payload[: 16 << 20]
    server = far.serve_tcp(FAR[version], source(data))
    with pasta.guest("--config-net").connect(FAR[version], server.port) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection) == data
    assert learnt(far, HOST[version]) == mtu


@both_versions
@mtus
def test_T22_a_forwarded_connection_finds_the_width_of_the_path(
    pasta: Pasta, far: NamedNamespace, version: int, mtu: int, payload: bytes
) -> None:
    widths(pasta, far, JUMBO, mtu)
    data = payload[: 4 << 20]
    guest = pasta.guest("--config-net", "-t", "8000")
    guest.serve_tcp(ANY[version], source(data), port=8000)
    with far.connect(HOST[version], 8000) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection) == data
    assert learnt(pasta.topology.host, FAR[version]) == mtu


@both_versions
@pytest.mark.parametrize("mtu", [1280, 1400, 1500])
def test_a_datagram_that_a_router_could_not_pass_on_is_reported_and_the_next_arrives(
    pasta: Pasta, far: NamedNamespace, version: int, mtu: int
) -> None:
    widths(pasta, far, JUMBO, mtu)
    server = far.serve_udp(FAR[version], lambda data, _: hashlib.sha256(data).digest())
    connection = pasta.guest("--config-net").connect(FAR[version], server.port, kind=DATAGRAM)
    connection.setsockopt(*IP_RECVERR[version], 1)
    connection.send(b"small")
    assert connection.recv(64) == hashlib.sha256(b"small").digest()
    data = random.Random(mtu).randbytes(8000)
    connection.send(data)
    # EMSGSIZE with the router's MTU in it, as if the guest's kernel had sent the datagram itself: ip(7)
    with pytest.raises(OSError) as caught:
        connection.recv(64)
    assert caught.value.errno == errno.EMSGSIZE
    _, ancillary, _, _ = connection.recvmsg(1 << 16, 512, socket.MSG_ERRQUEUE)
    error = next(content for _, _, content in ancillary if len(content) >= 32)
    assert struct.unpack_from("=BB", error, 5) == {4: (3, 4), 6: (2, 0)}[version]
    assert struct.unpack_from("=I", error, 8)[0] == mtu
    assert connection.getsockopt(*IP_MTU[version]) == mtu
    connection.send(data)  # in fragments now
    assert connection.recv(64) == hashlib.sha256(data).digest()
