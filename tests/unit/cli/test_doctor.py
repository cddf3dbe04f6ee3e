"""Verdicts of `bucatini doctor` about hosts that are not this one."""

import errno
import json
import resource
from typing import Any

import pytest

from bucatini.cli import doctor
from bucatini.cli.doctor import OK, PROBLEM, WARNING, Check, Facts, examine, render
from bucatini.host.facilities import NamespaceTrial

GOOD = Facts(
    user="somebody", uid=1000, kernel="6.18", compiled=True, trial=NamespaceTrial("", 0, tso=True, uso=True),
    max_user_namespaces=60000, unprivileged_userns_clone=None, apparmor_restrict=None, tun_exists=True, tun_errno=0,
    ping_sockets=True, ping_group_range="0 2147483647", port_start=1024, ipv6=True, peek_off=True,
    udp_segment=True, isolation="", landlock=6, files=(1024, 1 << 20),
)  # fmt: skip


def verdict(name: str, **changes: Any) -> Check:
    """The check `name` on a host that is good but for `changes`."""
    return next(check for check in examine(GOOD._replace(**changes)) if check.name == name)


def test_a_good_host_has_no_findings() -> None:
    assert {check.status for check in examine(GOOD)} == {OK}


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"max_user_namespaces": 0}, "user.max_user_namespaces="),
        ({"unprivileged_userns_clone": 0}, "kernel.unprivileged_userns_clone=1"),
        ({"apparmor_restrict": 1}, "kernel.apparmor_restrict_unprivileged_userns=0"),
        ({}, "seccomp"),
    ],
)
def test_refused_user_namespaces_are_a_problem_with_the_command_that_fits(changes: dict[str, Any], advice: str) -> None:
    check = verdict("user namespaces", trial=NamespaceTrial("unshare", errno.EPERM), **changes)
    assert check.status == PROBLEM
    assert advice in check.fix


def test_rights_that_apparmor_takes_away_inside_are_its_doing() -> None:
    check = verdict("user namespaces", trial=NamespaceTrial("map", errno.EPERM), apparmor_restrict=1)
    assert "AppArmor" in check.found


def test_a_limit_of_namespaces_that_is_reached_is_named() -> None:
    assert "limit" in verdict("user namespaces", trial=NamespaceTrial("unshare", errno.ENOSPC)).found


def test_the_switches_do_not_matter_where_namespaces_work() -> None:
    assert verdict("user namespaces", apparmor_restrict=1).status == OK


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"tun_exists": False, "tun_errno": errno.ENOENT}, "modprobe tun"),
        ({"tun_errno": errno.ENODEV}, "modprobe tun"),
        ({"tun_errno": errno.EACCES}, "chmod 0666 /dev/net/tun"),
    ],
)
def test_a_tun_device_that_does_not_open_is_a_problem(changes: dict[str, Any], advice: str) -> None:
    check = verdict("/dev/net/tun", trial=NamespaceTrial("open", errno.EACCES), **changes)
    assert check.status == PROBLEM
    assert advice in check.fix


def test_a_missing_packet_path_is_a_problem() -> None:
    assert verdict("compiled packet path", compiled=False).status == PROBLEM


def test_isolation_that_is_refused_is_a_problem_with_what_was_refused() -> None:
    check = verdict("isolation", isolation="filter system calls: Invalid argument")
    assert (check.status, check.found) == (PROBLEM, "filter system calls: Invalid argument")
    assert "CONFIG_SECCOMP_FILTER" in check.fix


def test_a_kernel_without_landlock_is_only_a_warning() -> None:
    assert verdict("Landlock", landlock=0).status == WARNING


def test_ping_is_only_a_warning() -> None:
    check = verdict("ping", ping_sockets=False, ping_group_range="1 0")
    assert check.status == WARNING
    assert "ping_group_range" in check.fix


@pytest.mark.parametrize(
    ("uid", "start", "said"),
    [(1000, 1024, "from 1024"), (1000, 80, "from 80"), (1000, 0, "all"), (0, 1024, "all"), (1000, None, "from 1024")],
)
def test_it_says_which_ports_can_be_forwarded(uid: int, start: int | None, said: str) -> None:
    assert said in verdict("low ports", uid=uid, port_start=start).found


@pytest.mark.parametrize(("hard", "status"), [(4096, WARNING), (65536, OK), (resource.RLIM_INFINITY, OK)])
def test_few_descriptors_are_a_warning(hard: int, status: str) -> None:
    assert verdict("open files", files=(1024, hard)).status == status


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("TCP superframes (TSO on the tap)", {"trial": NamespaceTrial("", 0)}),
        ("UDP superframes (USO on the tap)", {"trial": NamespaceTrial("", 0, tso=True)}),
        ("SO_PEEK_OFF for TCP", {"peek_off": False}),
        ("UDP_SEGMENT", {"udp_segment": False}),
        ("IPv6", {"ipv6": False}),
    ],
)
def test_what_only_costs_speed_or_a_feature_is_a_warning(name: str, changes: dict[str, Any]) -> None:
    assert verdict(name, **changes).status == WARNING


def test_every_finding_says_what_it_means_and_what_to_do() -> None:
    worst = GOOD._replace(
        compiled=False, trial=NamespaceTrial("unshare", errno.EPERM), tun_exists=False, ping_sockets=False, ipv6=False,
        peek_off=False, udp_segment=False, files=(1024, 1024),
    )  # fmt: skip
    report = render(worst, examine(worst))
    for check in examine(worst):
        if check.status != OK:
            assert check.means
            assert check.fix
            assert check.fix in report
    assert "cannot work here yet: 3 problems" in report


@pytest.mark.parametrize(("facts", "status"), [(GOOD, 0), (GOOD._replace(compiled=False), 1)])
def test_the_exit_status_tells_whether_pasta_can_work(
    facts: Facts, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "gather", lambda: facts)
    assert doctor.main([]) == status
    assert doctor.main(["--json"]) == status
    text = capsys.readouterr().out
    assert json.loads(text[text.index("{") :])["works"] is (status == 0)


def test_an_unknown_argument_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--jason"]) == 1
    assert "--jason" in capsys.readouterr().err


def test_this_host_can_be_examined() -> None:
    checks = examine(doctor.gather())
    assert len({check.name for check in checks}) == len(checks) == 13
