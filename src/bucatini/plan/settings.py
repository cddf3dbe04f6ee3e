"""`Settings`: what the command line asked for, checked value by value, before the host was looked at.

Pure data. The option table (`bucatini.cli.options`) makes it; `bucatini.plan.plan` combines it with the view of the
host. Addresses are text in canonical form (`ipaddress` is too slow an import for the start path); None means that
the option was not given.
"""

from __future__ import annotations

from bucatini.lean.record import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bucatini.plan.ports import ForwardSpec


class Settings(NamedTuple):
    """What one invocation of `pasta` or `passt` asked for."""

    # Process
    foreground: bool = False
    quiet: bool = False
    debug: bool = False
    trace: bool = False
    stats: int | None = None  # seconds, least distance of two reports
    log_file: str | None = None
    log_size: int = 1 << 20  # bytes
    runas: str | None = None  # UID, UID:GID, LOGIN or LOGIN:GROUP
    pid_file: str | None = None
    pcap: str | None = None  # path
    fault: tuple[tuple[str, float], ...] = ()  # what to do to frames, for debugging: (name, chance), "late", "seed"
    conf_path: str | None = None  # control socket, later
    chroot_fallback: bool = False
    isolated: bool = True

    # Addresses given to the guest
    mtu: int | None = None  # bytes; 0: assign none; None: the default, 65520
    address4: str | None = None
    address6: str | None = None
    prefix4: int | None = None  # bits, from -a ADDR/LEN or -n
    prefix6: int | None = None
    mac_addr: bytes | None = None  # 6 bytes, ours towards the guest
    gateway4: str | None = None
    gateway6: str | None = None
    interface: str | None = None  # template of addresses and routes
    outbound4: str | None = None
    outbound6: str | None = None
    outbound_if4: str | None = None
    outbound_if6: str | None = None
    ipv4_only: bool = False
    ipv6_only: bool = False

    # Names
    dns: tuple[str, ...] | None = None  # () after "none"; None: those of resolv.conf
    dns_forward4: str | None = None
    dns_forward6: str | None = None
    dns_host4: str | None = None
    dns_host6: str | None = None
    search: tuple[str, ...] | None = None  # () after "none"
    dhcp_dns: bool = False  # announce resolvers (pasta: off unless asked)
    dhcp_search: bool = False
    hostname: str | None = None
    fqdn: str | None = None

    # Protocols and services
    no_tcp: bool = False
    no_udp: bool = False
    no_icmp: bool = False
    no_dhcp: bool = False
    no_ndp: bool = False
    no_dhcpv6: bool = False
    no_ra: bool = False

    # Translation
    freebind: bool = False
    no_map_gw: bool = False
    map_host_loopback: tuple[str, ...] | None = None  # None: the default; () after "none"; else at most one per version
    map_guest_addr: tuple[str, ...] | None = None

    # Forwards: in the order given, empty for "none"
    tcp_ports: tuple[ForwardSpec, ...] = ()
    udp_ports: tuple[ForwardSpec, ...] = ()
    udp_follows_tcp: bool = True  # no -u was given
    tcp_ns: tuple[ForwardSpec, ...] = ()  # from the namespace to the host
    udp_ns: tuple[ForwardSpec, ...] = ()
    bypass: bool = True  # local connections go from socket to socket
    splice_only: bool = False  # nothing else does

    # Namespace
    ns_ifname: str | None = None
    ns_mac_addr: bytes | None = None
    userns: str | None = None
    netns: str | None = None  # path, or name in /run/netns
    netns_only: bool = False
    netns_quit: bool = True
    pidns: bool = True
    config_net: bool = False
    copy_routes: bool = True
    copy_addrs: bool = True
    host_lo_to_ns_lo: bool = False

    # Virtual machine
    socket_path: str | None = None  # where to listen; None: the first free of the default ones
    fd: int | None = None  # a connected socket that was inherited
    one_off: bool = False  # end with the first client

    # Operands
    target_pid: int | None = None  # join the namespaces of this process
    command: tuple[str, ...] = ()  # spawn this; () with no pid and no netns: the user's shell

    def needs_maker(self) -> bool:
        """Whether sockets of the guest's namespace are needed: for the bypass, or to find out what is bound there."""
        inward, outward = self.tcp_ports + self.udp_ports, self.tcp_ns + self.udp_ns
        if any(spec.auto for spec in inward):
            return True
        return self.bypass and any(spec.ranges for spec in inward + outward)

    def is_automatic(self) -> bool:
        """Whether ports forward themselves."""
        return any(spec.auto for spec in self.tcp_ports + self.udp_ports + self.tcp_ns + self.udp_ns)
