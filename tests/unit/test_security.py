"""What SECURITY.md says in numbers and names is so."""

import re
from pathlib import Path

import pytest

from bucatini.host.declared_calls import DECLARED
from bucatini.host.seccomp import allowed

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
PROFILES = re.findall(r"^\| [^|]+ \| (\d+) \| ((?:\w+, )+\w+) \|$", TEXT, re.MULTILINE)

pytestmark = pytest.mark.lint


@pytest.mark.parametrize(("count", "profiles"), PROFILES)
def test_the_system_calls_of_each_process_are_counted_right(count: str, profiles: str) -> None:
    assert len(allowed(profiles.split(", "))) == int(count)


def test_every_profile_is_counted() -> None:
    assert {name for _, profiles in PROFILES for name in profiles.split(", ")} == DECLARED.keys()


def test_what_is_the_interpreters_alone_is_listed() -> None:
    listed = re.search(r"Of ours, (\d+) are [^(]*\(([^)]*)\)", TEXT)
    assert listed is not None
    others = {name for profile in DECLARED if profile != "common" for name in DECLARED[profile]}
    alone = {name for name in DECLARED["common"] if name not in others}
    assert sorted(re.findall(r"`(\w+)`", listed[2])) == sorted(alone)
    assert int(listed[1]) == len(alone)


def test_no_process_that_serves_may_do_what_is_ruled_out() -> None:
    forbidden = {"open", "openat", "openat2", "execve", "execveat", "ptrace", "kill", "tkill", "tgkill"}
    forbidden |= {"fork", "vfork", "clone", "clone3"}
    for _, profiles in PROFILES:
        if "serve" in profiles:
            assert forbidden.isdisjoint(allowed(profiles.split(", ")))
