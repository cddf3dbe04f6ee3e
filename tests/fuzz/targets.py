"""The fuzz targets: a name, what takes the bytes, what to begin with, and the corpora that were found so far.

A target is a function of bytes that raises when something is wrong: not a crash alone, but a property that does not
hold. It keeps nothing from one input to the next, so that an input says all about what it shows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import fuzz_native
import fuzz_segments
import fuzz_tcp

from fuzz import frames, services, text

CORPORA = Path(__file__).parent / "corpus"


class Target(NamedTuple):
    """What is fuzzed, and how."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    size: int  # bytes of an input at most
    modules: tuple[str, ...] = ()  # Python modules whose branches guide the search; compiled ones always do


TARGETS = {
    "arp": Target(services.fuzz_arp, services.seeds_arp, 64, ("wire.arp", "services.arp")),
    "dhcp": Target(services.fuzz_dhcp, services.seeds_dhcp, 400, ("wire.dhcp", "services.dhcp")),
    "dhcpv6": Target(services.fuzz_dhcpv6, services.seeds_dhcpv6, 300, ("wire.dhcpv6", "services.dhcpv6")),
    "dns": Target(text.fuzz_dns, text.seeds_dns, 300, ("wire.domain", "host.resolv")),
    "ndp": Target(services.fuzz_ndp, services.seeds_ndp, 200, ("wire.ndp", "wire.domain", "services.ndp")),
    "netlink": Target(text.fuzz_netlink, text.seeds_netlink, 300, ("host.netlink", "host.listeners")),
    "ports": Target(text.fuzz_ports, text.seeds_ports, 120, ("plan.ports",)),
    "frame": Target(fuzz_native.frame, frames.seeds_frame, 300),
    "fragments": Target(fuzz_native.fragments, frames.seeds_fragments, 96),
    "options": Target(fuzz_native.options, frames.seeds_options, 44),
    "reference": Target(frames.fuzz_reference, frames.seeds_frame, 200),
    "segments": Target(fuzz_segments.segments, frames.seeds_segments, 160),
    "stream": Target(fuzz_native.stream, frames.seeds_stream, 200),
    "tcp": Target(fuzz_tcp.model, frames.seeds_tcp, 80),
}


def read(name: str) -> list[bytes]:
    """Return the inputs kept for a target: one a line, in hexadecimal; what begins with # is for people."""
    path = CORPORA / f"{name}.hex"
    lines = path.read_text().splitlines() if path.exists() else []
    return [bytes.fromhex(line) for line in lines if not line.startswith("#")]
