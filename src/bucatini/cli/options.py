"""The one table of options: parser, --help and man page are made from it.

Each record says how an option is written, what it means in a line, and how its value is checked and kept. Values are
collected under the field names of `Settings`; `parse` then checks what only shows when all are known. Bad input
raises `UsageError` with one line that names option and value.
"""

import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from bucatini.cli.getopt import Spec, getopt
from bucatini.errors import NotYetError, UsageError
from bucatini.plan.ports import ForwardSpec, canonical, parse_forward
from bucatini.plan.settings import Settings

Values = dict[str, Any]
PORT_OPTIONS = {"tcp-ports": "-t", "udp-ports": "-u", "tcp-ns": "-T", "udp-ns": "-U"}


class Option(NamedTuple):
    """An option: how it is written, what it means, how its value is taken."""

    long: str
    short: str  # one letter, or empty
    metavar: str  # empty: takes no value
    help: str  # one line for --help, the first sentence of the man page
    take: Callable[[Values, str, str], None]  # (values so far, name for messages, value)
    more: str = ""  # for the man page


class Parsed(NamedTuple):
    """What a command line says."""

    settings: Settings
    show: str = ""  # "help" or "version": nothing else is to be done


# How values are taken


def bad(name: str, value: str, why: str) -> UsageError:
    """Return the error about a value."""
    return UsageError(f"{name}: invalid value '{value}': {why}")


def _flag(dest: str, value: object = True) -> Callable[[Values, str, str], None]:
    def take(values: Values, name: str, text: str) -> None:
        values[dest] = value

    return take


def _nothing(values: Values, name: str, text: str) -> None:
    """Accepted, without effect."""


def _text(dest: str) -> Callable[[Values, str, str], None]:
    def take(values: Values, name: str, text: str) -> None:
        if not text:
            raise bad(name, text, "empty")
        if "\0" in text:
            raise bad(name, text, "a zero byte")
        values[dest] = text

    return take


def _number(dest: str, low: int, high: int) -> Callable[[Values, str, str], None]:
    def take(values: Values, name: str, text: str) -> None:
        if not (text.isascii() and text.isdigit()) or len(text) > 12 or not low <= int(text) <= high:
            raise bad(name, text, f"not a number from {low} to {high}")
        values[dest] = int(text)

    return take


def _mtu(values: Values, name: str, text: str) -> None:
    if not (text.isascii() and text.isdigit()) or len(text) > 6 or (int(text) and not 68 <= int(text) <= 65520):
        raise bad(name, text, "not an MTU: 0, or 68 to 65520")
    values["mtu"] = int(text)


def _version_of(name: str, text: str) -> tuple[str, str]:
    """Return an address in canonical text and "4" or "6"."""
    address = canonical(text)
    if address is None or "%" in address:
        raise bad(name, text, "not an IPv4 or IPv6 address")
    return address, "6" if ":" in address else "4"


def _unicast(name: str, text: str) -> tuple[str, str]:
    """Like `_version_of`, for an address that a host can have."""
    address, version = _version_of(name, text)
    raw = socket.inet_pton(socket.AF_INET6 if version == "6" else socket.AF_INET, address)
    if not any(raw):
        raise bad(name, text, "the unspecified address")
    if raw[0] == 0xFF or (version == "4" and raw[0] >= 224):
        raise bad(name, text, "not a unicast address")
    if address == "::1" or (version == "4" and raw[0] == 127):
        raise bad(name, text, "a loopback address")
    return address, version


def _per_version(dest: str) -> Callable[[Values, str, str], None]:
    def take(values: Values, name: str, text: str) -> None:
        address, version = _unicast(name, text)
        values[dest + version] = address

    return take


def _resolver(values: Values, name: str, text: str) -> None:
    address, version = _version_of(name, text)
    values["dns_host" + version] = address


def _address(values: Values, name: str, text: str) -> None:
    bare, slash, bits = text.partition("/")
    address, version = _unicast(name, bare)
    limit = 32 if version == "4" else 128
    if slash and (not (bits.isascii() and bits.isdigit()) or len(bits) > 3 or not 1 <= int(bits) <= limit):
        raise bad(name, text, f"a prefix length is from 1 to {limit}")
    values["address" + version] = address
    values["prefix_in_address" + version] = int(bits) if slash else None


def _netmask(values: Values, name: str, text: str) -> None:
    if text.isascii() and text.isdigit() and len(text) < 3 and 1 <= int(text) <= 32:
        values["netmask"] = int(text)
        return
    address = canonical(text)
    if address is not None and ":" not in address:
        mask = int.from_bytes(socket.inet_aton(address), "big")
        inverted = mask ^ 0xFFFFFFFF
        if mask and not inverted & (inverted + 1):
            values["netmask"] = mask.bit_count()
            return
    raise bad(name, text, "not an IPv4 mask, dotted or 1 to 32")


def _mac(dest: str) -> Callable[[Values, str, str], None]:
    def take(values: Values, name: str, text: str) -> None:
        parts = text.replace("-", ":").split(":")
        try:
            raw = bytes(int(part, 16) for part in parts if 1 <= len(part) <= 2)
        except ValueError:
            raw = b""
        if len(parts) != 6 or len(raw) != 6:
            raise bad(name, text, "not a MAC address")
        if raw[0] & 1 or not any(raw):
            raise bad(name, text, "not the MAC address of a single station")
        values[dest] = raw

    return take


def _interface(dest: str) -> Callable[[Values, str, str], None]:
    def take(values: Values, name: str, text: str) -> None:
        raw = text.encode(errors="surrogateescape")
        if not 0 < len(raw) < 16 or text in (".", "..") or "/" in text or any(c <= 32 for c in raw):
            raise bad(name, text, "not an interface name")
        values[dest] = text

    return take


def _dns(values: Values, name: str, text: str) -> None:
    if text == "none":
        values["dns"] = ()
        return
    address, _ = _version_of(name, text)
    values["dns"] = (*values.get("dns", ()), address)


def _search(values: Values, name: str, text: str) -> None:
    if text == "none":
        values["search"] = ()
        return
    domains = tuple(text.split())
    if not domains:
        raise bad(name, text, "no domain")
    for domain in domains:
        _check_domain(name, domain)
    values["search"] = (*values.get("search", ()), *domains)


def _check_domain(name: str, domain: str) -> None:
    labels = domain.rstrip(".").split(".")
    if len(domain) > 253 or any(not 0 < len(label.encode()) < 64 for label in labels):  # RFC 1035 §2.3.4
        raise bad(name, domain, "not a domain name")


def _domain(dest: str) -> Callable[[Values, str, str], None]:
    def take(values: Values, name: str, text: str) -> None:
        _check_domain(name, text)
        values[dest] = text

    return take


def _mapping(dest: str) -> Callable[[Values, str, str], None]:
    def take(values: Values, name: str, text: str) -> None:
        if text == "none":
            values[dest] = ()
            return
        address, version = _unicast(name, text)
        others = tuple(a for a in values.get(dest) or () if (":" in a) != (version == "6"))
        values[dest] = (*others, address)

    return take


def _ports(dest: str) -> Callable[[Values, str, str], None]:
    def take(values: Values, name: str, text: str) -> None:
        spec = parse_forward(name, text)
        # "none" takes back what came before it, and anything behind it counts again
        values[dest] = () if text == "none" else (*values.get(dest, ()), spec)

    return take


def _runas(values: Values, name: str, text: str) -> None:
    login, colon, group = text.partition(":")
    if not login or (colon and not group):
        raise bad(name, text, "not UID, UID:GID, LOGIN or LOGIN:GROUP")
    values["runas"] = text


def _show(what: str) -> Callable[[Values, str, str], None]:
    def take(values: Values, name: str, text: str) -> None:
        values.setdefault("show", what)

    return take


OPTIONS: tuple[Option, ...] = (
    Option("debug", "d", "", "be verbose", _flag("debug")),
    Option("trace", "", "", "be very verbose: one line for each frame; implies --debug", _flag("trace")),
    Option("stats", "", "SECONDS", "log counters, at most that often, when they moved", _number("stats", 1, 86400)),
    Option("quiet", "q", "", "no informational output", _flag("quiet")),
    Option("foreground", "f", "", "stay in the foreground", _flag("foreground")),
    Option("stderr", "e", "", "accepted for compatibility, no effect", _nothing),
    Option("log-file", "l", "PATH", "log to a file instead of the system log", _text("log_file")),
    Option(
        "log-size",
        "",
        "BYTES",
        "most the log file may hold (default 1 MiB)",
        _number("log_size", 4096, 1 << 40),
        "When it is full the oldest entries are cut.",
    ),
    Option(
        "runas",
        "",
        "UID|UID:GID|LOGIN|LOGIN:GROUP",
        "who to be when started as root (default nobody)",
        _runas,
    ),
    Option("conf-path", "c", "PATH", "socket for changes while running", _text("conf_path")),
    Option("help", "h", "", "show this help", _show("help")),
    Option("version", "", "", "show the version", _show("version")),
    Option("pcap", "p", "FILE", "capture the frames of the namespace's side", _text("pcap")),
    Option("pid", "P", "FILE", "write the process number there, before the parent exits", _text("pid_file")),
    Option("mtu", "m", "BYTES", "MTU of the namespace's interface (default 65520, 0: leave it)", _mtu),
    Option(
        "address",
        "a",
        "ADDRESS[/BITS]",
        "address of the namespace, once per IP version",
        _address,
        "By default that of the host's interface with the default route.",
    ),
    Option("netmask", "n", "MASK", "IPv4 netmask, dotted or bits", _netmask),
    Option("mac-addr", "M", "MAC", "our MAC address towards the namespace", _mac("mac_addr")),
    Option("gateway", "g", "ADDRESS", "default gateway of the namespace, once per IP version", _per_version("gateway")),
    Option("interface", "i", "NAME", "host interface to take addresses and routes from", _interface("interface")),
    Option("outbound", "o", "ADDRESS", "source address of connections outwards", _per_version("outbound")),
    Option("outbound-if4", "", "NAME", "bind IPv4 connections outwards to an interface", _interface("outbound_if4")),
    Option("outbound-if6", "", "NAME", "bind IPv6 connections outwards to an interface", _interface("outbound_if6")),
    Option("dns", "D", "ADDRESS|none", "name server to announce instead of the host's; repeat", _dns),
    Option(
        "dns-forward",
        "",
        "ADDRESS",
        "pass queries to this address on to the host's name server",
        _per_version("dns_forward"),
        "Ports 53 and 853, UDP and TCP; once per IP version.",
    ),
    Option("dns-host", "", "ADDRESS", "the name server that --dns-forward means", _resolver),
    Option("search", "S", "LIST|none", "search domains to announce instead of the host's", _search),
    Option("dhcp-dns", "", "", "announce name servers by DHCP, DHCPv6 and NDP", _flag("dhcp_dns")),
    Option("no-dhcp-dns", "", "", "do not announce name servers (default)", _flag("dhcp_dns", False)),
    Option("dhcp-search", "", "", "announce search domains by DHCP, DHCPv6 and NDP", _flag("dhcp_search")),
    Option("no-dhcp-search", "", "", "do not announce search domains (default)", _flag("dhcp_search", False)),
    Option("no-tcp", "", "", "no TCP", _flag("no_tcp")),
    Option("no-udp", "", "", "no UDP", _flag("no_udp")),
    Option("no-icmp", "", "", "no ICMP and ICMPv6, which includes NDP", _flag("no_icmp")),
    Option("no-dhcp", "", "", "no DHCP service", _flag("no_dhcp")),
    Option("no-ndp", "", "", "no NDP service", _flag("no_ndp")),
    Option("no-dhcpv6", "", "", "no DHCPv6 service", _flag("no_dhcpv6")),
    Option("no-ra", "", "", "no router advertisements", _flag("no_ra")),
    Option("freebind", "", "", "forwards may bind addresses the host does not have yet", _flag("freebind")),
    Option(
        "map-host-loopback",
        "",
        "ADDRESS|none",
        "traffic to this address reaches the host's loopback",
        _mapping("map_host_loopback"),
        "By default the gateway's address is mapped so; once per IP version.",
    ),
    Option("no-map-gw", "", "", "do not map the gateway's address to the host's loopback", _flag("no_map_gw")),
    Option(
        "map-guest-addr",
        "",
        "ADDRESS|none",
        "traffic to this address reaches the host's own, shadowed address",
        _mapping("map_guest_addr"),
    ),
    Option("chroot-fallback", "", "", "use chroot where pivot_root is impossible", _flag("chroot_fallback")),
    Option("ipv4-only", "4", "", "IPv4 only", _flag("ipv4_only")),
    Option("ipv6-only", "6", "", "IPv6 only", _flag("ipv6_only")),
    Option("hostname", "H", "NAME", "host name to announce by DHCP", _domain("hostname")),
    Option("fqdn", "", "NAME", "domain name to announce by DHCP and DHCPv6", _domain("fqdn")),
    Option(
        "tcp-ports",
        "t",
        "SPEC",
        "TCP ports to forward to the namespace; repeat",
        _ports("tcp_ports"),
        "See PORT SPECIFICATIONS. Default none.",
    ),
    Option(
        "udp-ports",
        "u",
        "SPEC",
        "UDP ports to forward to the namespace; repeat",
        _ports("udp_ports"),
        "Without this option UDP follows the TCP ports, untranslated, as far as they can be bound.",
    ),
    Option("ns-ifname", "I", "NAME", "name of the interface in the namespace", _interface("ns_ifname")),
    Option("tcp-ns", "T", "SPEC", "TCP ports to forward from the namespace to the host", _ports("tcp_ns")),
    Option("udp-ns", "U", "SPEC", "UDP ports to forward from the namespace to the host", _ports("udp_ns")),
    Option(
        "host-lo-to-ns-lo",
        "",
        "",
        "forwards of the host's loopback arrive on the namespace's loopback",
        _flag("host_lo_to_ns_lo"),
    ),
    Option("userns", "", "PATH", "user namespace to join", _text("userns")),
    Option("netns", "", "PATH|NAME", "network namespace to join", _text("netns")),
    Option("netns-only", "", "", "join or make no user namespace", _flag("netns_only")),
    Option("no-netns-quit", "", "", "keep running when the namespace is gone", _flag("netns_quit", False)),
    Option("no-pidns", "", "", "run the command without a PID namespace of its own", _flag("pidns", False)),
    Option(
        "config-net", "", "", "configure the namespace's interface: addresses, routes, MTU, up", _flag("config_net")
    ),
    Option("no-copy-routes", "", "", "configure the default route only", _flag("copy_routes", False)),
    Option("no-copy-addrs", "", "", "configure one address per IP version only", _flag("copy_addrs", False)),
    Option("ns-mac-addr", "", "MAC", "MAC address of the namespace's interface", _mac("ns_mac_addr")),
    Option("no-splice", "", "", "no bypass for local connections (there is none yet)", _flag("no_splice")),
    Option("splice-only", "", "", "nothing but the bypass for local connections", _flag("splice_only")),
)

NOT_YET = {
    "conf_path": ("--conf-path", "changing forwards while running"),
    "splice_only": ("--splice-only", "the bypass for local connections"),
    "host_lo_to_ns_lo": ("--host-lo-to-ns-lo", "the bypass for local connections"),
    "tcp_ns": ("-T", "forwarding from the namespace to the host"),
    "udp_ns": ("-U", "forwarding from the namespace to the host"),
}


def parse(arguments: list[str]) -> Parsed:
    """Read a command line of `pasta`, without the program's name.

    Raises:
        GetoptError: it does not follow the grammar.
        UsageError: a value is wrong, or values do not go together.
        NotYetError: it asks for what this version does not have.
    """
    by_name = {option.long: option for option in OPTIONS}
    values: Values = {}
    operands: list[str] = []
    specs = [Spec(option.long, option.short, bool(option.metavar)) for option in OPTIONS]
    for name, value in getopt(arguments, specs):
        if name:
            by_name[name].take(values, PORT_OPTIONS.get(name, f"--{name}"), value)
            if values.get("show"):
                return Parsed(Settings(), values["show"])
        else:
            operands.append(value)
    _check_not_yet(values)
    _check_families(values)
    _finish_addresses(values)
    _check_process(values, operands)
    # Without -u, UDP follows the TCP ports
    values["udp_follows_tcp"] = "udp_ports" not in values
    return Parsed(Settings(**{key: value for key, value in values.items() if key in Settings._fields}))


def _check_not_yet(values: Values) -> None:
    """Refuse what a later version will have."""
    for key, (option, what) in NOT_YET.items():
        if values.get(key):
            if key == "host_lo_to_ns_lo" and values.get("no_splice"):
                raise UsageError("--host-lo-to-ns-lo: does not go with --no-splice")
            raise NotYetError(f"{option}: {what} is not there yet")
    for key in ("tcp_ports", "udp_ports"):
        for spec in values.get(key, ()):
            if spec.auto:
                raise NotYetError(f"{spec.text}: finding ports by itself is not there yet, name them")


def _check_families(values: Values) -> None:
    """Refuse what contradicts -4 or -6."""
    only4, only6 = values.get("ipv4_only"), values.get("ipv6_only")
    if only4 and only6:
        raise UsageError("--ipv4-only: does not go with --ipv6-only")
    off, version = ("6", "--ipv4-only") if only4 else ("4", "--ipv6-only")
    if not (only4 or only6):
        return
    for dest, option in (
        ("address", "--address"),
        ("gateway", "--gateway"),
        ("outbound", "--outbound"),
        ("dns_host", "--dns-host"),
    ):
        if values.get(dest + off) is not None:
            raise UsageError(f"{option}: '{values[dest + off]}' does not go with {version}")
    for key in ("tcp_ports", "udp_ports"):
        for spec in values.get(key, ()):
            _check_spec_family(spec, off, version)


def _check_spec_family(spec: ForwardSpec, off: str, version: str) -> None:
    for address in (spec.address, *(entry.to_address for entry in spec.ranges)):
        if address is not None and (":" in address) == (off == "6"):
            raise UsageError(f"{spec.text}: address '{address}' does not go with {version}")


def _finish_addresses(values: Values) -> None:
    """Bring prefix and netmask together."""
    given = values.get("prefix_in_address4")
    mask = values.get("netmask")
    if mask is not None and given is not None:
        raise UsageError(
            f"--netmask: '{mask}' does not go with the prefix length of --address {values['address4']}/{given}"
        )
    values["prefix4"] = mask if mask is not None else given
    values["prefix6"] = values.get("prefix_in_address6")
    if values.get("no_icmp"):
        values["no_ndp"] = True
    if values.get("trace"):
        values["debug"] = True
    if values.get("quiet") and values.get("debug"):
        raise UsageError("--quiet: does not go with --debug or --trace")


def _check_process(values: Values, operands: list[str]) -> None:
    """Tell a process number from a command, and refuse namespaces that contradict each other."""
    netns, userns = values.get("netns"), values.get("userns")
    if values.get("netns_only") and userns is not None:
        raise UsageError("--netns-only: does not go with --userns")
    first = operands[0] if operands else ""
    if len(operands) == 1 and first.isascii() and first.isdigit():
        if not 0 < int(first) < 1 << 22:
            raise UsageError(f"PID: invalid value '{first}': not a process number")
        if netns is not None:
            raise UsageError(f"--netns: '{netns}' does not go with the process number {first}")
        values["target_pid"] = int(first)
    elif operands and netns is not None:
        raise UsageError(f"--netns: '{netns}' does not go with a command")
    else:
        values["command"] = tuple(operands)
    if userns is not None and netns is None and values.get("target_pid") is None:
        raise UsageError(f"--userns: '{userns}' needs --netns or a process number")
    if values.get("netns") is not None and userns is None:
        values["netns_only"] = True
