"""The one table of options: parser, --help, man page and completion are made from it.

Each record says how an option is written, what it means in a line, how its value is checked and where it is kept.
Values are collected under the field names of `Settings`, plus a few that only `parse` needs; `parse` then checks what
only shows when all are known. Of an option that comes again the last counts, unless its record says otherwise; and so
does the last of those that contradict each other (`clears`): callers put their own before or behind a user's. What is
said of an IP version that is off has no effect, but for ports to be bound at an address of it. What is wrong raises
`UsageError` with one line that names option and value; what is right but cannot be done yet `NotYetError`, after
everything else was checked.

Nothing here looks at the host: whether an interface or a file exists shows when it is used.
"""

from __future__ import annotations

from bucatini.cli.getopt import Spec, getopt
from bucatini.errors import NotYetError, UsageError
from bucatini.lean import sockets
from bucatini.lean.record import TYPE_CHECKING, NamedTuple
from bucatini.plan.ports import ForwardSpec, canonical, is_interface_name, parse_forward, shown
from bucatini.plan.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Values = dict[str, Any]
    Take = Callable[[Values, str, str, str], None]  # (values so far, field, name for messages, text)

PASTA, PASST = 1, 2  # bits of Option.modes
BOTH = PASTA | PASST
ONCE, PER_VERSION, ADDS_UP = (
    0,
    1,
    2,
)  # Option.repeat: which of several count: the last, the last of each IP version, all

PATH_MAX = 4095  # bytes without the zero byte, linux/limits.h
SOCKET_PATH_MAX = 107  # bytes without the zero byte, unix(7)
LOGIN_NAME_MAX = 256  # with the zero byte, bits/local_lim.h
ID_MAX = (1 << 32) - 2  # (uid_t) -1 means "leave it"
PID_LIMIT = 1 << 22  # PID_MAX_LIMIT, linux/threads.h


class Option(NamedTuple):
    """An option: how it is written, what it means, how its value is taken."""

    long: str
    short: str  # one letter, or empty
    metavar: str  # empty: takes no value
    help: str  # one line for --help, the first sentence of the man page
    take: Take
    dest: str = ""  # field of Settings, or what `parse` makes one from
    more: str = ""  # for the man page
    repeat: int = ONCE
    modes: int = BOTH
    not_yet: str = ""  # what is missing where the value asks for something
    hidden: bool = False  # for our own debugging: neither --help nor the man page shows it
    clears: tuple[str, ...] = ()  # fields that it takes back, whatever set them
    same_as: str = ""  # the long name of the option of which this is a second name


class Parsed(NamedTuple):
    """What a command line says."""

    settings: Settings
    show: str = ""  # "help" or "version": nothing else is to be done


# How values are taken


def bad(name: str, value: str, why: str) -> UsageError:
    """Return the error about a value."""
    return UsageError(f"{name}: invalid value '{shown(value)}': {why}")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 12


def _on(values: Values, dest: str, name: str, text: str) -> None:
    values[dest] = True


def _off(values: Values, dest: str, name: str, text: str) -> None:
    values[dest] = False


def _nothing(values: Values, dest: str, name: str, text: str) -> None:
    """Accepted, without effect."""


def _show(values: Values, dest: str, name: str, text: str) -> None:
    values["show"] = dest


def _inherited(values: Values, dest: str, name: str, text: str) -> None:
    if not _is_number(text) or not 3 <= int(text) < 1 << 20:
        raise bad(name, text, "not a descriptor of its own, from 3")
    values[dest] = int(text)


def _path(values: Values, dest: str, name: str, text: str) -> None:
    if not text:
        raise bad(name, text, "an empty path")
    if len(text.encode(errors="surrogateescape")) > PATH_MAX:
        raise bad(name, text, "too long for a path")
    values[dest] = text


def _socket_path(values: Values, dest: str, name: str, text: str) -> None:
    if len(text.encode(errors="surrogateescape")) > SOCKET_PATH_MAX:
        raise bad(name, text, f"the path of a socket has at most {SOCKET_PATH_MAX} bytes")
    _path(values, dest, name, text)


def _number(low: int, high: int) -> Take:
    def take(values: Values, dest: str, name: str, text: str) -> None:
        if not _is_number(text) or not low <= int(text) <= high:
            raise bad(name, text, f"not a number from {low} to {high}")
        values[dest] = int(text)

    return take


FAULTS = ("loss", "duplicate", "reorder", "corrupt", "truncate", "late", "seed")


def _fault(values: Values, dest: str, name: str, text: str) -> None:
    found = []
    for item in text.split(","):
        fault, _, number = item.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if fault not in FAULTS or value < 0 or (value > 1 and fault != "seed"):
            raise bad(name, text, "not NAME=NUMBER,... with a NAME of " + " ".join(FAULTS))
        found.append((fault, value))
    values[dest] = tuple(found)


def _mtu(values: Values, dest: str, name: str, text: str) -> None:
    if not _is_number(text) or (int(text) and not 68 <= int(text) <= 65520):  # RFC 791 §3.2
        raise bad(name, text, "not an MTU: 0, or 68 to 65520")
    values[dest] = int(text)


def _version_of(name: str, text: str) -> tuple[str, str, bytes]:
    """Return an address in canonical text, "4" or "6", and packed."""
    address = canonical(text)
    if address is None or "%" in address:
        raise bad(name, text, "not an IPv4 or IPv6 address")
    v6 = ":" in address
    raw = sockets.inet_pton(sockets.AF_INET6 if v6 else sockets.AF_INET, address)
    if not any(raw):
        raise bad(name, text, "the unspecified address")
    if raw[0] == 0xFF or (not v6 and raw[0] >= 224):
        raise bad(name, text, "not a unicast address")
    if raw.startswith(bytes(10) + b"\xff\xff"):  # RFC 4291 §2.5.5.2
        raise bad(name, text, "an IPv4 address in IPv6 form, write it as IPv4")
    return address, "6" if v6 else "4", raw


def _unicast(name: str, text: str) -> tuple[str, str]:
    """Return an address, and "4" or "6", that can be on a wire."""
    address, version, raw = _version_of(name, text)
    if address == "::1" or (version == "4" and raw[0] == 127):
        raise bad(name, text, "a loopback address")
    return address, version


def _per_version(values: Values, dest: str, name: str, text: str) -> None:
    address, version = _unicast(name, text)
    values[dest + version] = address


def _resolver(values: Values, dest: str, name: str, text: str) -> None:
    """Take the address of a name server of the host's, which may be a stub on its loopback."""
    address, version, _ = _version_of(name, text)
    values[dest + version] = address


def _address(values: Values, dest: str, name: str, text: str) -> None:
    bare, slash, bits = text.partition("/")
    if canonical(bare) is None:
        raise bad(name, text, "not an IPv4 or IPv6 address")
    address, version = _unicast(name, bare)
    limit = 32 if version == "4" else 128
    if slash and (not _is_number(bits) or not 1 <= int(bits) <= limit):
        raise bad(name, text, f"a prefix length is from 1 to {limit}")
    values[dest + version] = address
    values["prefix_in_address" + version] = int(bits) if slash else None


def _netmask(values: Values, dest: str, name: str, text: str) -> None:
    if _is_number(text) and 1 <= int(text) <= 32:
        values[dest] = int(text)
        return
    address = canonical(text)
    if address is not None and ":" not in address and "%" not in address:
        mask = int.from_bytes(sockets.inet_pton(sockets.AF_INET, address), "big")
        inverted = mask ^ 0xFFFFFFFF
        if mask and not inverted & (inverted + 1):
            values[dest] = mask.bit_count()
            return
    raise bad(name, text, "not an IPv4 mask, dotted or 1 to 32")


def _mac(values: Values, dest: str, name: str, text: str) -> None:
    parts = text.replace("-", ":").split(":")
    if len(parts) != 6 or any(not 1 <= len(p) <= 2 or p.strip("0123456789abcdefABCDEF") for p in parts):
        raise bad(name, text, "not a MAC address")
    raw = bytes(int(part, 16) for part in parts)
    if raw[0] & 1 or not any(raw):
        raise bad(name, text, "not the MAC address of a single station")
    values[dest] = raw


def _interface(values: Values, dest: str, name: str, text: str) -> None:
    if not is_interface_name(text):
        raise bad(name, text, "not an interface name")
    values[dest] = text


def _new_interface(values: Values, dest: str, name: str, text: str) -> None:
    if "%" in text:
        raise bad(name, text, "the kernel would put a number in place of %d")
    _interface(values, dest, name, text)


def _dns(values: Values, dest: str, name: str, text: str) -> None:
    if text == "none":
        values[dest] = ()
        return
    values[dest] = (*values.get(dest, ()), _version_of(name, text)[0])


def _search(values: Values, dest: str, name: str, text: str) -> None:
    if text == "none":
        values[dest] = ()
        return
    domains = tuple(text.split(" "))
    for domain in domains:
        _check_domain(name, text, domain)
    values[dest] = domains


def _check_domain(name: str, text: str, domain: str) -> None:
    """Check a domain name: RFC 1035 §2.3.4 for lengths, letters, digits, hyphens and underscores."""
    labels = domain.removesuffix(".").split(".")
    if len(domain) > 254 or any(not 0 < len(label) < 64 or not _is_label(label) for label in labels):
        raise bad(name, text, "not a domain name" if text == domain else f"'{shown(domain)}' is not a domain name")


def _is_label(text: str) -> bool:
    return text.isascii() and text.replace("-", "0").replace("_", "0").isalnum()


def _domain(values: Values, dest: str, name: str, text: str) -> None:
    _check_domain(name, text, text)
    values[dest] = text


def _mapping(values: Values, dest: str, name: str, text: str) -> None:
    if text == "none":
        values[dest] = ()
        return
    address, version = _unicast(name, text)
    others = tuple(a for a in values.get(dest) or () if (":" in a) != (version == "6"))
    values[dest] = (*others, address)


def _ports(values: Values, dest: str, name: str, text: str) -> None:
    spec = parse_forward(name, text)
    # "none" takes back what came before it, and anything behind it counts again
    values[dest] = () if text == "none" else (*values.get(dest, ()), spec)


def _runas(values: Values, dest: str, name: str, text: str) -> None:
    login, colon, group = text.partition(":")
    for part in (login, group) if colon else (login,):
        if not 0 < len(part) < LOGIN_NAME_MAX or not part.isprintable() or " " in part or ":" in part:
            raise bad(name, text, "not UID, UID:GID, LOGIN or LOGIN:GROUP")
        if part.isdigit() and not (_is_number(part) and int(part) <= ID_MAX):
            raise bad(name, text, f"a user or group number is at most {ID_MAX}")
    values[dest] = text


def _repair_path(values: Values, dest: str, name: str, text: str) -> None:
    if text == "none":
        values[dest] = ""
    else:
        _socket_path(values, dest, name, text)


# The table, in the order of --help and of the man page

VHOST_USER = "vhost-user is not there yet"
MIGRATION = "migration is not there yet"

GROUPS: tuple[tuple[str, tuple[Option, ...]], ...] = (
    (
        "Process",
        (
            Option("foreground", "f", "", "stay in the foreground", _on, "foreground"),
            Option(
                "pid", "P", "FILE", "write the process number there", _path, "pid_file",
                "It is complete before the parent exits.",
            ),
            Option(
                "runas", "", "UID[:GID]|LOGIN[:GROUP]", "who to be when started as root (default nobody)", _runas,
                "runas",
                "Root of a user namespace that is not the first one stays what it is.",
            ),
            Option("chroot-fallback", "", "", "use chroot where pivot_root is impossible", _on, "chroot_fallback"),
            Option(
                "no-isolation", "", "", "give nothing up before serving", _off, "isolated", hidden=True,
            ),
            Option(
                "conf-path", "c", "PATH", "socket for changes while running", _socket_path, "conf_path",
                not_yet="changing forwards while running is not there yet",
            ),
            Option("help", "h", "", "show this help", _show, "help"),
            Option("version", "", "", "show version and licence", _show, "version"),
        ),
    ),
    (
        "Messages",
        (
            Option(
                "quiet", "q", "", "no informational output", _on, "quiet",
                "Warnings and errors remain. Takes back --debug and --trace, and they take this back.",
                clears=("debug", "trace"),
            ),
            Option(
                "debug", "d", "", "be verbose", _on, "debug",
                "What it adds goes to standard error, or to the file of --log-file, and never to the system log: in "
                "the background without such a file it ends with readiness.", clears=("quiet",),
            ),
            Option(
                "trace", "", "", "one line for each frame; implies --debug", _on, "trace",
                "Not in the system log either: in the background it needs --log-file.", clears=("quiet",),
            ),
            Option(
                "stats", "", "SECONDS", "log counters that moved, at most that often", _number(1, 86400), "stats",
            ),
            Option("stderr", "e", "", "accepted for compatibility, no effect", _nothing),
            Option(
                "log-file", "l", "PATH", "log to a file", _path, "log_file",
                "Without it messages go to standard error, and in the background to the system log.",
            ),
            Option(
                "log-size", "", "BYTES", "most the log file may hold (default 1 MiB)", _number(4096, 1 << 40),
                "log_size",
                "When it is full the oldest entries are cut.",
            ),
            Option(
                "fault", "", "NAME=NUMBER,...", "do to frames what a bad link does", _fault, "fault", hidden=True,
            ),
            Option(
                "pcap", "p", "FILE", "capture the frames of the namespace's side", _path, "pcap",
                "Any program that reads pcap files opens it.",
            ),
        ),
    ),
    (
        "Namespaces",
        (
            Option(
                "userns", "", "PATH", "user namespace to join", _path, "userns",
                "Takes back --netns-only, and that takes this back.", modes=PASTA, clears=("netns_only",),
            ),
            Option(
                "netns", "", "PATH|NAME", "network namespace to join", _path, "netns",
                "A name is looked up in /run/netns. Without --userns, no user namespace is joined.", modes=PASTA,
            ),
            Option(
                "netns-only", "", "", "join or make no user namespace", _on, "netns_only", modes=PASTA,
                clears=("userns",),
            ),
            Option(
                "no-netns-quit", "", "", "keep running when the namespace is gone", _off, "netns_quit", modes=PASTA
            ),
            Option(
                "no-pidns", "", "", "no PID namespace of its own for the command", _off, "pidns",
                "With --foreground there is none either.", modes=PASTA,
            ),
            Option(
                "config-net", "", "", "configure the namespace's interface", _on, "config_net",
                "It is given addresses, routes and MTU, and brought up. Without this option a DHCP client in the "
                "namespace, or SLAAC, does it.", modes=PASTA,
            ),
            Option(
                "no-copy-routes", "", "", "configure the default route only", _off, "copy_routes",
                "By default all routes of the host's interface are copied. --gateway implies it for its IP version.",
                modes=PASTA,
            ),
            Option(
                "no-copy-addrs", "", "", "configure one address per IP version only", _off, "copy_addrs",
                "By default all addresses of the host's interface are copied. --address implies it for its IP version.",
                modes=PASTA,
            ),
            Option(
                "ns-ifname", "I", "NAME", "name of the interface in the namespace", _new_interface, "ns_ifname",
                "By default that of the host's interface, or tap0.", modes=PASTA,
            ),
            Option(
                "ns-mac-addr", "", "MAC", "MAC address of the interface in the namespace", _mac, "ns_mac_addr",
                modes=PASTA,
            ),
        ),
    ),
    (
        "Virtual machines",
        (
            Option(
                "socket", "s", "PATH", "UNIX socket to listen on for QEMU", _socket_path, "socket_path",
                "Default the first of /tmp/passt_1.socket to /tmp/passt_64.socket that nobody uses. "
                "Takes back --fd, and that takes this back.", modes=PASST, clears=("fd",),
            ),
            Option(
                "socket-path", "", "PATH", "the same as --socket", _socket_path, "socket_path", modes=PASST,
                clears=("fd",), same_as="socket",
            ),
            Option(
                "fd", "F", "FD", "a connected socket that was inherited; implies --one-off", _inherited, "fd",
                modes=PASST, clears=("socket_path",),
            ),
            Option("one-off", "1", "", "end when the client disconnects", _on, "one_off", modes=PASST),
            Option(
                "vhost-user", "", "", "the socket speaks vhost-user", _on, "vhost_user", modes=PASST,
                not_yet=VHOST_USER,
            ),
            Option(
                "print-capabilities", "", "", "show what the vhost-user back-end can do", _on, "print_capabilities",
                modes=PASST, not_yet=VHOST_USER,
            ),
            Option(
                "repair-path", "", "PATH|none", "socket for passt-repair", _repair_path, "repair_path", modes=PASST,
                not_yet=MIGRATION,
            ),
            Option(
                "migrate-exit", "", "", "end after a migration away from here", _on, "migrate_exit", modes=PASST,
                not_yet=MIGRATION,
            ),
            Option(
                "migrate-no-linger", "", "", "after a migration, close the sockets at once", _on, "migrate_no_linger",
                modes=PASST, not_yet=MIGRATION,
            ),
        ),
    ),
    (
        "Addresses",
        (
            Option(
                "ipv4-only", "4", "", "IPv4 only", _on, "ipv4_only", "Takes back --ipv6-only.", clears=("ipv6_only",)
            ),
            Option(
                "ipv6-only", "6", "", "IPv6 only", _on, "ipv6_only", "Takes back --ipv4-only.", clears=("ipv4_only",)
            ),
            Option(
                "interface", "i", "NAME", "host interface to take addresses and routes from", _interface, "interface",
                "By default, for each IP version, the one of the first default route, or else of the first route.",
            ),
            Option(
                "address", "a", "ADDRESS[/BITS]", "address of the namespace", _address, "address",
                "By default that of the host's interface; without one 169.254.2.1, and none of IPv6.", PER_VERSION,
            ),
            Option(
                "netmask", "n", "MASK", "IPv4 netmask, dotted or bits", _netmask, "netmask",
                "By default that of the host's address, or what the class of the address says.",
            ),
            Option(
                "gateway", "g", "ADDRESS", "default gateway of the namespace", _per_version, "gateway",
                "By default the host's, of several the heaviest; without one 169.254.2.2 and fe80::1.", PER_VERSION,
            ),
            Option("mtu", "m", "BYTES", "MTU of the namespace (default 65520, 0: leave it)", _mtu, "mtu"),
            Option(
                "mac-addr", "M", "MAC", "our MAC address towards the namespace", _mac, "mac_addr",
                "Default 9a:55:9a:55:9a:55.",
            ),
            Option("outbound", "o", "ADDRESS", "source address outwards", _per_version, "outbound", "", PER_VERSION),
            Option(
                "outbound-if4", "", "NAME", "interface of the host for IPv4 outwards", _interface, "outbound_if4",
                "Addresses and routes are taken from it too, unless --interface says otherwise.",
            ),
            Option(
                "outbound-if6", "", "NAME", "interface of the host for IPv6 outwards", _interface, "outbound_if6",
                "Addresses and routes are taken from it too, unless --interface says otherwise.",
            ),
            Option(
                "map-host-loopback", "", "ADDRESS|none", "this address reaches the host's loopback", _mapping,
                "map_host_loopback",
                "By default the gateway's does, but for DNS where the gateway is the host's name server.", PER_VERSION,
            ),
            Option("no-map-gw", "", "", "the gateway does not stand for the host's loopback", _on, "no_map_gw"),
            Option(
                "map-guest-addr", "", "ADDRESS|none", "this address reaches the host's own", _mapping, "map_guest_addr",
                "The namespace cannot reach the host by the address that both have.", PER_VERSION,
            ),
        ),
    ),
    (
        "Names",
        (
            Option(
                "dns-forward", "", "ADDRESS", "queries to this address go to the host's name server", _per_version,
                "dns_forward", "Ports 53 and 853, UDP and TCP.", PER_VERSION,
            ),
            Option(
                "dns-host", "", "ADDRESS", "the name server that --dns-forward means", _resolver, "dns_host",
                "By default the first of /etc/resolv.conf.", PER_VERSION,
            ),
            Option(
                "dns", "D", "ADDRESS|none", "name server to announce, not the host's", _dns, "dns", "", ADDS_UP
            ),
            Option("search", "S", "LIST|none", "search domains to announce, not the host's", _search, "search",
                   "The list is one argument, separated by spaces."),
            Option("dhcp-dns", "", "", "announce name servers by DHCP, DHCPv6 and NDP", _on, "dhcp_dns", modes=PASTA),
            Option("dhcp-search", "", "", "announce search domains likewise", _on, "dhcp_search", modes=PASTA),
            Option("no-dhcp-dns", "", "", "announce no name servers", _off, "dhcp_dns", modes=PASST),
            Option("no-dhcp-search", "", "", "announce no search domains", _off, "dhcp_search", modes=PASST),
            Option("hostname", "H", "NAME", "host name to announce by DHCP", _domain, "hostname"),
            Option("fqdn", "", "NAME", "full name to announce by DHCP and DHCPv6", _domain, "fqdn"),
        ),
    ),
    (
        "Protocols and services",
        (
            Option("no-tcp", "", "", "no TCP", _on, "no_tcp"),
            Option("no-udp", "", "", "no UDP", _on, "no_udp"),
            Option("no-icmp", "", "", "no ICMP and ICMPv6, which includes NDP", _on, "no_icmp"),
            Option("no-dhcp", "", "", "no DHCP service", _on, "no_dhcp"),
            Option("no-dhcpv6", "", "", "no DHCPv6 service", _on, "no_dhcpv6"),
            Option("no-ndp", "", "", "no NDP service", _on, "no_ndp"),
            Option("no-ra", "", "", "no router advertisements", _on, "no_ra"),
        ),
    ),
    (
        "Forwards",
        (
            Option(
                "tcp-ports", "t", "SPEC", "TCP ports to forward to the namespace", _ports, "tcp_ports",
                "See PORT SPECIFICATIONS. Default auto.", ADDS_UP, PASTA,
            ),
            Option(
                "tcp-ports", "t", "SPEC", "TCP ports to forward to the guest", _ports, "tcp_ports",
                "See PORT SPECIFICATIONS. Default none.", ADDS_UP, PASST,
            ),
            Option(
                "udp-ports", "u", "SPEC", "UDP ports to forward to the namespace", _ports, "udp_ports",
                "Default auto; and UDP follows the TCP ports, untranslated, as far as they can be bound.", ADDS_UP,
                PASTA,
            ),
            Option(
                "udp-ports", "u", "SPEC", "UDP ports to forward to the guest", _ports, "udp_ports",
                "By default UDP follows the TCP ports, untranslated, as far as they can be bound.", ADDS_UP, PASST,
            ),
            Option(
                "tcp-ns", "T", "SPEC", "TCP ports to forward from the namespace", _ports, "tcp_ns",
                "From the namespace's loopback to the host's. Default auto.", ADDS_UP, PASTA,
            ),
            Option(
                "udp-ns", "U", "SPEC", "UDP ports to forward from the namespace", _ports, "udp_ns",
                "From the namespace's loopback to the host's. Default auto.", ADDS_UP, PASTA,
            ),
            Option("freebind", "", "", "forwards may bind addresses not there yet", _on, "freebind"),
            Option(
                "host-lo-to-ns-lo", "", "", "from the host's loopback to the namespace's", _on, "host_lo_to_ns_lo",
                "Otherwise forwarded connections from the host's loopback arrive at the public address.", modes=PASTA,
            ),
            Option(
                "no-splice", "", "", "no bypass for local connections", _on, "no_splice",
                "They go over the tap like all others; there is nothing to do for -T and -U.", modes=PASTA,
            ),
            Option(
                "splice-only", "", "", "nothing but the bypass", _on, "splice_only",
                "There is no tap in the namespace: only forwards connect it, for local connections.", modes=PASTA,
            ),
        ),
    ),
)  # fmt: skip


def in_mode(mode: int) -> tuple[Option, ...]:
    """Return the options of `PASTA` or `PASST`; those of the other are unknown to it."""
    return tuple(option for _, options in GROUPS for option in options if option.modes & mode)


OPTIONS = in_mode(PASTA)
NAMES = {PASTA: "pasta", PASST: "passt"}
AUTO = (("tcp_ports", "-t"), ("udp_ports", "-u"), ("tcp_ns", "-T"), ("udp_ns", "-U"))  # what forwards, by default auto


def parse(arguments: list[str], mode: int = PASTA) -> Parsed:
    """Read a command line of `pasta` or `passt`, without the program's name.

    Raises:
        GetoptError: it does not follow the grammar.
        UsageError: a value is wrong, or values do not go together.
        NotYetError: it asks for what this version does not have.
    """
    options = in_mode(mode)
    by_name = {option.long: option for option in options}
    values: Values = {}
    operands: list[str] = []
    specs = [Spec(o.long, o.short, bool(o.metavar), o.same_as, o.hidden) for o in options]
    for long, value in getopt(arguments, specs):
        if long:
            option = by_name[long]
            # Port specifications are best known by their letter
            name = f"-{option.short}" if option.take is _ports else f"--{long}"
            option.take(values, option.dest, name, value)
            for other in option.clears:
                values.pop(other, None)
            if "show" in values:
                return Parsed(Settings(), values["show"])
        else:
            operands.append(value)
    _check_families(values)
    _finish_addresses(values)
    if values.get("trace"):
        values["debug"] = True
    if mode == PASTA:
        _check_splice(values)
        _check_process(values, operands)
    else:
        _check_machine(values, operands)
    _check_not_yet(values, options)
    values["udp_follows_tcp"] = "udp_ports" not in values
    values["bypass"] = mode == PASTA and not values.get("no_splice")
    for dest, name in AUTO if mode == PASTA else ():
        if dest not in values and (values["bypass"] or dest.endswith("_ports")):
            values[dest] = (parse_forward(name, "auto"),)
    return Parsed(Settings(**{key: value for key, value in values.items() if key in Settings._fields}))


def _check_families(values: Values) -> None:
    """Refuse to bind where -4 or -6 leaves nothing to bind."""
    for off, option, only in (("6", "--ipv4-only", "ipv4_only"), ("4", "--ipv6-only", "ipv6_only")):
        for key, _ in AUTO if values.get(only) else ():
            for spec in values.get(key, ()):
                _check_spec_family(spec, off, option)


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


def _check_splice(values: Values) -> None:
    if values.get("no_splice"):
        for dest, name in (("host_lo_to_ns_lo", "--host-lo-to-ns-lo"), ("splice_only", "--splice-only")):
            if values.get(dest):
                raise UsageError(f"{name}: does not go with --no-splice")
        for dest in ("tcp_ns", "udp_ns"):
            for spec in values.get(dest, ()):
                if spec.ranges:
                    raise UsageError(f"{spec.text}: does not go with --no-splice")


def _check_process(values: Values, operands: list[str]) -> None:
    """Tell a process number from a command, and refuse namespaces that contradict it."""
    netns, userns = values.get("netns"), values.get("userns")
    first = operands[0] if operands else ""
    if len(operands) == 1 and first.isascii() and first.isdigit():
        if not _is_number(first) or not 0 < int(first) < PID_LIMIT:
            raise UsageError(f"PID: invalid value '{shown(first)}': not a process number")
        if netns is not None:
            raise UsageError(f"--netns: '{shown(netns)}' does not go with the process number {first}")
        values["target_pid"] = int(first)
    elif operands and netns is not None:
        raise UsageError(f"--netns: '{shown(netns)}' does not go with the command '{shown(first)}'")
    else:
        values["command"] = tuple(operands)
    if userns is not None and netns is None and values.get("target_pid") is None:
        raise UsageError(f"--userns: '{shown(userns)}' needs --netns or a process number")
    if netns is not None and userns is None:
        values["netns_only"] = True


def _check_machine(values: Values, operands: list[str]) -> None:
    """Check what only a virtual machine's command line can have wrong, and announce names unless told not to."""
    if operands:
        raise UsageError(f"'{shown(operands[0])}': there are no operands, only options")
    if values.get("fd") is not None:
        values["one_off"] = True
    for dest in ("tcp_ports", "udp_ports"):
        for spec in values.get(dest, ()):
            if spec.auto:
                raise UsageError(f"{spec.text}: what is bound in a virtual machine cannot be seen from here")
    values.setdefault("dhcp_dns", True)
    values.setdefault("dhcp_search", True)


def _check_not_yet(values: Values, options: tuple[Option, ...]) -> None:
    """Refuse what a later version will have."""
    for option in options:
        asked = values.get(option.dest)
        if option.not_yet and asked:
            given = asked[0].text if option.take is _ports else f"--{option.long}"
            raise NotYetError(f"{given}: {option.not_yet}")
