"""Binding of the forwards' sockets: what is fatal, what is passed over, and how many descriptors may be taken."""

import errno
import socket

import pytest

from bucatini.errors import HostError
from bucatini.plan.ports import ForwardRule
from bucatini.runtime import forwards
from bucatini.runtime.forwards import Bound, bind_forwards

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP


def rule(protocol: int, first: int, last: int, *, weak: bool = True, text: str = "all") -> ForwardRule:
    return ForwardRule(protocol, None, None, first, last, first, None, weak=weak, text=text)


class Host:
    """Binds: the descriptors are numbers that nobody has."""

    def __init__(self, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.next = 10
        self.taken: set[int] = set()
        self.said: list[str] = []
        monkeypatch.setattr(forwards, "getrlimit", lambda _: (limit, limit))

    def bind(self, rule: ForwardRule, port: int) -> Bound:
        if port in self.taken:
            raise OSError(errno.EADDRINUSE, "")
        self.next += 1
        return Bound(self.next, rule.protocol, 0, port, port, b"", b"", 0)

    def ports(self, *rules: ForwardRule) -> dict[int, list[int]]:
        bound = bind_forwards(rules, self.bind, self.said.append)
        return {protocol: [e.port for e in bound if e.protocol == protocol] for protocol in (TCP, UDP)}


def test_with_enough_descriptors_all_ports_are_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(100_000, monkeypatch)
    found = host.ports(rule(TCP, 1, 32767), rule(TCP, 61000, 65535), rule(UDP, 1, 32767), rule(UDP, 61000, 65535))
    assert found[TCP] == found[UDP] == [*range(1, 32768), *range(61000, 65536)]
    assert host.said == []


def test_what_asks_for_all_shares_the_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(20_000, monkeypatch)
    found = host.ports(rule(TCP, 1, 32767), rule(TCP, 61000, 65535), rule(UDP, 1, 32767), rule(UDP, 61000, 65535))
    assert found[TCP][-1] == pytest.approx(9488, abs=20)
    assert found[UDP][-1] == pytest.approx(9488, abs=20)
    assert host.next <= 20_000 - forwards.SPARE_DESCRIPTORS
    assert [text.partition(":")[0] for text in host.said] == ["'all'", "'all'"]
    assert "TCP port" in host.said[0]
    assert "UDP port" in host.said[1]


def test_what_one_does_not_need_is_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(20_000, monkeypatch)
    found = host.ports(rule(TCP, 1, 100, text="~101-65535"), rule(UDP, 1, 32767))
    assert len(found[TCP]) == 100
    assert len(found[UDP]) == pytest.approx(18_866, abs=20)


def test_ports_that_were_named_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(2000, monkeypatch)
    assert len(host.ports(rule(TCP, 1, 1500, weak=False, text="1-1500"))[TCP]) == 1500
    assert host.said == []


def test_a_busy_port_is_fatal_where_it_was_named_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(20_000, monkeypatch)
    host.taken = {80}
    assert 80 not in host.ports(rule(TCP, 1, 100))[TCP]
    with pytest.raises(HostError, match="cannot listen on TCP port 80 for '80'"):
        host.ports(rule(TCP, 80, 80, weak=False, text="80"))
    with pytest.raises(HostError, match="cannot listen on any port"):
        host.ports(rule(TCP, 80, 80))
