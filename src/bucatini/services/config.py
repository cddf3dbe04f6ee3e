"""What the services need to know, as bytes ready for the wire.

Search domains that cannot stand in a message (an empty or too long label, the root alone) are left out here, once,
so that a resolv.conf with one of them costs the guest that entry and not its lease.
"""

from __future__ import annotations

from bucatini.errors import WireError
from bucatini.lean.record import TYPE_CHECKING, NamedTuple
from bucatini.lean.sockets import AF_INET, AF_INET6, inet_pton
from bucatini.wire import domain

if TYPE_CHECKING:
    from bucatini.plan.plan import Plan, PlanFamily
    from bucatini.plan.settings import Settings

_HOST_NAME_MAX = 255  # bytes, what one DHCP option holds


def pack4(address: str) -> bytes:
    """Return the 4 bytes of an IPv4 address."""
    return inet_pton(AF_INET, address)


def pack6(address: str) -> bytes:
    """Return the 16 bytes of an IPv6 address; a scope id is cut off."""
    return inet_pton(AF_INET6, address.partition("%")[0])


def _is_name(name: str) -> bool:
    """Whether the text is a domain name other than the root."""
    try:
        return domain.emit(name) != b"\0"
    except WireError:
        return False


def _addresses(family: PlanFamily) -> tuple[frozenset[bytes], frozenset[bytes]]:
    """Return the guest's addresses, and those that are ours for certain: nobody else may take them."""
    pack = pack6 if ":" in family.gateway else pack4
    guest = {pack(entry.address) for entry in family.addresses}
    if family.address is not None:
        guest.add(pack(family.address))
    ours = (
        family.gateway,
        family.our_address,
        family.map_host_loopback,
        family.map_guest_addr,
        family.dns_forward if family.dns_host else None,
    )
    return frozenset(guest), frozenset(pack(address) for address in ours if address is not None) - guest


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
    guest: frozenset[bytes] = frozenset()  # all addresses of the guest, of both versions
    ours: frozenset[bytes] = frozenset()  # ours for certain, of both versions

    @classmethod
    def from_plan(cls, settings: Settings, plan: Plan) -> ServiceConfig:
        """Take what concerns the services out of a plan."""
        v4, v6 = plan.v4, plan.v6
        known = [_addresses(family) for family in (v4, v6) if family is not None]
        fqdn = settings.fqdn if settings.fqdn is not None and _is_name(settings.fqdn) else None
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
            search=tuple(name for name in plan.search if _is_name(name)),
            hostname=settings.hostname.encode()[:_HOST_NAME_MAX].decode(errors="ignore") if settings.hostname else None,
            fqdn=fqdn,
            dhcp=not settings.no_dhcp,
            dhcpv6=not settings.no_dhcpv6,
            ndp=not settings.no_ndp and not settings.no_icmp,
            ra=not settings.no_ra,
            guest=frozenset().union(*(guest for guest, _ in known)),
            ours=frozenset().union(*(ours for _, ours in known)),
        )

    def is_guests(self, address: bytes) -> bool:
        """Whether the address is assigned to the guest."""
        return address in self.guest or (address != b"" and address in (self.address4, self.address6))

    def is_ours(self, address: bytes) -> bool:
        """Whether the address is ours for certain."""
        return address in self.ours or (address != b"" and address in (self.gateway4, self.ours6))
