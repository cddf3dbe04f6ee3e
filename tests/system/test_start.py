"""What a whole start imports: all of it is paid before the namespace is connected, and nothing later."""

import pytest

from start_modules import DEAR, RUNNING, imported, ours, standard
from system.topology import Pasta
from system.users import only_unprivileged

pytestmark = [only_unprivileged, pytest.mark.release]

NO_FORWARDS = ("-t", "none", "-u", "none", "-T", "none", "-U", "none")  # as Podman starts it

# Without the packet path, whose modules are all needed.
OURS = {
    "bucatini.cli.getopt",
    "bucatini.cli.options",
    "bucatini.cli.pasta",
    "bucatini.cli.program",
    "bucatini.errors",
    "bucatini.guest.configure",
    "bucatini.guest.namespace",
    "bucatini.guest.tap",
    "bucatini.guest.watch",
    "bucatini.host.declared_calls",
    "bucatini.host.isolation",
    "bucatini.host.kernel",
    "bucatini.host.landlock",
    "bucatini.host.netlink",
    "bucatini.host.process",
    "bucatini.host.resolv",
    "bucatini.host.seccomp",
    "bucatini.host.view",
    "bucatini.lean.record",
    "bucatini.lean.signals",
    "bucatini.lean.sockets",
    "bucatini.plan.plan",
    "bucatini.plan.ports",
    "bucatini.plan.settings",
    "bucatini.runtime.forwards",
    "bucatini.runtime.instance",
    "bucatini.runtime.log",
    "bucatini.runtime.lookout",
    "bucatini.runtime.pasta",
    "bucatini.services.arp",
    "bucatini.services.config",
    "bucatini.services.dhcp",
    "bucatini.services.dhcpv6",
    "bucatini.services.discovery",
    "bucatini.services.ndp",
    "bucatini.services.responder",
    "bucatini.wire.arp",
    "bucatini.wire.checksum",
    "bucatini.wire.dhcp",
    "bucatini.wire.dhcpv6",
    "bucatini.wire.domain",
    "bucatini.wire.ethernet",
    "bucatini.wire.icmp",
    "bucatini.wire.ipv4",
    "bucatini.wire.ipv6",
    "bucatini.wire.ndp",
    "bucatini.wire.udp",
}


@pytest.fixture
def found(pasta: Pasta) -> set[str]:
    """Modules imported by pasta and by the processes that it forks, up to the exec of the command."""
    environment = {"PYTHONPROFILEIMPORTTIME": "1", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    bare = pasta.topology.host.run(pasta.installation.python, "-X", "importtime", "-c", "pass").stderr
    result = pasta.run("--config-net", *NO_FORWARDS, command=["true"], env=environment)
    return imported(result.stderr) - imported(bare)


def test_a_start_costs_no_dear_module(found: set[str]) -> None:
    assert not (found | standard(found)) & DEAR


def test_a_start_costs_only_what_is_listed(found: set[str]) -> None:
    assert standard(found) <= RUNNING


def test_a_start_needs_only_these_modules_of_ours(found: set[str]) -> None:
    compiled = {module for module in found if module.startswith("bucatini.datapath")}
    assert "bucatini.datapath.loop" in compiled
    assert ours(found) - compiled == OURS
