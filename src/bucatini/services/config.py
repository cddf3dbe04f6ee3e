"""What the services need to know, as bytes ready for the wire."""

from socket import AF_INET, AF_INET6, inet_pton
from typing import NamedTuple

from bucatini.plan.plan import Plan
from bucatini.plan.settings import Settings


def pack4(address: str) -> bytes:
    """Return the 4 bytes of an IPv4 address."""
    return inet_pton(AF_INET, address)


def pack6(address: str) -> bytes:
    """Return the 16 bytes of an IPv6 address; a scope id is cut off."""
    return inet_pton(AF_INET6, address.partition("%")[0])


class ServiceConfig(NamedTuple):
    """What is announced, and what is answered."""

    mac: bytes  # ours, 6 bytes
    v4: bool = True
    v6: bool = True
    address4: bytes = b""  # the guest's, 4 bytes
    prefix4: int = 0
    gateway4: bytes = b""
    address6: bytes = b""  # the guest's, 16 bytes; empty: none
    prefix6: int = 64
    ours6: bytes = b""  # our link-local address
    mtu: int = 0  # 0: not announced
    dns4: tuple[bytes, ...] = ()
    dns6: tuple[bytes, ...] = ()
    search: tuple[str, ...] = ()
    hostname: str | None = None
    fqdn: str | None = None
    dhcp: bool = True
    dhcpv6: bool = True
    ndp: bool = True
    ra: bool = True

    @classmethod
    def from_plan(cls, settings: Settings, plan: Plan) -> "ServiceConfig":
        """Take what concerns the services out of a plan."""
        v4, v6 = plan.v4, plan.v6
        return cls(
            mac=plan.our_mac,
            v4=v4 is not None,
            v6=v6 is not None,
            address4=pack4(v4.address) if v4 is not None and v4.address is not None else b"",
            prefix4=v4.prefix if v4 is not None else 0,
            gateway4=pack4(v4.gateway) if v4 is not None else b"",
            address6=pack6(v6.address) if v6 is not None and v6.address is not None else b"",
            prefix6=v6.prefix if v6 is not None else 64,
            ours6=pack6(v6.our_address) if v6 is not None else b"",
            mtu=plan.mtu,
            dns4=tuple(pack4(a) for a in v4.dns) if v4 is not None else (),
            dns6=tuple(pack6(a) for a in v6.dns) if v6 is not None else (),
            search=plan.search,
            hostname=settings.hostname,
            fqdn=settings.fqdn,
            dhcp=not settings.no_dhcp,
            dhcpv6=not settings.no_dhcpv6,
            ndp=not settings.no_ndp,
            ra=not settings.no_ra,
        )
