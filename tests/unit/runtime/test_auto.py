"""Ports that forward themselves: what is followed, on what side, and what is left alone."""

import socket
from collections.abc import Callable
from typing import Any

import pytest

from bucatini.host.listeners import Listener
from bucatini.plan.ports import ForwardRule, ForwardSpec
from bucatini.plan.settings import Settings
from bucatini.runtime import auto
from bucatini.runtime.auto import AutoForwards, Follower
from bucatini.runtime.forwards import Versions

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
ANY4, LOOPBACK4, OTHER4 = bytes(4), bytes([127, 0, 0, 1]), bytes([192, 0, 2, 7])
EPHEMERAL = (32768, 60999)
BOTH = Versions(True, True)


def listener(port: int, address: bytes = ANY4, protocol: int = TCP, inode: int = 1) -> Listener:
    return Listener(protocol, 4 if len(address) == 4 else 0, port, address, inode)


class Side:
    """What is bound on one side."""

    def __init__(self) -> None:
        self.bound: list[Listener] = []

    def listeners(self) -> list[Listener]:
        return self.bound


class Path:
    """The data path's listeners, by handle."""

    def __init__(self) -> None:
        self.serving: dict[int, Any] = {}
        self.handles = 0

    def add(self, entry: Any, **_: object) -> int:
        self.handles += 1
        self.serving[self.handles] = entry
        return self.handles

    def remove_listener(self, handle: int) -> None:
        del self.serving[handle]

    @property
    def ports(self) -> list[tuple[int, int]]:
        return sorted((entry.protocol, entry.port) for entry in self.serving.values())


class Maker:
    """Binds in the namespace: a request waits until it is answered."""

    def __init__(self) -> None:
        self.requests: list[tuple[Callable[[int, int], None], int, str]] = []

    def has_room(self) -> bool:
        return True

    def bind(
        self,
        done: Callable[[int, int], None],
        protocol: int,
        version: int,
        port: int,
        *,
        address: bytes,
        interface: str,
    ) -> None:
        self.requests.append((done, port, interface))


class World:
    """An `auto` between two sides that a test fills."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.guest, self.host, self.path, self.maker = Side(), Side(), Path(), Maker()
        self.taken: set[int] = set()  # ports of the host that somebody has
        self.inodes = 1000
        monkeypatch.setattr(auto, "guest_source", lambda _: self.guest)
        monkeypatch.setattr(auto, "host_source", lambda: self.host)
        monkeypatch.setattr(auto, "serve", lambda path, entry, bypass: path.add(entry))
        monkeypatch.setattr(auto, "bind_on_host", self.bind)
        monkeypatch.setattr(auto, "inode", lambda fd: fd)

    def bind(self, rule: ForwardRule, port: int, versions: Versions, freebind: bool) -> auto.Bound:
        if port in self.taken:
            raise OSError
        self.inodes += 1
        return auto.Bound(self.inodes, rule.protocol, 0, port, port, b"", b"", 0)

    def follow(
        self,
        *wanted: tuple[int, bool],
        excluded: tuple[tuple[int, int], ...] = (),
        inward: list[ForwardRule] | None = None,
        versions: Versions = BOTH,
        **settings: Any,
    ) -> AutoForwards:
        spec = ForwardSpec("-t auto", auto=True, excluded=excluded)
        return AutoForwards(
            [Follower(protocol, guest, spec) for protocol, guest in wanted],
            self.path,  # type: ignore[arg-type]
            self.maker,  # type: ignore[arg-type]
            binder=None,
            versions=versions,
            ephemeral=EPHEMERAL,
            inward=inward or [],
            outward=[],
            bound=[],
            settings=Settings(**settings),
        )


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_L4_a_port_of_the_guest_comes_and_goes(world: World) -> None:
    following = world.follow((TCP, False))
    following.scan()
    assert world.path.ports == []
    world.guest.bound = [listener(80), listener(8080)]
    following.scan()
    assert world.path.ports == [(TCP, 80), (TCP, 8080)]
    before = dict(world.path.serving)
    following.scan()
    assert world.path.serving == before  # neither bound again
    world.guest.bound = [listener(8080)]
    following.scan()
    assert world.path.ports == [(TCP, 8080)]


def test_what_is_left_alone(world: World) -> None:
    named = ForwardRule(TCP, None, None, 443, 443, 8443, None, weak=False, text="-t 443:8443")
    following = world.follow((TCP, False), excluded=((100, 199),), inward=[named])
    world.guest.bound = [
        listener(EPHEMERAL[0]),
        listener(EPHEMERAL[1]),
        listener(150),  # excluded
        listener(443),  # forwarded by name
        listener(53, protocol=UDP),
    ]
    following.scan()
    assert world.path.ports == []


def test_L2_what_listens_on_loopback_alone_is_not_reached_from_outside(world: World) -> None:
    following = world.follow((TCP, False))
    world.guest.bound = [listener(80, LOOPBACK4), listener(81, OTHER4)]
    following.scan()
    assert world.path.ports == [(TCP, 81)]


def test_with_a_way_to_its_loopback_it_is_reached_from_the_hosts_loopback_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    monkeypatch.setattr(
        auto, "bind_on_host", lambda rule, port, *rest: asked.append(rule.address) or world.bind(rule, port, *rest)
    )
    following = world.follow((TCP, False), host_lo_to_ns_lo=True)
    world.guest.bound = [listener(80, LOOPBACK4)]
    following.scan()
    assert asked == ["127.0.0.1"]


def test_L4_a_forward_is_not_followed_back(world: World) -> None:
    """What we bind on one side is seen there by the follower of the other direction."""
    following = world.follow((TCP, False), (TCP, True))
    world.guest.bound = [listener(80)]
    following.scan()
    (bound,) = world.path.serving.values()
    world.host.bound = [listener(80, bytes(16), inode=bound.fd)]
    following.scan()
    assert world.maker.requests == []


def test_udp_follows_the_ports_of_tcp(world: World) -> None:
    following = world.follow((TCP, False), (UDP, False))
    world.guest.bound = [listener(443), listener(5353, protocol=UDP)]
    following.scan()
    assert world.path.ports == [(TCP, 443), (UDP, 443), (UDP, 5353)]


def test_a_port_that_somebody_has_is_tried_again(world: World) -> None:
    world.taken = {80}
    following = world.follow((TCP, False))
    world.guest.bound = [listener(80)]
    following.scan()
    assert world.path.ports == []
    world.taken = set()
    following.scan()
    assert world.path.ports == [(TCP, 80)]


def test_a_port_of_the_host_is_asked_for_in_the_namespace_once(world: World) -> None:
    following = world.follow((TCP, True), versions=Versions(True, False))
    world.host.bound = [listener(631, LOOPBACK4), listener(25, OTHER4)]
    following.scan()
    following.scan()  # not answered yet
    ((done, port, interface),) = world.maker.requests
    assert (port, interface) == (631, "lo")  # the other is not on loopback
    done(-1, 98)  # EADDRINUSE
    assert world.path.ports == []
    following.scan()
    world.maker.requests[-1][0](77, 0)
    assert world.path.ports == [(TCP, 631)]
    world.host.bound = []
    following.scan()
    assert world.path.ports == []
