"""Binding of the forwards' sockets: what is fatal, what is passed over, and how many descriptors may be taken."""

import errno
import os
import socket

import pytest

from bucatini.cli.options import PASST, PASTA, parse
from bucatini.errors import HostError
from bucatini.plan.ports import ForwardRule, parse_forward, rules
from bucatini.runtime import forwards
from bucatini.runtime.forwards import Bound, Versions, bind_forwards, bind_on_host, forward_rules, namespace_rules

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP


def rule(protocol: int, first: int, last: int, *, weak: bool = True, text: str = "all") -> ForwardRule:
    return ForwardRule(protocol, None, None, first, last, first, None, weak=weak, text=text)


def test_in_the_namespace_no_interface_is_its_loopback() -> None:
    settings = parse(
        ["-T", "80", "-T", "%eth0/80", "-T", "127.0.0.1/80", "-T", "192.0.2.1/81", "-U", "none"], PASTA
    ).settings
    found = [(rule.address, rule.interface, rule.first) for rule in namespace_rules(settings, (1, 2))]
    assert found == [(None, "lo", 80), (None, "eth0", 80), ("192.0.2.1", None, 81)]


@pytest.mark.parametrize("ports", ["all", "auto"])
def test_what_does_not_insist_leaves_a_port_to_an_address_that_has_it(ports: str) -> None:
    arguments = ["-T", ports, "-T", f"192.0.2.1/{ports}", "-U", "none"]
    found = [(rule.address, rule.interface) for rule in namespace_rules(parse(arguments, PASTA).settings, (1000, 2000))]
    assert set(found) == {(None, "lo")}


def on_both(rule: ForwardRule, port: int) -> Bound:
    return bind_on_host(rule, port, Versions(True, True), False)


class Host:
    """Binds: the descriptors are numbers that nobody has."""

    def __init__(self, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.next = 10
        self.taken: set[int] = set()
        self.privileged = 0  # ports below this one are not ours to bind
        self.said: list[str] = []
        monkeypatch.setattr(forwards, "getrlimit", lambda _: (limit, limit))

    def bind(self, rule: ForwardRule, port: int) -> Bound:
        if port < self.privileged:
            raise OSError(errno.EACCES, "")
        if port in self.taken:
            raise OSError(errno.EADDRINUSE, "")
        self.next += 1
        return Bound(self.next, rule.protocol, 0, port, port, b"", b"", 0)

    def ports(self, *rules: ForwardRule) -> dict[int, list[int]]:
        bound = bind_forwards([(rule, self.bind) for rule in rules], self.said.append)
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


def test_where_there_are_few_descriptors_half_of_them_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(forwards.SPARE_DESCRIPTORS, monkeypatch)
    assert len(host.ports(rule(TCP, 1, 32767))[TCP]) > 0
    assert host.next == forwards.SPARE_DESCRIPTORS // 2
    assert len(host.said) == 1


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


def test_exclusions_are_one_specification_whatever_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(100_000, monkeypatch)
    host.taken = {15005}
    spec = parse_forward("-t", "~15000,~15001,~15004,~15006")
    found = host.ports(*rules([spec], TCP, (32768, 60999)))[TCP]
    assert {15002, 15003, 15007} <= set(found)
    assert not {15000, 15001, 15004, 15005, 15006} & set(found)


@pytest.mark.parametrize("value", ["~22", "~1-1024", "all"])
def test_low_ports_that_may_not_be_bound_leave_the_others(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(100_000, monkeypatch)
    host.privileged = 1024
    found = host.ports(*rules([parse_forward("-t", value)], TCP, (32768, 60999)))[TCP]
    assert found[0] in {1024, 1025}
    assert found[-1] == 65535


def test_a_specification_of_which_no_piece_can_be_bound_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(100_000, monkeypatch)
    host.privileged = 65536
    with pytest.raises(HostError, match="cannot listen on any port for '-t ~22'"):
        host.ports(*rules([parse_forward("-t", "~22")], TCP, (32768, 60999)))


def test_what_is_named_does_not_stand_for_all_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(100_000, monkeypatch)
    host.taken = set(range(1, 65536)) - {80}
    with pytest.raises(HostError, match="cannot listen on any port for '-t all,80:8080'"):
        host.ports(*rules([parse_forward("-t", "all,80:8080")], TCP, (32768, 60999)))


def test_udp_follows_tcp_as_far_as_it_can_be_bound() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as busy:
        busy.bind(("::", 0))
        port = busy.getsockname()[1]
        wanted = forward_rules(parse(["-t", str(port)], PASST).settings, (1, 2))
        assert [rule.protocol for rule in wanted] == [TCP, UDP]
        bound = bind_forwards([(rule, on_both) for rule in wanted], pytest.fail)
    assert [(entry.protocol, entry.port) for entry in bound] == [(TCP, port)]
    for entry in bound:
        os.close(entry.fd)


def test_a_udp_port_that_was_named_must_be_bound() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as busy:
        busy.bind(("::", 0))
        port = busy.getsockname()[1]
        wanted = forward_rules(parse(["-u", str(port)], PASST).settings, (1, 2))
        with pytest.raises(HostError, match="cannot listen on UDP port"):
            bind_forwards([(rule, on_both) for rule in wanted], pytest.fail)


@pytest.mark.parametrize(("version", "ours", "other"), [(4, "127.0.0.1", "127.0.0.2"), (6, "::1", "::ffff:127.0.0.2")])
def test_flows_share_the_port_of_a_forward_unless_somebody_has_it_at_another_address(
    version: int, ours: str, other: str
) -> None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as busy:
        busy.bind((other, 0))
        port = busy.getsockname()[1]
        shared = []
        for address in (ours, None):
            wanted = ForwardRule(UDP, address, None, port, port, port, None, weak=False, text="")
            if address is None:
                busy.close()
            with socket.socket(fileno=bind_on_host(wanted, port, Versions(True, True), False).fd) as made:
                shared.append(made.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))
    # IPv4's are not in the way of IPv6
    assert shared == [version == 6, 1]
