"""Reading rtnetlink: each message is checked against its own length, whatever it says."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2 import IPRoute
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from bucatini.host import netlink
from bucatini.host.netlink import Hop, attribute, attributes, messages, parse_address, parse_link, parse_route

FAMILIES = (socket.AF_INET, socket.AF_INET6)


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=8))
def test_attributes_are_read_as_they_were_written(given: list[tuple[int, bytes]]) -> None:
    assert list(attributes(b"".join(attribute(kind, value) for kind, value in given))) == given


def test_the_flags_in_an_attribute_type_are_no_part_of_it() -> None:
    assert list(attributes(attribute(0x8000 | 9, b"x"))) == [(9, b"x")]


@pytest.mark.parametrize("length", [0, 3, 9, 0xFFFF])
def test_an_attribute_that_does_not_fit_ends_the_list(length: int) -> None:
    data = attribute(1, b"good") + struct.pack("=HH", length, 2) + b"bad!"
    assert list(attributes(data)) == [(1, b"good")]


@pytest.mark.parametrize("length", [0, 15, 21, 0xFFFFFFFF])
def test_a_message_that_does_not_fit_ends_the_datagram(length: int) -> None:
    good = struct.pack("=IHHII", 20, 16, 0, 7, 0) + b"body"
    bad = struct.pack("=IHHII", length, 16, 0, 7, 0) + b"body"
    assert list(messages(good + bad, 7)) == [(16, 0, b"body")]


def test_answers_to_another_request_are_passed_over() -> None:
    data = b"".join(struct.pack("=IHHII", 16, 16, 0, sequence, 0) for sequence in (6, 7, 8))
    assert len(list(messages(data, 7))) == 1


def test_what_is_read_away_before_a_dump_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    with theirs:
        reader = netlink.Netlink(ours.detach())
        for _ in range(3):
            theirs.send(b"left over")
        assert len(list(reader.discard("read"))) == 3
        assert list(reader.discard("read")) == []
        monkeypatch.setattr(netlink, "LEFT_OVER", 5)
        theirs.send(b"first")
        for read in reader.discard("read"):
            theirs.send(b"and always another")
            assert read is None
        assert len(list(reader.discard("read"))) == 1
        reader.close()


@given(st.binary(max_size=200), st.integers(0, 0xFFFFFFFF), st.sampled_from(FAMILIES))
def test_no_bytes_upset_the_readers(data: bytes, sequence: int, family: int) -> None:
    for _, _, body in messages(data, sequence):
        assert len(body) <= len(data)
    parse_link(data)
    parse_address(family, data)
    parse_route(family, data)
    netlink.resolve_next_hops([data])


@given(st.binary(max_size=64), st.sampled_from(FAMILIES))
def test_no_attributes_upset_the_readers(data: bytes, family: int) -> None:
    head = struct.pack("=BBBBBBBBI", family, 24, 0, 0, 254, 3, 0, 1, 0)
    for kind in (netlink.RTA_OIF, netlink.RTA_MULTIPATH, netlink.RTA_VIA, netlink.RTA_METRICS, netlink.RTA_NH_ID):
        parse_route(family, head + attribute(netlink.RTA_DST, bytes(4)) + attribute(kind, data))
    netlink.resolve_next_hops([bytes(8) + attribute(netlink.NHA_ID, b"abcd") + attribute(netlink.NHA_GROUP, data)])


def route_message(**values: object) -> bytes:
    """The body of a route message, as pyroute2 writes it."""
    message = rtmsg()
    message.update(
        {"family": socket.AF_INET, "dst_len": 0, "table": 254, "proto": 3, "scope": 0, "type": 1, "flags": 0}
    )
    attrs = values.pop("attrs")
    message.update(values)
    message["attrs"] = attrs
    message.encode()
    return bytes(message.data[16:])


def test_a_route_of_pyroute2_is_understood() -> None:
    attrs = [
        ("RTA_DST", "198.51.100.0"), ("RTA_GATEWAY", "192.0.2.1"), ("RTA_OIF", 4), ("RTA_PRIORITY", 77),
        ("RTA_PREFSRC", "192.0.2.2"), ("RTA_METRICS", {"attrs": [("RTAX_MTU", 1300)]}),
    ]  # fmt: skip
    parsed = parse_route(socket.AF_INET, route_message(dst_len=24, attrs=attrs))
    assert parsed is not None
    route, hops, object_id = parsed
    assert (route.destination, route.prefix, route.metric, route.source, route.mtu) == (
        "198.51.100.0", 24, 77, "192.0.2.2", 1300,
    )  # fmt: skip
    assert hops == (Hop(4, "192.0.2.1", 1, 0),)
    assert object_id == 0


@pytest.mark.parametrize("values", [{"table": 255}, {"type": 7}, {"family": socket.AF_INET6}, {"dst_len": 33}])
def test_routes_that_are_none_of_ours_are_left_out(values: dict[str, int]) -> None:
    attrs = [("RTA_DST", "198.51.100.0"), ("RTA_OIF", 4)]
    if values.get("family"):
        attrs = [("RTA_OIF", 4)]
    assert parse_route(socket.AF_INET, route_message(**{"dst_len": 24} | values, attrs=attrs)) is None


def test_groups_of_next_hops_are_resolved_and_lost_members_left_out() -> None:
    def entry(number: int, *more: bytes) -> bytes:
        return (
            struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0) + attribute(1, struct.pack("=I", number)) + b"".join(more)
        )

    one = entry(1, attribute(5, struct.pack("=I", 3)), attribute(6, bytes([192, 0, 2, 1])))
    two = entry(2, attribute(5, struct.pack("=I", 4)))
    group = entry(9, attribute(2, b"".join(struct.pack("=IBBH", m, w, 0, 0) for m, w in ((1, 0), (2, 8), (5, 1)))))
    found = netlink.resolve_next_hops([group, one, two])
    assert found[1] == (Hop(3, "192.0.2.1", 1, 0),)
    assert found[9] == (Hop(3, "192.0.2.1", 1, 0), Hop(4, None, 9, 0))


def test_this_machine_is_seen_as_pyroute2_sees_it() -> None:
    link = netlink.Netlink()
    try:
        with IPRoute() as other:
            assert {(i.ifindex, i.name, i.mtu) for i in link.links()} == {
                (m["index"], m.get_attr("IFLA_IFNAME"), m.get_attr("IFLA_MTU")) for m in other.get_links()
            }
            for family in FAMILIES:
                assert {(a.ifindex, a.address.address, a.address.prefix) for a in link.addresses(family)} == {
                    (m["index"], m.get_attr("IFA_LOCAL") or m.get_attr("IFA_ADDRESS"), m["prefixlen"])
                    for m in other.get_addr(family=family)
                }
    finally:
        link.close()
