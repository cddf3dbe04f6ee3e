"""Types of the compiled `bucatini.datapath.loop`."""

from collections.abc import Callable
from typing import Protocol

FEATURE_TSO: int
FEATURE_USO: int

class SlowPath(Protocol):
    def on_frame(self, frame: bytes, now: int) -> list[bytes]: ...
    def next_timeout(self) -> int | None: ...
    def on_timeout(self, now: int) -> list[bytes]: ...

class DataPath:
    def __init__(self, flows: int = ..., listeners: int = ...) -> None: ...
    def settings(
        self,
        *,
        mtu: int,
        our_mac: bytes,
        no_tcp: bool,
        no_udp: bool,
        no_icmp: bool,
        freebind: bool,
        peek_off: bool,
        host_lo_to_ns_lo: bool = ...,
    ) -> None: ...
    def open_sockets(self, fd: int) -> None: ...
    def family(
        self,
        version: int,
        *,
        guest: bytes,
        learn: bool,
        ours: bytes,
        map_host_loopback: bytes = ...,
        map_guest_addr: bytes = ...,
        host: bytes = ...,
        dns_forward: bytes = ...,
        dns_host: bytes = ...,
        resolver_gateway: bytes = ...,
        outbound: bytes = ...,
        outbound_if: str = ...,
        scope_id: int = ...,
    ) -> None: ...
    def resolver(self, version: int, *, dns_host: bytes = ..., resolver_gateway: bytes = ...) -> None: ...
    def guest_mac(self, mac: bytes) -> None: ...
    def open_tap(self, fd: int, features: int) -> None: ...
    def make_faults(self, chances: dict[str, float], *, late: float = ..., seed: int = ...) -> None: ...
    def capture(self, fd: int) -> None: ...
    def set_trace(self, trace: Callable[[str, bytes], None]) -> None: ...
    def set_slow_path(self, slow: SlowPath) -> None: ...
    def add_listener(
        self,
        fd: int,
        protocol: int,
        version: int,
        port: int,
        to: int,
        *,
        address: bytes = ...,
        to_address: bytes = ...,
        scope_id: int = ...,
        guest: bool = ...,
        bypass: bool = ...,
    ) -> int: ...
    def remove_listener(self, index: int) -> None: ...
    def watch(self, fd: int, callback: Callable[[], None]) -> None: ...
    def unwatch(self, fd: int) -> None: ...
    def stop(self) -> None: ...
    def counters(self) -> dict[str, int]: ...
    @property
    def flows(self) -> int: ...
    def run(self) -> None: ...
