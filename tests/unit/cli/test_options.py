"""The option table: values, combinations, and the argument lists of those who call us."""

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from bucatini.cli.getopt import GetoptError
from bucatini.cli.options import OPTIONS, PASST, PASTA, PER_VERSION, Option, in_mode, parse
from bucatini.cli.usage import WIDTH, usage, version
from bucatini.errors import NotYetError, UsageError
from bucatini.plan.settings import Settings


def settings(line: str) -> Settings:
    return parse(line.split()).settings


# Callers: each list as it was recorded

CALLERS = """
--config-net --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet --netns \
/run/user/1000/netns/netns-1 --map-guest-addr 169.254.1.2
--config-net -t 8080-8080:80-80 -u 8053-8053:53-53 -t 127.0.0.1/8090-8092:90-92 --dns-forward 169.254.1.1 -T \
none -U none --no-map-gw --quiet --netns /run/n --map-guest-addr 169.254.1.2
--config-net -a 192.168.99.5 -n 24 -g 192.168.99.1 -I eth9 -m 1400 --dns-forward 169.254.1.1 -t none -u none \
-T none -U none --no-map-gw --quiet --netns /run/n --map-guest-addr 169.254.1.2
--config-net --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet --netns \
/proc/1/ns/net --map-guest-addr 169.254.1.2
--config-net --pid /run/x.pid --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet \
--netns /run/rootless-netns --map-guest-addr 169.254.1.2
--foreground --stderr --ns-ifname=tap0 --mtu=65520 --no-dhcp --no-ra --address=10.0.2.100 --netmask=24 \
--gateway=10.0.2.2 --dns-forward=10.0.2.3 --no-map-gw --ipv4-only --tcp-ports=none --udp-ports=none 1234
--stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 --gateway=10.0.2.2 \
--dns-forward=10.0.2.3 --userns=/proc/12/ns/user --netns=/tmp/netns --tcp-ports=none --udp-ports=none
--config-net -f -q -a 10.0.0.2 -n 255.255.255.0 -g 10.0.0.1 -4 -I eth0 4321
-f --netns /proc/7/ns/net --userns /proc/7/ns/user -t none -u none -T none -U none --no-map-gw
--quiet --config-net --ipv4-only --no-map-gw --no-splice -D none -t none -u none -T none -U none 77
--config-net --map-host-loopback 10.9.9.9 -q -t none -u none -T none -U none --no-dhcp --no-dhcpv6 --no-ndp \
--no-ra -- sh -c id
--netns /proc/5/ns/net --runas 0
--config-net --pid /run/x.pid --map-guest-addr 169.254.1.2 --map-guest-addr fc00::2 --address fc00::3 --gateway \
fc00::1 --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet --netns /run/n
--config-net --log-file=/x --log-file /y -t ::1/80-80:80-80 -t 2000-2002:80-82 --dns-forward 169.254.1.1 -u none -T \
none -U none --no-map-gw --quiet --netns /run/n --map-guest-addr 169.254.1.2
--config-net -I myname --ns-mac-addr aa:bb:cc:dd:ee:ff --tcp-ports 10.0.0.1%eth0/5000:6000 -m 1280 --netns /n
--stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 --gateway=10.0.2.2 \
--dns-forward=10.0.2.3 --no-map-gw --ipv4-only --tcp-ports=none --udp-ports=none 4321
--stderr --ns-ifname=tap0 --mtu=65520 --config-net --tcp-ports=auto --udp-ports=auto --host-lo-to-ns-lo 1234
--config-net -f -q -a 10.0.0.2 -n 255.255.255.0 -g 10.0.0.1 -a fd00::2 -g fd00::1 -I eth0 4321
--config-net --chroot-fallback -q -P /x -p /y --outbound-if4 eth0 --outbound-if6 eth1 --freebind -- true
""".strip().splitlines()


@pytest.mark.parametrize("line", CALLERS)
def test_the_argument_lists_of_callers_are_accepted(line: str) -> None:
    assert parse(line.split()).show == ""


@pytest.mark.parametrize(
    "line",
    [
        "-c /run/pasta.sock",
        # podman with pasta's forwarder
        "--config-net --pid /p -c /run/pasta.sock -t none -u none -T none -U none --quiet --netns /n",
    ],
)
def test_what_is_not_there_yet_is_refused_by_name(line: str) -> None:
    with pytest.raises(NotYetError, match="not there yet") as caught:
        settings(line)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_is_said_before_what_is_not_there_yet() -> None:
    for line in ("-c /x -m x", "-c /x -4 -t [::1]/80", "-c /x -T 5000 -T 0", "-c /x --netns y ls"):
        with pytest.raises(UsageError) as caught:
            settings(line)
        assert not isinstance(caught.value, NotYetError)


def test_ports_forward_themselves_unless_something_else_is_asked_for() -> None:
    found = settings("-t 80 -T none")
    assert [spec.auto for spec in (*found.tcp_ports, *found.udp_ports, *found.udp_ns)] == [False, True, True]
    assert found.tcp_ns == ()
    assert found.needs_maker()


def test_what_needs_no_sockets_in_the_namespace_makes_none() -> None:
    assert not settings("-t none -u none -T none -U none").needs_maker()
    assert not settings("-t 80 -u none --no-splice").needs_maker()
    assert settings("-t auto -u none --no-splice").needs_maker()  # to see what is bound there


def test_without_the_bypass_nothing_is_forwarded_from_the_namespace() -> None:
    found = settings("-T 5000 -T none -U none --no-splice")
    assert (found.tcp_ns, found.udp_ns, found.bypass) == ((), (), False)
    assert settings("--no-splice").tcp_ns == ()
    for line in (
        "-T 5000 --no-splice",
        "--no-splice -U auto",
        "--no-splice --host-lo-to-ns-lo",
        "--no-splice --splice-only",
    ):
        with pytest.raises(UsageError, match="does not go with --no-splice"):
            settings(line)


def test_what_is_hidden_makes_no_abbreviation_ambiguous() -> None:
    assert settings("--no-i") == settings("--no-icmp")
    assert not settings("--no-isolation").isolated


def test_a_capability_may_be_asked_for_before_version() -> None:
    assert parse(["--host-lo-to-ns-lo", "--version"]).show == "version"
    assert parse(["-T", "auto", "-h"]).show == "help"


def test_an_option_behind_the_command_is_the_commands() -> None:
    assert settings("-q ls --version").command == ("ls", "--version")


# Values


@pytest.mark.parametrize(
    "line",
    [
        "-m x", "-m -1", "-m 67", "-m 65521", "-m 99999999999999", "-a 1.2.3", "-a 1.2.3.4/33", "-a 1.2.3.4/", "-a ::1",
        "-a 127.0.0.1", "-a 0.0.0.0", "-a 224.0.0.1", "-a ff02::1", "-a fd00::1/129", "-n 255.0.255.0", "-n 33", "-n 0",
        "-n x", "-M 1:2:3", "-M 01:00:00:00:00:01", "-M xx:00:00:00:00:01", "-g nowhere", "-i a/b",
        "-i toolonginterface", "-I .", "-o x", "-D x", "--dns-forward x", "--dns-host x", "-S ..", "--stats 0",
        "--stats x", "--log-size 1",
        "--runas :5", "--runas 5:", "-H a..b", "--map-host-loopback x", "--map-guest-addr 127.0.0.1",
        "-t 0",
        "-t 65536", "-t 5-1", "-t 80,80", "-t x", "-u 1-2:3-9", "-t 1.2.3/80", "-t 80:nowhere", "0", "99999999",
        "--fqdn " + "a" * 64, "--fqdn a;b", "-H a..", "-a ::ffff:10.0.0.1", "--dns-host 0.0.0.0", "-D ff02::fb",
        "--dns-forward 127.0.0.53", "-a fe80::1%eth0", "-g 255.255.255.255", "-o 0.0.0.0", "--outbound-if4 a:b",
        "-n -1",
        "-n 255.255.255.255.0", "-M 02:00:00:00:00:1g", "-M +2:00:00:00:00:01", "-M 00:00:00:00:00:00",
        "--ns-mac-addr 33:33:00:00:00:01", "--runas 4294967295", "--runas 1:4294967296", "--runas a:b:c", "-m ²",
        "--stats 86401", "--log-size x", "-c " + "x" * 108, "-P " + "x" * 4096, "-S a,b", "-t auto,auto:1", "-t ~",
        "-I tap%d",
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_its_option_in_one_line(line: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(line)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    assert line.rsplit(maxsplit=1)[-1][:200] in message
    assert "invalid" in message
    # By its long name, but port specifications by their letter
    given = line.split(maxsplit=1)[0]
    names = [
        name for o in OPTIONS if given in (f"--{o.long}", f"-{o.short}") for name in (f"--{o.long}", f"-{o.short}")
    ]
    assert message.partition(":")[0] in (names or ["PID"])


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.metavar], ids=lambda o: o.long)
@pytest.mark.parametrize("value", ["", " ", "\udcff", "a\nb", "\x1b[2J", "x" * 5000])
def test_a_strange_value_is_taken_or_refused_in_one_printable_line(option: Option, value: str) -> None:
    if option.metavar.startswith(("PATH", "FILE")) and value and len(value) < 100 and not option.not_yet:
        parse([f"--{option.long}", value, *(["1"] if option.long == "userns" else [])])
        return
    with pytest.raises(UsageError) as caught:
        parse([f"--{option.long}", value])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@settings_of_hypothesis(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([f"--{o.long}" for o in OPTIONS] + [f"-{o.short}" for o in OPTIONS if o.short]),
            st.sampled_from(["none", "all", "1", "24", "eth0", "10.0.0.1", "fd00::1", "80:81", "~22", "x", ""]),
            st.text(max_size=8),
        ),
        max_size=8,
    )
)
def test_any_command_line_gives_settings_or_an_error_of_ours(line: list[str]) -> None:
    try:
        parsed = parse(line)
    except UsageError:
        return
    assert parsed.show or parsed.settings


@pytest.mark.parametrize(
    "line",
    [
        "-4 -t [::1]/80",
        "-6 -t 127.0.0.1/80",
        "-a 10.0.0.1/24 -n 16",
        "--netns x 123",
        "--netns x ls",
        "--userns /x",
        "--host-lo-to-ns-lo --no-splice",
        "--splice-only --no-splice",
        "-6 -t 80:10.0.0.1",
        "-4 -u 80:[fd00::1]/81",
    ],
)
def test_contradictions_are_refused_in_one_line(line: str) -> None:
    with pytest.raises(UsageError, match=r"does not go with|needs --netns") as caught:
        settings(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ("-q -d", "-d"),
        ("-d -q", "-q"),
        ("-q --trace", "--trace"),
        ("--trace -q", "-q"),
        ("--trace -q -d", "-d"),
        ("-4 -6", "-6"),
        ("-6 -4", "-4"),
        ("--netns-only --userns /x --netns y", "--userns /x --netns y"),
        ("--userns /x --netns-only --netns y", "--netns-only --netns y"),
        ("--userns /x --netns-only 123", "--netns-only 123"),
    ],
)
def test_the_last_of_contradictions_counts(line: str, same: str) -> None:
    assert settings(line) == settings(same)


@pytest.mark.parametrize(
    "line",
    [
        "-4 -a fd00::1/64", "-6 -a 10.0.0.1", "-4 -g fd00::1", "-6 -n 24", "-4 --outbound-if6 eth0", "-4 -o fd00::1",
        "-6 --dns-host 10.0.0.1", "-4 --map-guest-addr fd00::1", "-6 --dns-forward 169.254.1.1",
    ],
)  # fmt: skip
def test_what_is_said_of_a_version_that_is_off_is_no_error(line: str) -> None:
    assert settings(line).ipv4_only == line.startswith("-4")


def test_D10_an_address_of_the_other_version_is_named() -> None:
    with pytest.raises(UsageError, match=r"127\.0\.0\.1.*--ipv6-only"):
        settings("-6 -t 127.0.0.1/80")


def test_the_last_of_conflicting_options_counts() -> None:
    found = settings("-m 1400 -m 1500 -a 10.0.0.1 -a 10.0.0.2/16 -a fd00::1 -I a -I b")
    assert (found.mtu, found.address4, found.prefix4, found.address6, found.ns_ifname) == (
        1500,
        "10.0.0.2",
        16,
        "fd00::1",
        "b",
    )


def test_none_takes_back_the_ports_before_it() -> None:
    assert settings("-t 80 -t none").tcp_ports == ()
    assert [spec.text for spec in settings("-t 80 -t none -t 90").tcp_ports] == ["-t 90"]


def test_udp_follows_tcp_unless_it_is_spoken_of() -> None:
    assert settings("-t 80").udp_follows_tcp
    assert not settings("-t 80 -u none").udp_follows_tcp
    assert not settings("-t 80 -u 90").udp_follows_tcp


def test_addresses_are_kept_in_canonical_form() -> None:
    assert settings("-a FD00:0:0:0::1 --map-guest-addr fd00::0:2").address6 == "fd00::1"


def test_implications() -> None:
    assert settings("--trace").debug
    assert settings("--no-icmp").no_ndp
    assert settings("--netns x").netns_only
    assert not settings("--netns x --userns /y").netns_only


def test_mappings_are_one_per_version_and_none_clears() -> None:
    assert settings("--map-host-loopback 10.0.0.1 --map-host-loopback fd00::1").map_host_loopback == (
        "10.0.0.1",
        "fd00::1",
    )
    assert settings("--map-host-loopback 10.0.0.1 --map-host-loopback 10.0.0.2").map_host_loopback == ("10.0.0.2",)
    assert settings("--map-host-loopback none").map_host_loopback == ()
    assert settings("").map_host_loopback is None


def test_a_number_is_a_process_and_anything_else_a_command() -> None:
    assert settings("123").target_pid == 123
    assert settings("123 456").command == ("123", "456")
    assert settings("").command == ()


def test_an_unknown_option_is_named_in_getopts_words() -> None:
    with pytest.raises(GetoptError, match=r"^unrecognized option '--map-guest-addrx'$"):
        parse(["--map-guest-addrx", "1"])
    # Those of passt are unknown to pasta
    for option in ("--vhost-user", "--no-dhcp-dns", "--no-dhcp-search"):
        with pytest.raises(GetoptError, match=f"^unrecognized option '{option}'$"):
            parse([option])


# Texts


@pytest.mark.parametrize("mode", [PASTA, PASST])
def test_help_names_every_option_as_a_word_of_its_own(mode: int) -> None:
    words = usage(mode).replace("=", " ").split()
    for option in in_mode(mode):
        assert (f"--{option.long}" in words) != option.hidden
    assert max(map(len, usage(mode).splitlines())) <= WIDTH


@pytest.mark.parametrize("mode", [PASTA, PASST])
def test_help_says_what_is_not_there_yet(mode: int) -> None:
    shown = [line.split() for line in usage(mode).splitlines() if "(not yet)" in line]
    assert {word for words in shown for word in words if word.startswith("--")} == {
        f"--{option.long}" for option in in_mode(mode) if option.not_yet
    }


def test_version_begins_with_name_and_number() -> None:
    assert version().split("\n", 1)[0].startswith("pasta 0.")
    assert version(PASST).split("\n", 1)[0].startswith("passt 0.")


def test_help_of_passt_speaks_of_a_guest() -> None:
    assert "namespace" not in usage(PASST)


def test_every_value_is_kept_in_a_field_of_the_settings() -> None:
    # Those that make one only together with others, or of each IP version
    made = {"netmask", "tcp_ns", "udp_ns", "no_splice", "splice_only", "help", "version", ""}
    for option in OPTIONS:
        fields = {option.dest} if option.repeat != PER_VERSION or option.take.__name__ == "_mapping" else set()
        fields = fields or {option.dest + "4", option.dest + "6"}
        assert fields <= set(Settings._fields) | made


@pytest.mark.parametrize("option", [o for o in OPTIONS if not o.metavar and not o.not_yet], ids=lambda o: o.long)
def test_a_switch_changes_the_settings(option: Option) -> None:
    if option.long in {"help", "version"}:
        assert parse([f"--{option.long}"]).show == option.long
    elif option.long not in {"stderr", "no-splice"}:
        changed = parse([f"--{option.long}"]).settings
        assert getattr(changed, option.dest) is not getattr(Settings(), option.dest)


def test_lists_of_passt_differ_only_where_they_should() -> None:
    pasta, passt = ({o.long for o in in_mode(mode)} for mode in (PASTA, PASST))
    assert passt - pasta == {
        "socket", "socket-path", "fd", "one-off", "vhost-user", "print-capabilities", "repair-path", "migrate-exit",
        "migrate-no-linger", "no-dhcp-dns", "no-dhcp-search",
    }  # fmt: skip
    assert {"netns", "userns", "config-net", "tcp-ns", "dhcp-dns"} <= pasta - passt


def test_search_domains_are_one_argument_and_the_last_counts() -> None:
    assert parse(["-S", "x", "-S", "a.example b.example."]).settings.search == ("a.example", "b.example.")
    assert settings("-S a -S none").search == ()
    assert settings("").search is None


def test_name_servers_add_up_until_none() -> None:
    assert settings("-D 10.0.0.1 -D fd00::1").dns == ("10.0.0.1", "fd00::1")
    assert settings("-D 10.0.0.1 -D none").dns == ()
    assert settings("-D 10.0.0.1 -D none -D 10.0.0.2").dns == ("10.0.0.2",)


def test_a_netmask_is_dotted_or_bits() -> None:
    assert settings("-n 255.255.240.0").prefix4 == 20
    assert settings("-n 20").prefix4 == 20
    assert settings("-a 10.0.0.1/20").prefix4 == 20
    assert settings("-a fd00::1/20 -n 8").prefix6 == 20


@pytest.mark.parametrize("mode", [PASTA, PASST])
def test_no_option_is_there_twice(mode: int) -> None:
    longs = [option.long for option in in_mode(mode)]
    shorts = [option.short for option in in_mode(mode) if option.short]
    assert len(set(longs)) == len(longs)
    assert len(set(shorts)) == len(shorts)


# passt


def machine(line: str) -> Settings:
    return parse(line.split(), PASST).settings


def test_passt_announces_names_unless_told_not_to() -> None:
    assert machine("").dhcp_dns
    assert machine("").dhcp_search
    assert not machine("--no-dhcp-dns --no-dhcp-search").dhcp_dns
    assert not machine("--no-dhcp-dns --no-dhcp-search").dhcp_search


def test_passt_forwards_nothing_unless_told_to_and_udp_follows_tcp() -> None:
    assert machine("").tcp_ports == machine("").udp_ports == ()
    assert machine("-t 22").udp_follows_tcp
    assert not machine("-t 22 -u none").udp_follows_tcp


def test_the_socket_of_passt() -> None:
    assert machine("-s /x").socket_path == machine("--socket=/x").socket_path == "/x"
    assert machine("--socket-path /x").socket_path == machine("--sock /x").socket_path == "/x"
    assert machine("-F 3") == machine("--fd 3 -1")
    assert machine("-1").one_off
    assert not machine("").one_off


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ("-s /x -F 3", "-F 3"),
        ("-F 3 -s /x", "-s /x"),
        ("-F 3 --socket-path /x", "-s /x"),
        ("-1 -F 3 -s /x", "-s /x -1"),
        ("--quiet --mtu 1500 --debug --pid /x --fd 3", "--debug --mtu 1500 --pid /x --fd 3"),
    ],
)
def test_the_last_of_contradictions_counts_for_passt(line: str, same: str) -> None:
    assert machine(line) == machine(same)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-F 2", "--fd: invalid value '2': not a descriptor of its own, from 3"),
        ("-F x", "--fd: invalid value 'x': not a descriptor of its own, from 3"),
        ("-s " + "x" * 108, f"--socket: invalid value '{'x' * 108}': the path of a socket has at most 107 bytes"),
        ("ls", "'ls': there are no operands, only options"),
        ("-t auto", "-t auto: what is bound in a virtual machine cannot be seen from here"),
        ("--vhost-user", "--vhost-user: vhost-user is not there yet"),
        ("--print-capabilities", "--print-capabilities: vhost-user is not there yet"),
        ("--repair-path /x", "--repair-path: migration is not there yet"),
        ("--migrate-exit", "--migrate-exit: migration is not there yet"),
        ("--migrate-no-linger", "--migrate-no-linger: migration is not there yet"),
    ],
)
def test_what_passt_refuses(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        machine(line)
    assert str(caught.value) == message


def test_passt_needs_no_repair_path_to_switch_it_off() -> None:
    assert machine("--repair-path none") == machine("--repair-path /x --repair-path none") == machine("")
