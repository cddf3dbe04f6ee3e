"""The part of `bucatini.cli.demo` that runs inside the namespace, as the command of pasta.

Looks at its own network as any program could, fetches the page, measures, explains. Exit status 0 only if everything
worked; ends as a shell if it was told to.
"""

from __future__ import annotations

import os
import pwd
import socket
import sys
import time
from errno import EADDRNOTAVAIL
from typing import NamedTuple

from bucatini.host.netlink import Netlink

SECONDS = 1.0  # of each measurement
BUFFER = 1 << 20
TIMEOUT = 10.0


class Network(NamedTuple):
    """What the namespace has of one IP version."""

    interface: str
    addresses: tuple[str, ...]
    gateway: str


def main(argv: list[str] | None = None) -> int:
    """Arguments: a file in which the time to readiness appears, three ports, and "shell" or "leave"."""
    times, page, source, sink, after = sys.argv[1:] if argv is None else argv
    networks = {version: found for version in (4, 6) if (found := look(version)) is not None}
    print("1. A network namespace")
    print(f"   pasta made it and connected it in {_time_to_readiness(times):.0f} ms. Inside, it looks like the host:\n")
    for version, network in networks.items():
        print(f"     IPv{version}   {network.interface:8} {', '.join(network.addresses)}")
        print(f"            default route by way of {network.gateway}")
    for version in {4, 6} - set(networks):
        print(f"     IPv{version}   none: the host has none")
    if not networks:
        print("   Without any network there is nothing more to show.")
        return 1

    print("\n2. A page from a web server on the host")
    worked = True
    for version, network in networks.items():
        worked &= _show_page(version, network, int(page))
    print("   The server listens on the host's loopback, where nobody outside can reach it. In the namespace, the")
    print("   address of the gateway stands for it. Everything else is the same network as the host's.")

    print("\n3. Throughput: one TCP connection, one second each way")
    for network in list(networks.values())[:1]:
        worked &= _show_throughput(network, int(source), int(sink))

    sys.stdout.flush()
    if after == "shell":
        _shell(next(iter(networks.values())), int(page))
    return 0 if worked else 1


def look(version: int) -> Network | None:
    """The addresses and the default route of this namespace."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    link = Netlink()
    try:
        names = {info.ifindex: info.name for info in link.links()}
        routes = link.routes(family)
        addresses = link.addresses(family)
    finally:
        link.close()
    for route in routes:
        gateway = route.hops[0].gateway if route.hops else None
        if route.route.destination is None and gateway:
            index = route.hops[0].ifindex
            own = tuple(f"{at.address.address}/{at.address.prefix}" for at in addresses if at.ifindex == index)
            return Network(names.get(index, "?"), own, gateway)
    return None


def _time_to_readiness(path: str) -> float:
    """Milliseconds, as the host's side has measured them; it writes them down while we start."""
    deadline = time.monotonic() + TIMEOUT
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            return float("nan")
        time.sleep(0.001)
    with open(path) as file:
        return float(file.read()) * 1000


def _target(network: Network) -> str:
    """The gateway's address; a link-local one is only known together with the interface."""
    return f"{network.gateway}%{network.interface}" if network.gateway.startswith("fe80:") else network.gateway


def _connect(target: str, port: int) -> socket.socket:
    """Connect; the kernel may take a moment to make sure of an IPv6 address of ours before it lets us use it."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            return socket.create_connection((target, port), TIMEOUT)
        except OSError as error:
            if error.errno != EADDRNOTAVAIL or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _show_page(version: int, network: Network, port: int) -> bool:
    target = _target(network)
    shown = f"http://[{target}]:{port}/" if version == 6 else f"http://{target}:{port}/"
    start = time.monotonic()
    try:
        with _connect(target, port) as connection:
            connection.sendall(f"GET / HTTP/1.0\r\nHost: [{target}]\r\n\r\n".encode())
            answer = b""
            while data := connection.recv(4096):
                answer += data
    except OSError as error:
        print(f"   IPv{version}   {shown}\n          failed: {error}")
        return False
    spent = (time.monotonic() - start) * 1000
    head, _, body = answer.partition(b"\r\n\r\n")
    print(f"   IPv{version}   {shown}   in {spent:.1f} ms\n          {body.decode(errors='replace').strip()}")
    return b" 200 " in head


def _show_throughput(network: Network, source: int, sink: int) -> bool:
    try:
        print(f"   namespace -> host   {_gigabits(*_upload(_target(network), sink))}", flush=True)
        print(f"   host -> namespace   {_gigabits(*_download(_target(network), source))}", flush=True)
    except OSError as error:
        print(f"   failed: {error}")
        return False
    print("   (Both ends are Python programs on this machine; docs/performance.md has real measurements.)")
    return True


def _gigabits(octets: int, seconds: float) -> str:
    return f"{octets * 8 / seconds / 1e9:5.1f} Gbit/s"


def _upload(target: str, port: int) -> tuple[int, float]:
    """Send for a while; what counts is what the other side says it has got, and the time until it says so."""
    data = memoryview(bytes(BUFFER))
    with _connect(target, port) as connection:
        start = time.monotonic()
        while time.monotonic() - start < SECONDS:
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answer:
            taken = int(answer.readline(32))
        return taken, time.monotonic() - start


def _download(target: str, port: int) -> tuple[int, float]:
    buffer = bytearray(BUFFER)
    taken = 0
    with _connect(target, port) as connection:
        start = time.monotonic()
        while time.monotonic() - start < SECONDS:
            count = connection.recv_into(buffer)
            if not count:
                break
            taken += count
        return taken, time.monotonic() - start


def _shell(network: Network, port: int) -> None:
    """Become the user's shell."""
    try:
        fallback = pwd.getpwuid(os.getuid()).pw_shell
    except KeyError:
        fallback = ""
    shell = os.environ.get("SHELL") or fallback or "/bin/sh"
    address = f"[{network.gateway}]" if ":" in network.gateway else network.gateway
    print("\n4. Your turn: a shell inside the namespace, as root of it (and of nothing else). For example:")
    print("     ip address                        what this namespace has")
    print(f"     curl http://{address}:{port}/     the page again, it stays until you leave")
    print("     apt-get update, ssh, ping ...     whatever the host can reach")
    print("     exit                              leave; the namespace goes with you\n", flush=True)
    for candidate in (shell, "/bin/sh"):
        try:
            os.execvp(candidate, [candidate])
        except OSError:
            continue


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:
        # Whoever read our output has seen enough; flushing the rest at exit would fail again.
        os._exit(1)
