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
        ("80:[fd00::1]", [(80, 80, 80, "fd00::1", False)]),
        ("80:fd00::1", [(80, 80, 80, "fd00::1", False)]),
        ("80-81:10.0.0.1/90-91", [(80, 81, 90, "10.0.0.1", False)]),
        ("65535", [(65535, 65535, 65535, None, False)]),
        ("1-65535", [(1, 65535, 1, None, False)]),
        ("~1-65535", []),
        ("22,~22", []),
        ("all,~1-61000", [(61001, 65535, 61001, None, True)]),
        ("80:8080,~1-30000,~33000-65535,all", [(30001, 32767, 30001, None, True)]),
        ("10-20,~12-14,~13-16", [(10, 11, 10, None, False), (17, 20, 17, None, False)]),
    ],
)
def test_L5_ports_become_rules(value: str, expected: list[tuple[int, int, int, str | None, bool]]) -> None:
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
        ("22:[fd00::1]/23", None, None),
        ("FD00:0::1/22", "fd00::1", None),
        ("[fe80::1%eth0]/22", "fe80::1", "eth0"),
        ("8082:fd00::1/80", "8082:fd00::1", None),  # hence the brackets
    ],
)
def test_L5_where_to_listen(value: str, address: str | None, interface: str | None) -> None:
    spec = parse_forward("-t", value)
    assert (spec.address, spec.interface) == (address, interface)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("", "an empty element"),
        ("80,", "an empty element"),
        (",80", "an empty element"),
        ("0", "port 0 is not in 1..65535"),
        ("65536", "port 65536 is not in 1..65535"),
        ("000080", "is no port"),
        ("+80", "is no port"),
        ("8²", "is no port"),
        ("80-", "'' is no port"),
        ("-80", "'' is no port"),
        ("81-80", "range '81-80' runs backwards"),
        ("80-82:90-91", "'80-82' and '90-91' are not of one length"),
        ("80:90-91", "'80' and '90-91' are not of one length"),
        ("80-90:65530", "'80-90:65530' goes beyond port 65535"),
        ("80,80", "port 80 is given twice"),
        ("80-90,85", "port 85 is given twice"),
        ("1-100,2-3,50", "is given twice"),
        ("80:", "'' is no port"),
        ("80:10.0.0", "is no port"),
        ("80:10.0.0.1/", "'' is no port"),
        ("80:x/90", "'x' is no address"),
        ("80:[10.0.0.1]/90", "'[10.0.0.1]' is no address"),
        ("80:10.0.0.1%eth0/90", "is no address"),
        ("80:127.0.0.1", "'127.0.0.1' cannot be reached"),
        ("80:[::1]/80", "'::1' cannot be reached"),
        ("80:0.0.0.0", "'0.0.0.0' is no address of a single host"),
        ("all:ff02::1", "'ff02::1' is no address of a single host"),
        ("all:", "'' is no address"),
        ("all,all", "'all' is given twice"),
        ("80,none", "'none' stands alone"),
        ("10.0.0.1/none", "'none' stands alone"),
        ("none,none", "'none' stands alone"),
        ("~", "'' is no port"),
        ("~80:90", "is no port"),
        ("~all", "is no port"),
        ("/80", "nothing in front of the slash"),
        ("%/80", "'' is no interface name"),
        ("%a b/80", "'a b' is no interface name"),
        ("%sixteen-letters-/80", "is no interface name"),
        ("%\udcff/80", "is no interface name"),
        ("10.0.0.1/", "no ports behind the slash"),
        ("10.0.0/80", "'10.0.0' is no address"),
        ("[::1/80", "a bracket is not closed"),
        ("[::1]5/80", "'5' behind the bracket"),
        ("[10.0.0.1]/80", "is no IPv6 address"),
        ("224.0.0.1/80", "is a multicast address"),
        ("10.0.0.1/80:[fd00::1]/80", "are not of one IP version"),
        ("::/all:10.0.0.1", "are not of one IP version"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(value: str, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_forward("-t", value)
    assert str(caught.value).startswith("-t: invalid port specification '")
    assert what in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", ["auto", "%eth0/auto", "8080:80,auto", "auto,~22", "~22,auto", "auto,all"])
def test_auto_is_about_the_ports_that_its_list_means(value: str) -> None:
    spec = parse_forward("-t", value)
    assert spec.auto
    assert spec.excluded == (((22, 22),) if "22" in value else ())
    assert [(r.first, r.last, r.to, r.weak) for r in spec.ranges] == (
        [(8080, 8080, 80, False)] if "80" in value else [(1, 65535, 1, True)]
    )
    made = rules([spec], 6, EPHEMERAL)
    assert made
    assert all(rule.auto for rule in made)


# Several specifications


@pytest.mark.parametrize("value", ["80", "80-90", "70-81", "80:10.0.0.1/81", "0.0.0.0/80", "::1/80", "%eth0/80:82"])
def test_a_port_that_goes_to_two_places_is_an_error(value: str) -> None:
    for values in (("80:81", value), (value, "80:81")):
        with pytest.raises(UsageError, match=r"-t .*: port 80 goes elsewhere in '-t ") as caught:
            found(*values)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("other", ["8080:81", "8080", "8080:81,auto"])
def test_with_auto_too_a_port_that_was_named_goes_to_one_place(other: str) -> None:
    for values in (("8080:80,auto", other), (other, "8080:80,auto")):
        with pytest.raises(UsageError, match="port 8080 goes elsewhere"):
            found(*values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("8000-8010,auto", "8005"), [(8005, 8005, False), (8000, 8004, True), (8006, 8010, True)]),
        (("8000-8010", "8005,auto"), [(8000, 8010, False)]),
        (("8000-8010,auto", "127.0.0.1/8005-8010"), [(8005, 8010, False), (8000, 8004, True)]),
        (("~11-65535,auto", "all:10.0.0.1,~5-65535"), [(1, 4, False), (5, 10, True)]),
        (("~11-65535", "8:80,auto"), [(8, 8, True), (1, 7, False), (9, 10, False)]),
        (("~11-65535", "8,auto"), [(1, 10, False)]),
        (("~11-65535", "127.0.0.1/8-12,auto"), [(11, 12, True), (1, 10, False)]),
        (("127.0.0.1/80", "10.0.0.1/80,auto", "80,auto"), [(80, 80, False), (80, 80, True)]),
    ],
)
def test_what_has_a_port_in_any_case_goes_before_what_may_have_it(
    values: tuple[str, ...], expected: list[tuple[int, int, bool]]
) -> None:
    for order in (values, values[::-1]):
        made = rules([parse_forward("-t", value) for value in order], 6, EPHEMERAL)
        assert [(rule.first, rule.last, rule.auto) for rule in made] == expected


def test_two_kinds_of_all_are_an_error() -> None:
    with pytest.raises(UsageError, match="goes elsewhere"):
        found("all", "all:10.0.0.1")


def test_neither_of_two_that_only_overlap_covers_the_other() -> None:
    with pytest.raises(UsageError, match=r"-t 10\.0\.0\.1/80: port 80 is also in '-t %eth0/80'"):
        found("%eth0/80", "10.0.0.1/80")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("80:81", "80:81"), [(None, None, 80, 80, 81)]),
        (("80-90", "85-95"), [(None, None, 80, 90, 80), (None, None, 91, 95, 91)]),
        (("80-90", "82-83"), [(None, None, 80, 90, 80)]),
        (("80", "127.0.0.1/80"), [(None, None, 80, 80, 80)]),
        (("127.0.0.1/80", "80"), [(None, None, 80, 80, 80)]),
        (
            ("127.0.0.1/80-82", "81"),
            [("127.0.0.1", None, 80, 80, 80), ("127.0.0.1", None, 82, 82, 82), (None, None, 81, 81, 81)],
        ),
        (("0.0.0.0/80", "%eth0/80", "[::]/80"), None),
        (("0.0.0.0/80", "127.0.0.1/80"), [("0.0.0.0", None, 80, 80, 80)]),
        (("0.0.0.0/80", "[::]/80"), [("0.0.0.0", None, 80, 80, 80), ("::", None, 80, 80, 80)]),
        (("%eth0/80", "%eth1/80:90"), [(None, "eth0", 80, 80, 80), (None, "eth1", 80, 80, 90)]),
        (("10.0.0.1%eth0/80", "80"), [(None, None, 80, 80, 80)]),
        (("127.0.0.1/80:1", "127.0.0.2/80:2"), [("127.0.0.1", None, 80, 80, 1), ("127.0.0.2", None, 80, 80, 2)]),
        # What goes to an address takes only connections of its version
        (("80:10.0.0.1", "80:[fd00::1]"), [("0.0.0.0", None, 80, 80, 80), ("::", None, 80, 80, 80)]),
        (("80:10.0.0.1/1", "[::]/80:2"), [("0.0.0.0", None, 80, 80, 1), ("::", None, 80, 80, 2)]),
    ],
)  # fmt: skip
def test_specifications_add_up(
    values: tuple[str, ...], expected: list[tuple[str | None, str | None, int, int, int]] | None
) -> None:
    specs = [parse_forward("-t", value) for value in values]
    if expected is None:
        with pytest.raises(UsageError, match="is also in"):
            rules(specs, 6, EPHEMERAL)
        return
    assert [(r.address, r.interface, r.first, r.last, r.to) for r in rules(specs, 6, EPHEMERAL)] == expected


def test_a_named_port_is_taken_out_of_all() -> None:
    assert found("8080:80,all")[:2] == [(8080, 8080, 80, None, False), (1, 8079, 1, None, True)]


def test_named_ports_come_first_and_are_left_out_of_all_in_any_order() -> None:
    expected = [(80, 80, 1, None, False), (1, 79, 1, None, True), (81, 32767, 81, None, True)]
    assert found("all", "127.0.0.1/80:1")[:3] == expected
    assert found("127.0.0.1/80:1", "all")[:3] == expected


def test_exclusions_hold_for_their_own_specification() -> None:
    assert found("~80", "80:1")[0] == (80, 80, 1, None, False)


def test_ports_that_only_follow_may_all_be_taken() -> None:
    named, followed = (rules([parse_forward("-t", "80")], 17, EPHEMERAL, tolerant)[0] for tolerant in (False, True))
    assert (named.weak, named.follows) == (False, False)
    assert (followed.weak, followed.follows) == (True, True)


# Any text, and what it means


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


@given(st.text(max_size=40))
def test_no_text_gives_anything_but_a_specification_or_an_error_of_one_line(text: str) -> None:
    try:
        spec = parse_forward("-u", text)
    except UsageError as error:
        message = str(error)
        if not message.isprintable():
            pytest.fail(message)
    else:
        assert spec.text.isprintable()


TOP = 40  # of the small world of the model
HOSTS = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1",)}
LISTEN = ["", "0.0.0.0/", "192.0.2.1/", "[::]/", "[2001:db8::1]/"]
SMALL = st.integers(min_value=1, max_value=TOP)
ELEMENTS = st.lists(
    st.tuples(SMALL, st.integers(min_value=0, max_value=6), st.sampled_from([-2, 0, 0, 5, 30])), max_size=3
)


@st.composite
def specifications(draw: st.DrawFn) -> tuple[str, str, dict[int, int]]:
    """A specification as text: where it listens, its list, and the ports it names."""
    named: dict[int, int] = {}
    parts = []
    for first, more, shift in draw(ELEMENTS):
        if first + shift < 1 or any(port in named for port in range(first, first + more + 1)):
            continue
        parts.append(f"{first}-{first + more}:{first + shift}")
        named |= {port: port + shift for port in range(first, first + more + 1)}
    for low in draw(st.lists(SMALL, max_size=2)):
        parts.append(f"~{low}-{low + 2}")
        for port in range(low, low + 3):
            named.pop(port, None)
    if not any(not part.startswith("~") for part in parts):
        parts.append("50")
        named[50] = 50
    return draw(st.sampled_from(LISTEN)), ",".join(draw(st.permutations(parts))), named


@given(st.lists(specifications(), max_size=4))
def test_rules_mean_what_a_plain_model_says(drawn: list[tuple[str, str, dict[int, int]]]) -> None:
    # For each address of the host and port: where its connections must go
    wanted: dict[tuple[str, int], set[int]] = {}
    for listen, _, named in drawn:
        bare = listen.strip("[]/").replace("]", "")
        for version, hosts in HOSTS.items():
            for host in hosts:
                if bare in {"", host, {4: "0.0.0.0", 6: "::"}[version]}:
                    for port, to in named.items():
                        wanted.setdefault((host, port), set()).add(to)
    specs = [parse_forward("-t", listen + text) for listen, text, _ in drawn]
    contradicts = any(len(targets) > 1 for targets in wanted.values())
    if contradicts:
        with pytest.raises(UsageError, match="goes elsewhere"):
            rules(specs, 6, EPHEMERAL)
        return
    got: dict[tuple[str, int], set[int]] = {}
    count = 0
    for rule in rules(specs, 6, EPHEMERAL):
        for version, hosts in HOSTS.items():
            for host in hosts:
                if rule.address in {None, host, {4: "0.0.0.0", 6: "::"}[version]}:
                    for port in range(rule.first, rule.last + 1):
                        got.setdefault((host, port), set()).add(rule.to + port - rule.first)
                        count += 1
    assert got == wanted
    assert count == len(wanted)  # nothing is bound twice
