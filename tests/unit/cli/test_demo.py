"""The host's servers of `bucatini demo`, and the measurements of its guest, against each other on the loopback."""

import socket

import pytest

from bucatini.cli import demo, demo_guest


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_page_is_served_in_both_versions(address: str) -> None:
    with demo.Servers() as servers, socket.create_connection((address, servers.page), 10) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with connection.makefile("rb") as answer:
            text = answer.read()
    assert text.startswith(b"HTTP/1.0 200 OK\r\n")
    assert text.endswith(demo.PAGE + b"\n")


def test_the_servers_listen_on_the_loopback_alone() -> None:
    with demo.Servers() as servers:
        for listener in servers._listeners:
            assert listener.getsockname()[0] in {"127.0.0.1", "::1"}


def test_an_upload_counts_what_has_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_guest, "SECONDS", 0.05)
    with demo.Servers() as servers:
        octets, seconds = demo_guest._upload("127.0.0.1", servers.sink)
    assert octets > 0
    assert octets % demo_guest.BUFFER == 0
    assert seconds >= 0.05


def test_a_download_counts_what_has_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_guest, "SECONDS", 0.05)
    with demo.Servers() as servers:
        octets, seconds = demo_guest._download("127.0.0.1", servers.source)
    assert octets > 0
    assert seconds >= 0.05


def test_a_page_that_does_not_come_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert not demo_guest._show_page(4, demo_guest.Network("lo", (), "127.0.0.1"), port)
    assert "failed" in capsys.readouterr().out


def test_a_link_local_gateway_is_named_with_its_interface() -> None:
    assert demo_guest._target(demo_guest.Network("eth0", (), "fe80::1")) == "fe80::1%eth0"
    assert demo_guest._target(demo_guest.Network("eth0", (), "2001:db8::1")) == "2001:db8::1"
