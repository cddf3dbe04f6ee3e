"""Port specifications: grammar, exclusions, and the rules they become."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bucatini.errors import UsageError
from bucatini.plan.ports import ForwardRule, parse_forward, rules

EPHEMERAL = (32768, 60999)


def found(*values: str) -> list[tuple[int, int, int, str | None, bool]]:
    specs = [parse_forward("-t", value) for value in values]
    return [(r.first, r.last, r.to, r.to_address, r.weak) for r in rules(specs, 6, EPHEMERAL)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("none", []),
        ("8080", [(8080, 8080, 8080, None, False)]),
        ("80-80:60-60", [(80, 80, 60, None, False)]),
        ("8000-8002:80", [(8000, 8002, 80, None, False)]),
        ("8000-8002:80-82,22", [(22, 22, 22, None, False), (8000, 8002, 80, None, False)]),
        ("all", [(1, 32767, 1, None, True), (61000, 65535, 61000, None, True)]),
        ("~22", [(1, 21, 1, None, True), (23, 32767, 23, None, True), (61000, 65535, 61000, None, True)]),
        ("20-30,~22-24", [(20, 21, 20, None, False), (25, 30, 25, None, False)]),
        ("20-30:120,~22", [(20, 21, 120, None, False), (23, 30, 123, None, False)]),
        ("~1-100,50", []),
        ("80:10.0.0.1", [(80, 80, 80, "10.0.0.1", False)]),
        ("8082:10.89.0.2/80", [(8082, 8082, 80, "10.89.0.2", False)]),
        ("22:[fd00::1]/23", [(22, 22, 23, "fd00::1", False)]),
        ("all:10.0.0.1,~2-65535", [(1, 1, 1, "10.0.0.1", True)]),
        ("40000", [(40000, 40000, 40000, None, False)]),  # named, so ephemeral is no matter
    ],
)
def test_ports_become_rules(value: str, expected: list[tuple[int, int, int, str | None, bool]]) -> None:
    assert found(value) == expected


@pytest.mark.parametrize(
    ("value", "address", "interface"),
    [
        ("127.0.0.1/80", "127.0.0.1", None),
        ("::1/80-80:80-80", "::1", None),
        ("[::]/8080", "::", None),
        ("::/5353:53", "::", None),
        ("%eth0/all", None, "eth0"),
        ("192.0.2.1%eth0/2022:22", "192.0.2.1", "eth0"),
        ("[fe80::1]%eth0/22", "fe80::1", "eth0"),
        ("0.0.0.0/8082:10.89.0.2/80", "0.0.0.0", None),
        ("8082:10.89.0.2/80", None, None),
    ],
)
def test_where_to_listen(value: str, address: str | None, interface: str | None) -> None:
    spec = parse_forward("-t", value)
    assert (spec.address, spec.interface) == (address, interface)


@pytest.mark.parametrize("value", ["80", "80-90", "70-81"])
def test_a_port_that_goes_to_two_places_is_an_error(value: str) -> None:
    with pytest.raises(UsageError, match="80"):
        found("80:81", value)


def test_the_same_twice_is_no_error() -> None:
    assert found("80:81", "80:81") == [(80, 80, 81, None, False)]


def test_the_same_port_of_different_addresses_is_no_contradiction() -> None:
    assert len(found("127.0.0.1/80:1", "127.0.0.2/80:2")) == 2


def test_a_named_port_is_taken_out_of_all() -> None:
    assert found("8080:80,all")[:2] == [(8080, 8080, 80, None, False), (1, 8079, 1, None, True)]


@given(st.text(alphabet="0123456789-:,~/[]%.alnoeu", max_size=40))
def test_any_text_gives_rules_in_bounds_or_a_clear_error(text: str) -> None:
    try:
        result = rules([parse_forward("-t", text)], 6, EPHEMERAL)
    except UsageError:
        return
    seen: set[int] = set()
    for rule in result:
        assert isinstance(rule, ForwardRule)
        assert 1 <= rule.first <= rule.last <= 65535
        assert rule.to + rule.last - rule.first <= 65535
        ports = set(range(rule.first, rule.last + 1))
        assert not ports & seen
        seen |= ports
