"""Real libvirt, its session driver run by the user: `<interface type='user'><backend type='passt'/>`."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bucatini.bench.machine import Agent
from system.machine import Passt
from system.namespaces import alive, receive, wait_until
from system.programs import need
from system.servers import http
from system.topology import GATEWAY4, HOST4, SERVER4, url
from system.users import only_unprivileged

pytestmark = [only_unprivileged, pytest.mark.timeout(120)]

DOMAIN = """
<domain type='qemu'>
  <name>bucatini</name>
  <memory unit='MiB'>384</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{boot}/vmlinuz</kernel>
    <initrd>{boot}/initrd</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 tsc=unstable</cmdline>
  </os>
  <devices>
    <interface type='user'>
      <mac address='02:00:00:00:00:44'/>
      <ip address='192.0.2.50' family='ipv4' prefix='24'/>
      <backend type='passt' logFile='{folder}/passt.log'/>
      <portForward proto='tcp'><range start='2022' to='22'/></portForward>
      <portForward proto='tcp' address='127.0.0.1'><range start='3000' end='3005'/></portForward>
      <model type='virtio'/>
    </interface>
    <controller type='virtio-serial'/>
    <channel type='unix'>
      <source mode='bind' path='{folder}/agent'/>
      <target type='virtio' name='agent'/>
    </channel>
  </devices>
</domain>
"""


class Libvirt:
    """A libvirtd of the user's, and virsh."""

    def __init__(self, passt: Passt) -> None:
        folder = passt.workspace
        self.passt, self.folder = passt, folder
        programs = Path(passt.installation.passt).parent
        self.environment = [
            "env", "-i", f"HOME={folder}", f"XDG_RUNTIME_DIR={folder}/run",
            f"PATH={programs}:/usr/sbin:/usr/bin:/sbin:/bin",
        ]  # fmt: skip
        passt.topology.host.run("mkdir", f"{folder}/run", user=passt.user)
        command = passt.topology.host.command([*self.environment, "libvirtd"], passt.user)
        with (folder / "libvirtd.log").open("w") as log:
            self.daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        wait_until((folder / "run/libvirt/libvirt-sock").exists, "libvirtd")

    def virsh(self, *arguments: str) -> str:
        """Run virsh."""
        command = [*self.environment, "virsh", "-c", "qemu:///session", *arguments]
        return self.passt.topology.host.run(*command, user=self.passt.user).stdout

    def close(self) -> None:
        """End the daemon, and the one for logs that it has started; the domains have been ended before."""
        self.daemon.terminate()
        self.daemon.wait(10)
        logs = self.folder / "run/libvirt/virtlogd.pid"
        if logs.exists():
            os.kill(int(logs.read_text()), signal.SIGTERM)


@pytest.fixture
def libvirt(passt: Passt) -> Iterator[Libvirt]:
    need("libvirtd", "libvirt-daemon libvirt-daemon-driver-qemu")
    need("virsh", "libvirt-clients")
    made = Libvirt(passt)
    yield made
    made.close()


def test_a_domain_with_a_passt_interface(libvirt: Libvirt, bootable: tuple[Path, str]) -> None:
    folder, passt = libvirt.folder, libvirt.passt
    domain = folder / "domain.xml"
    domain.write_text(DOMAIN.format(boot=bootable[0], folder=folder))
    for _ in range(2):  # and once more, with the same files
        libvirt.virsh("create", str(domain))
        (pid_file,) = (folder / "run/libvirt/qemu/run/passt").glob("*-bucatini-net0-passt.pid")
        pid = int(pid_file.read_text())
        try:
            assert alive(pid)
            agent = Agent(folder / "agent")
            agent.connect(time.monotonic() + 60)
            agent.configure()
            assert "ip=192.0.2.50" in agent.shell("cat /run/lease")
            assert f"router={GATEWAY4}" in agent.shell("cat /run/lease")
            server = passt.topology.server.serve_tcp(SERVER4, http({"/": b"the page"}))
            assert agent.shell(f"curl -sS -m 10 {url(SERVER4, server.port)}").strip() == "the page"
            agent.shell("httpd -p 22 -h /etc")
            with passt.topology.server.connect(HOST4, 2022) as connection:
                connection.sendall(b"GET /passwd HTTP/1.0\r\n\r\n")
                assert b"root:x:0:0" in receive(connection)
            agent.hang_up()
        finally:
            libvirt.virsh("destroy", "bucatini")
        wait_until(lambda: not alive(pid), "the end of passt")
