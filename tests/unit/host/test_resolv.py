"""resolv.conf as it is met."""

import os
import select
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bucatini.host import resolv


def test_servers_keep_their_order_and_come_once() -> None:
    text = "nameserver 192.0.2.53\nnameserver ::1 # stub\n nameserver\t192.0.2.53\nnameserver fe80::1%eth0\n"
    assert resolv.parse(text)[0] == ("192.0.2.53", "::1", "fe80::1%eth0")


def test_the_last_search_list_counts() -> None:
    assert resolv.parse("domain a.example\nsearch b.example c.example\n")[1] == ("b.example", "c.example")
    assert resolv.parse("search b.example c.example\ndomain a.example")[1] == ("a.example",)


def test_comments_and_nonsense_are_passed_over() -> None:
    assert resolv.parse("nameserver 192.0.2.1%eth0\n") == ((), ())  # only IPv6 has scopes
    assert resolv.parse("#nameserver 192.0.2.1\n;x\nnameserver\nnameserver here\noptions edns0\n") == ((), ())


def test_a_zero_byte_costs_its_line_only() -> None:
    assert resolv.parse("nameserver 192.0.2.1\0\nnameserver 192.0.2.2\n")[0] == ("192.0.2.2",)


@given(st.text())
def test_whatever_is_in_it_servers_are_addresses(text: str) -> None:
    assert all(resolv.is_address(server) for server in resolv.parse(text)[0])


def test_a_file_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert resolv.read(str(tmp_path / "none")) == ((), ())
    assert resolv.read(str(tmp_path)) == ((), ())


def test_bytes_that_are_no_text_do_not_hide_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_bytes(b"# \xff\xfe\nnameserver 192.0.2.53\n")
    assert resolv.read(str(file)) == (("192.0.2.53",), ())


@pytest.mark.parametrize("how", ["written", "replaced", "behind a link"])
def test_D3_a_change_of_the_file_shows(tmp_path: Path, how: str) -> None:
    real = tmp_path / "run" / "real.conf"
    real.parent.mkdir()
    real.write_text("nameserver 192.0.2.1\n")
    path = tmp_path / "resolv.conf"
    if how == "behind a link":
        path.symlink_to(real)
    else:
        path.write_text("nameserver 192.0.2.1\n")
    fd = resolv.watch(str(path))
    try:
        assert select.select([fd], [], [], 0)[0] == []
        if how == "written":
            path.write_text("nameserver 192.0.2.2\n")
        else:
            fresh = tmp_path / "run" / "fresh"
            fresh.write_text("nameserver 192.0.2.2\n")
            fresh.rename(real if how == "behind a link" else path)
        assert select.select([fd], [], [], 5)[0]
        assert resolv.read(str(path))[0] == ("192.0.2.2",)
    finally:
        os.close(fd)
