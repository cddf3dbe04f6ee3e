"""Ports that forward themselves: what is followed, on what side, and what is left alone."""

import socket
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from bucatini.host.listeners import Listener
from bucatini.plan.ports import ForwardRule, parse_forward
from bucatini.plan.settings import Settings
from bucatini.runtime import auto
from bucatini.runtime.auto import AutoForwards
from bucatini.runtime.forwards import Versions, forward_rules, namespace_rules

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
ANY4, LOOPBACK4, OTHER4 = bytes(4), bytes([127, 0, 0, 1]), bytes([192, 0, 2, 7])
EPHEMERAL = (32768, 60999)
BOTH = Versions(True, True)
MILLISECOND = 1_000_000
SECOND = 1_000_000_000
MOST = 4096
OPTIONS = {(TCP, False): "tcp_ports", (UDP, False): "udp_ports", (TCP, True): "tcp_ns", (UDP, True): "udp_ns"}


def listener(port: int, address: bytes = ANY4, protocol: int = TCP, inode: int = 1) -> Listener:
    return Listener(protocol, 4 if len(address) == 4 else 0, port, address, inode)


class Side:
    """What is bound on one side."""

    def __init__(self) -> None:
        self.bound: list[Listener] = []
        self.hidden = False  # some of it is not looked at

    def parts(self) -> Iterator[list[Listener] | None]:
        for at in range(0, len(self.bound), 100):
            yield self.bound[at : at + 100]
        if self.hidden:
            yield None


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
        self.room = MOST
        self.gone = False

    def has_room(self) -> bool:
        return len(self.requests) < self.room

    def bind(
        self,
        done: Callable[[int, int], None],
        protocol: int,
        version: int,
        port: int,
        *,
        address: bytes,
        interface: str,
        scope_id: int = 0,
    ) -> None:
        self.requests.append((done, port, interface))


class World:
    """An `auto` between two sides that a test fills."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.guest, self.host, self.path, self.maker = Side(), Side(), Path(), Maker()
        self.taken: set[int] = set()  # ports of the host that somebody has
        self.asked: list[str | None] = []  # addresses of the host to be bound
        self.told: list[str] = []
        self.inodes = 1000
        monkeypatch.setattr(auto, "guest_source", lambda _: self.guest)
        monkeypatch.setattr(auto, "host_source", lambda: self.host)
        monkeypatch.setattr(auto, "serve", lambda path, entry, bypass: path.add(entry))
        monkeypatch.setattr(auto, "bind_on_host", self.bind)
        monkeypatch.setattr(auto, "inode", lambda fd: fd)

    def bind(self, rule: ForwardRule, port: int, versions: Versions, freebind: bool) -> auto.Bound:
        self.asked.append(rule.address)
        if port in self.taken:
            raise OSError
        self.inodes += 1
        return auto.Bound(self.inodes, rule.protocol, 0, port, rule.to, b"", b"", 0)

    def follow(
        self,
        *wanted: tuple[int, bool],
        ports: str = "auto",
        excluded: tuple[tuple[int, int], ...] = (),
        beside: str = "none",
        versions: Versions = BOTH,
        most: int = MOST,
        binder: Maker | None = None,
        interface: str | None = None,
        **settings: Any,
    ) -> AutoForwards:
        spec = parse_forward("-t", ports)
        spec = spec._replace(excluded=(*spec.excluded, *excluded), interface=interface or spec.interface)
        asked = Settings(
            udp_follows_tcp=False, **{OPTIONS[one]: (spec, parse_forward("-t", beside)) for one in wanted}, **settings
        )
        found = forward_rules(asked, EPHEMERAL), namespace_rules(asked, EPHEMERAL)
        inward, outward = ([rule for rule in made if rule.auto] for made in found)
        return AutoForwards(
            self.path,  # type: ignore[arg-type]
            self.maker,  # type: ignore[arg-type]
            binder=binder,  # type: ignore[arg-type]
            versions=versions,
            inward=inward,
            outward=outward,
            bound=[],
            settings=asked,
            most=most,
            notice=self.told.append,
        )


def turns(following: AutoForwards) -> Iterator[int]:
    """Look once: yields what there is to wait after each turn that this takes but the last."""
    while True:
        pause = following.scan()
        if following.look is None:
            assert pause >= SECOND
            return
        yield pause


def scan(following: AutoForwards) -> None:
    """Look once."""
    for _ in turns(following):
        pass


@pytest.fixture(params=[MILLISECOND])
def clock(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Have each piece of work take a millisecond, or what a test asks for."""
    ticks = count(step=request.param)
    monkeypatch.setattr(auto.time, "thread_time_ns", lambda: next(ticks))


as_measured = pytest.mark.parametrize("clock", [25_000], indirect=True)  # ns, to bind and serve a port


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_L4_a_port_of_the_guest_comes_and_goes(world: World) -> None:
    following = world.follow((TCP, False))
    scan(following)
    assert world.path.ports == []
    world.guest.bound = [listener(80), listener(8080)]
    scan(following)
    assert world.path.ports == [(TCP, 80), (TCP, 8080)]
    before = dict(world.path.serving)
    scan(following)
    assert world.path.serving == before  # neither bound again
    world.guest.bound = [listener(8080)]
    scan(following)
    assert world.path.ports == [(TCP, 8080)]


def test_what_is_left_alone(world: World) -> None:
    following = world.follow((TCP, False), excluded=((100, 199),), beside="443:8443")
    world.guest.bound = [
        listener(EPHEMERAL[0]),
        listener(EPHEMERAL[1]),
        listener(150),  # excluded
        listener(443),  # forwarded by name
        listener(53, protocol=UDP),
    ]
    scan(following)
    assert world.path.ports == []


@pytest.mark.parametrize(
    ("ports", "bound", "expected"),
    [
        ("8000-8010,auto", (7999, 8000, 8010, 8011), {8000: 8000, 8010: 8010}),
        ("8080:80,auto", (80, 8080), {8080: 80}),
        ("9000-9009:8000,~9001,auto", (8000, 8001, 8009, 9000), {9000: 8000, 9009: 8009}),
        (f"{EPHEMERAL[0]}-{EPHEMERAL[1]},auto", (EPHEMERAL[0], 80, EPHEMERAL[1]), {e: e for e in EPHEMERAL}),
        ("all,auto", (80, EPHEMERAL[0]), {80: 80}),
        ("8080:80,all,auto", (80, 8080), {80: 80, 8080: 80}),
    ],
)
def test_ports_beside_auto_are_those_that_may_be_followed(
    world: World, ports: str, bound: tuple[int, ...], expected: dict[int, int]
) -> None:
    following = world.follow((TCP, False), ports=ports)
    world.guest.bound = [listener(port) for port in bound]
    scan(following)
    assert {entry.port: entry.to for entry in world.path.serving.values()} == expected
    world.guest.bound = []
    scan(following)
    assert not world.path.serving


def test_a_port_that_leads_to_an_address_is_bound_for_its_version(world: World) -> None:
    following = world.follow((TCP, False), ports="80:192.0.2.9/80,auto")
    for address in (OTHER4, LOOPBACK4):  # where it does not lead
        world.guest.bound = [listener(80, address)]
        scan(following)
        assert not world.asked
    for address in (bytes(16), bytes([192, 0, 2, 9])):
        world.guest.bound = [listener(80, address)]
        scan(following)
        assert world.asked == ["0.0.0.0"]
    two = world.follow((TCP, False), ports="8081:192.0.2.7/80,8082:192.0.2.9/80,auto")
    world.guest.bound = [listener(80, OTHER4)]
    world.asked.clear()
    world.path.serving.clear()
    scan(two)
    assert world.path.ports == [(TCP, 8081)]


@pytest.mark.parametrize(
    ("ports", "beside", "bound", "expected"),
    [
        ("8080:80,auto", "all", (80, 8080), {8080: 80}),  # `all` is bound already, but for the port that was named
        ("8000-8010,auto", "127.0.0.1/8005", (8004, 8005), {8004: 8004}),
        ("auto", "80:8080", (80, 81), {81: 81}),
        ("8080:80,auto", "auto", (80, 8080), {80: 80, 8080: 80}),
        ("auto", "auto", (80,), {80: 80}),
    ],
)
def test_of_several_lists_each_port_is_one_of_them(
    world: World, ports: str, beside: str, bound: tuple[int, ...], expected: dict[int, int]
) -> None:
    following = world.follow((TCP, False), ports=ports, beside=beside)
    world.guest.bound = [listener(port) for port in bound]
    for _ in range(2):
        scan(following)
        assert {entry.port: entry.to for entry in world.path.serving.values()} == expected
    assert len(world.asked) == len(expected)


def test_of_a_long_list_only_what_leads_to_a_port_is_looked_at(world: World) -> None:
    ports = ",".join(f"{port}:{port + 20_000}" for port in range(1, 8001, 2))
    following = world.follow((TCP, False), ports=f"{ports},auto")
    world.guest.bound = [listener(port + 20_000) for port in range(1, 8001, 2)]
    assert all(len(following.leads[False].to(entry.port)) == 1 for entry in world.guest.bound)
    scan(following)
    assert world.path.ports == [(TCP, port) for port in range(1, 8001, 2)]


def test_L2_what_listens_on_loopback_alone_is_not_reached_from_outside(world: World) -> None:
    following = world.follow((TCP, False))
    world.guest.bound = [listener(80, LOOPBACK4), listener(81, OTHER4)]
    scan(following)
    assert world.path.ports == [(TCP, 81)]


def test_with_a_way_to_its_loopback_it_is_reached_from_the_hosts_loopback_only(world: World) -> None:
    world.guest.bound = [listener(80, LOOPBACK4)]
    for ports, expected in (
        ("auto", ["127.0.0.1"]),
        ("0.0.0.0/auto", ["127.0.0.1"]),
        ("127.0.0.2/auto", ["127.0.0.2"]),
        ("%lo/auto", ["127.0.0.1"]),
        ("192.0.2.1/auto", []),
        ("%eth0/auto", []),
    ):
        world.asked.clear()
        scan(world.follow((TCP, False), ports=ports, host_lo_to_ns_lo=True))
        assert world.asked == expected


def test_L4_a_forward_is_not_followed_back(world: World) -> None:
    """What we bind on one side is seen there by the follower of the other direction."""
    following = world.follow((TCP, False), (TCP, True))
    world.guest.bound = [listener(80)]
    scan(following)
    (bound,) = world.path.serving.values()
    world.host.bound = [listener(80, bytes(16), inode=bound.fd)]
    scan(following)
    assert world.maker.requests == []


def test_udp_follows_the_ports_of_tcp(world: World) -> None:
    following = world.follow((TCP, False), (UDP, False))
    world.guest.bound = [listener(443), listener(5353, protocol=UDP)]
    scan(following)
    assert world.path.ports == [(TCP, 443), (UDP, 443), (UDP, 5353)]


def test_a_port_that_somebody_has_is_tried_again(world: World) -> None:
    world.taken = {80}
    following = world.follow((TCP, False))
    world.guest.bound = [listener(80)]
    scan(following)
    assert world.path.ports == []
    world.taken = set()
    scan(following)
    assert world.path.ports == [(TCP, 80)]


def test_a_port_of_the_host_is_asked_for_in_the_namespace_once(world: World) -> None:
    following = world.follow((TCP, True), versions=Versions(True, False))
    world.host.bound = [listener(631, LOOPBACK4), listener(25, OTHER4)]
    scan(following)
    scan(following)  # not answered yet
    ((done, port, interface),) = world.maker.requests
    assert (port, interface) == (631, "lo")  # the other is not on loopback
    done(-1, 98)  # EADDRINUSE
    assert world.path.ports == []
    scan(following)
    world.maker.requests[-1][0](77, 0)
    assert world.path.ports == [(TCP, 631)]
    world.host.bound = []
    scan(following)
    assert world.path.ports == []


# A guest that means no good


@pytest.mark.usefixtures("clock")
def test_a_flood_of_listeners_is_followed_in_short_turns(world: World) -> None:
    following = world.follow((TCP, False), (UDP, False))
    ports = [*range(1, EPHEMERAL[0]), *range(EPHEMERAL[1] + 1, 1 << 16)]
    world.guest.bound = [listener(port) for port in ports[:1500]]
    most = before = 0
    for pause in turns(following):
        most, before = max(most, len(world.asked) - before), len(world.asked)
        # The loop has nineteen parts in twenty of the time
        assert SECOND > pause >= auto.SHARE * (auto.TURN_NS - MILLISECOND)
    assert most <= 2 * auto.TURN_NS // MILLISECOND
    assert len(world.path.serving) == 2 * 1500
    assert world.told == []


@pytest.mark.usefixtures("clock")
def test_thousands_of_forwards_go_in_short_turns(world: World) -> None:
    following = world.follow((TCP, False))
    world.guest.bound = [listener(port) for port in range(1, 3001)]
    scan(following)
    world.guest.bound = []
    most, before = 0, 3000
    for _ in turns(following):
        most, before = max(most, before - len(world.path.serving)), len(world.path.serving)
    assert world.path.ports == []
    assert 0 < most <= auto.TURN_NS // MILLISECOND


@as_measured
@pytest.mark.usefixtures("clock")
def test_some_hundred_listeners_need_no_second_look(world: World) -> None:
    following = world.follow((TCP, False), (UDP, False))
    world.guest.bound = [listener(port) for port in range(2000, 2500)]
    assert 0 < sum(turns(following)) < SECOND
    assert len(world.path.serving) == 1000


def test_without_room_nothing_is_bound_and_what_is_there_stays(world: World) -> None:
    following = world.follow((TCP, False), most=10)
    world.guest.bound = [listener(port) for port in range(1000, 1010)]
    scan(following)
    assert world.told == []
    there = dict(world.path.serving)
    assert len(there) == len(world.asked) == 10
    for ports in (range(1, 3000), range(1500, 500, -1), range(1000, 1100)):
        world.guest.bound = [listener(port) for port in ports]
        scan(following)
        assert world.path.serving == there
    assert len(world.asked) == 10
    assert set(world.told) == {"forwards"}
    world.guest.bound = [listener(port) for port in range(1005, 1100)]
    scan(following)
    assert len(world.path.serving) == 10
    assert set(world.path.ports) > {(TCP, port) for port in range(1005, 1010)}


@pytest.mark.parametrize("what", ["descriptors", "listeners"])
def test_what_cannot_be_served_is_tried_once_a_look(world: World, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    tried = []

    def fail(*_: object, **__: object) -> int:
        tried.append(what)
        raise OSError(24, "EMFILE")

    monkeypatch.setattr(auto, "bind_on_host" if what == "descriptors" else "serve", fail)
    monkeypatch.setattr(auto.os, "close", lambda fd: None)
    following = world.follow((TCP, False), (UDP, False))
    world.guest.bound = [listener(port) for port in range(1, 3000)]
    scan(following)
    assert len(tried) == 1
    assert world.told == ["forwards"]
    scan(following)
    assert len(tried) == 2


def test_where_not_all_was_looked_at_no_forward_ends(world: World) -> None:
    following = world.follow((TCP, False))
    world.guest.bound = [listener(80), listener(81)]
    scan(following)
    world.guest.bound = [listener(82)]
    world.guest.hidden = True
    scan(following)
    assert world.path.ports == [(TCP, 80), (TCP, 81), (TCP, 82)]
    assert set(world.told) == {"sockets"}
    world.guest.hidden = False
    scan(following)
    assert world.path.ports == [(TCP, 82)]


def test_ports_that_cannot_be_had_do_not_keep_others_waiting_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "TRIES", 1000)
    world.taken = set(range(1, 4000))
    following = world.follow((TCP, False))
    world.guest.bound = [listener(port) for port in range(1, 4002)]
    for _ in range(1000):
        following.scan()
        if world.path.ports:
            break
    assert (TCP, 4000) in world.path.ports
    # What is bound is looked at again before all of them were tried
    world.guest.bound = [listener(4001)]
    world.path.serving.clear()
    following.active.clear()
    scan(following)
    assert world.path.ports == [(TCP, 4001)]


def test_a_look_that_failed_is_begun_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    following = world.follow((TCP, False))
    world.guest.bound = [listener(80)]
    with monkeypatch.context() as patch:
        patch.setattr(auto, "add_ports", lambda *_, **__: 1 // 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                following.scan()
    scan(following)
    assert world.path.ports == [(TCP, 80)]


# What makers answer


def refuse(*_: object) -> auto.Bound:
    raise PermissionError


@pytest.mark.parametrize("gone", ["before it is asked", "before it answers"])
def test_a_binder_is_asked_again_when_the_interface_was_gone(
    world: World, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    binder = Maker()
    monkeypatch.setattr(auto, "bind_on_host", refuse)
    closed: list[int] = []
    following = world.follow((TCP, False), binder=binder, interface="lo")
    world.guest.bound = [listener(80)]

    def lost(*_: object, **__: object) -> None:
        raise OSError(19, "ENODEV")

    with monkeypatch.context() as patch:
        patch.setattr(auto.os, "close", closed.append)
        patch.setattr(auto, "ask_on_host" if gone == "before it is asked" else "made_by", lost)
        scan(following)
        for done, _, _ in binder.requests:
            done(55, 0)
    assert closed == ([] if gone == "before it is asked" else [55])
    assert world.path.ports == []
    assert following.asked == set()
    binder.requests.clear()
    scan(following)
    ((done, port, interface),) = binder.requests
    assert (port, interface) == (80, "lo")
    done(56, 0)
    assert world.path.ports == [(TCP, 80)]


@as_measured
@pytest.mark.usefixtures("clock")
def test_a_maker_is_asked_for_more_as_soon_as_it_has_room(world: World) -> None:
    world.maker.room = 64
    following = world.follow((TCP, True), versions=Versions(True, False))
    world.host.bound = [listener(port, LOOPBACK4) for port in range(1, 301)]
    fds, waited = count(5000), 0
    for pause in turns(following):
        waited += pause
        for done, _, _ in world.maker.requests:
            done(next(fds), 0)
        world.maker.requests.clear()
    for done, _, _ in world.maker.requests:
        done(next(fds), 0)
    assert world.path.ports == [(TCP, port) for port in range(1, 301)]
    assert waited < SECOND


@as_measured
@pytest.mark.usefixtures("clock")
def test_a_maker_that_is_silent_does_not_hold_up_what_needs_none(world: World) -> None:
    world.maker.room = 64
    following = world.follow((TCP, False), (TCP, True), versions=Versions(True, False))
    world.host.bound = [listener(port, LOOPBACK4) for port in range(1, 1001)]
    for port in range(2001, 2004):
        world.guest.bound.append(listener(port))
        assert sum(turns(following)) < 3 * SECOND
        assert world.path.ports[-1] == (TCP, port)
    assert len(world.maker.requests) == 64


def test_what_a_maker_has_bound_is_known_for_ours_before_the_next_look(world: World) -> None:
    following = world.follow((TCP, False), (TCP, True))
    world.host.bound = [listener(631, LOOPBACK4)]
    scan(following)
    ((done, _, _),) = world.maker.requests
    world.guest.bound = [listener(631, inode=77)]  # it has bound, and not answered yet
    following.scan()
    assert following.look is not None
    done(77, 0)
    scan(following)
    assert [entry.guest for entry in world.path.serving.values()] == [True]
