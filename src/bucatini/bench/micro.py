"""Micro-benchmarks of the packet path's pieces: `python -m bucatini.bench.micro`, with the options of pyperf.

`-o FILE` keeps the result, `python -m pyperf compare_to OLD NEW` compares two of them.
"""

from __future__ import annotations

import resource
import socket
import time

import pyperf  # type: ignore[import-untyped]

from bucatini.bench import loops
from bucatini.host.listeners import SocketDiag, add_ports, no_ports
from bucatini.wire import ethernet, ipv4, tcp

GUEST, SERVER = bytes([192, 0, 2, 15]), bytes([198, 51, 100, 1])


def frame(size: int) -> bytes:
    """A TCP segment of the guest with `size` bytes."""
    segment = tcp.Tcp(40000, 80, 1, 1, tcp.ACK, 1000, bytes(size)).emit(GUEST, SERVER)
    packet = ipv4.IPv4(GUEST, SERVER, ipv4.PROTOCOL_TCP, segment).emit()
    return ethernet.Ethernet(bytes(6), b"\x02" + bytes(5), ethernet.ETHERTYPE_IPV4, packet).emit()


LISTENERS = 1000


def look(count: int) -> float:
    """Find 1,000 listeners, as `auto` does every second; seconds for `count` times."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    kept = [socket.create_server(("127.0.0.1", 0)) for _ in range(LISTENERS)]
    source = SocketDiag()
    begin = time.perf_counter()
    for _ in range(count):
        found = no_ports()
        for part in source.parts():
            add_ports(found, part or (), loopback=True, others=False, not_ours=set())
    took = time.perf_counter() - begin
    source.close()
    for sock in kept:
        sock.close()
    return took


def main() -> None:
    runner = pyperf.Runner(program_args=("-m", "bucatini.bench.micro"))
    for size in (64, 1460, 65480):
        runner.bench_time_func(f"checksum of {size} bytes", loops.checksum, size)
    runner.bench_time_func("flow lookup, 10,000 flows", loops.flow_lookup)
    runner.bench_time_func("parse, checksum offloaded", loops.parse, frame(1460), True)
    runner.bench_time_func("parse, 1460 bytes with checksum", loops.parse, frame(1460), False)
    runner.bench_time_func("build of the headers of a segment", loops.build)
    runner.bench_time_func("TCP machine, a segment of data", loops.machine)
    runner.bench_time_func(f"auto, a look at {LISTENERS:,} listeners", look)


if __name__ == "__main__":
    main()
