"""The option table: values, combinations, and the argument lists of those who call us."""

import shutil
import subprocess
from pathlib import Path

import pytest

from bucatini.cli.getopt import GetoptError
from bucatini.cli.manpage import render
from bucatini.cli.options import OPTIONS, parse
from bucatini.cli.usage import usage, version
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
""".strip().splitlines()


@pytest.mark.parametrize("line", CALLERS)
def test_the_argument_lists_of_callers_are_accepted(line: str) -> None:
    assert parse(line.split()).show == ""


@pytest.mark.parametrize(
    "line",
    [
        "--config-net -T 5000 --netns /x",
        "-U 53",
        "-T auto",
        "-t auto",
        "--udp-ports=auto 12",
        "--splice-only",
        "-c /run/pasta.sock",
        "--host-lo-to-ns-lo",
    ],
)
def test_what_is_not_there_yet_is_refused_by_name(line: str) -> None:
    with pytest.raises(NotYetError, match="not there yet") as caught:
        settings(line)
    assert "\n" not in str(caught.value)


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
        "--fqdn " + "a" * 64,
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_its_option_in_one_line(line: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(line)
    message = str(caught.value)
    assert "\n" not in message
    assert line.rsplit(maxsplit=1)[-1] in message
    assert "invalid" in message


@pytest.mark.parametrize(
    "line",
    [
        "-4 -6",
        "-4 -a fd00::1",
        "-6 -a 10.0.0.1",
        "-4 -g fd00::1",
        "-4 -t [::1]/80",
        "-6 -t 127.0.0.1/80",
        "-a 10.0.0.1/24 -n 16",
        "-q -d",
        "--netns x 123",
        "--netns x ls",
        "--netns-only --userns /x --netns y",
        "--userns /x",
        "--host-lo-to-ns-lo --no-splice",
    ],
)
def test_contradictions_are_refused_in_one_line(line: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(line)
    assert "\n" not in str(caught.value)


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
    with pytest.raises(GetoptError, match="unrecognized option '--vhost-user'"):
        parse(["--vhost-user"])


# Texts


def test_help_names_every_option_as_a_word_of_its_own() -> None:
    words = usage().replace("=", " ").split()
    for option in OPTIONS:
        assert f"--{option.long}" in words
    assert max(map(len, usage().splitlines())) <= 110


def test_version_begins_with_name_and_number() -> None:
    assert version().split("\n", 1)[0].startswith("pasta 0.")


def test_no_option_is_there_twice() -> None:
    longs = [option.long for option in OPTIONS]
    shorts = [option.short for option in OPTIONS if option.short]
    assert len(set(longs)) == len(longs)
    assert len(set(shorts)) == len(shorts)


def test_man_has_nothing_to_complain_about(tmp_path: Path) -> None:
    if shutil.which("man") is None or shutil.which("groff") is None:
        pytest.skip("packages man-db and groff are not installed")
    page = tmp_path / "pasta.1"
    page.write_text(render())
    command = ["man", "--warnings", "-l", "-Tutf8", "-Z", str(page)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
    )
    assert result.stderr == ""
    assert "\\-\\-config\\-net" in page.read_text()
