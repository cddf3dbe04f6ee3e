"""resolv.conf as it is met."""

from pathlib import Path

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
    assert resolv.parse("#nameserver 192.0.2.1\n;x\nnameserver\nnameserver here\noptions edns0\n") == ((), ())


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
