"""Which namespaces, which command, which users: what can be told without making any."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bucatini.guest.namespace import Command, command_of, identity_map, namespace_paths
from bucatini.plan.settings import Settings


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(target_pid=7), ("/proc/7/ns/user", "/proc/7/ns/net")),
        (Settings(target_pid=7, netns_only=True), (None, "/proc/7/ns/net")),
        (Settings(target_pid=7, userns="/u"), ("/u", "/proc/7/ns/net")),
        (Settings(netns="name"), (None, "/run/netns/name")),
        (Settings(netns="./name"), (None, "./name")),
        (Settings(netns="/path", userns="/u"), ("/u", "/path")),
    ],
)
def test_the_namespaces_to_join_are_found(settings: Settings, expected: tuple[str | None, str]) -> None:
    assert namespace_paths(settings) == expected


def test_a_command_runs_below_an_init_unless_told_otherwise() -> None:
    assert command_of(Settings(command=("ls", "-l"))) == Command("ls", ("ls", "-l"), True)
    assert not command_of(Settings(command=("ls",), foreground=True)).init
    assert not command_of(Settings(command=("ls",), pidns=False)).init


def test_without_a_command_it_is_the_shell_as_a_login_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/sh")
    assert command_of(Settings())[:2] == ("/bin/sh", ("-sh",))
    monkeypatch.setenv("SHELL", "/no/such/shell")
    assert command_of(Settings())[:2] == ("/bin/sh", ("-sh",))


def test_without_SHELL_it_is_the_shell_of_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    monkeypatch.delenv("SHELL", raising=False)
    entry = list(pwd.getpwuid(0))
    entry[6] = "/bin/cat"
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(entry))
    assert command_of(Settings())[:2] == ("/bin/cat", ("-cat",))


extents = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(1, 2**32 - 1)))


@given(extents)
def test_a_map_keeps_every_number_where_it_is(given: list[tuple[int, int, int]]) -> None:
    text = "".join(f"{first:10} {outside:10} {count:10}\n" for first, outside, count in given)
    made = [tuple(map(int, line.split())) for line in identity_map(text).splitlines()]
    assert made == [(first, first, count) for first, _, count in given]
