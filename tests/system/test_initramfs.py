"""L14: where `/` is an initramfs, which cannot be exchanged. A machine whose init never left it runs passt itself."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import bucatini
from bucatini.bench.machine import Machine

pytestmark = [pytest.mark.release, pytest.mark.timeout(180)]

PASST = "/opt/passt"
SOCKET = "/tmp/passt.socket"
# An ARP request for the gateway, as QEMU would send it; prints the MAC address in the answer
ASK = """
import socket
s = socket.socket(socket.AF_UNIX)
s.settimeout(10)
s.connect('/tmp/passt.socket')
mac, us, gateway = bytes.fromhex('020000000011'), bytes([192, 0, 2, 2]), bytes([192, 0, 2, 1])
arp = bytes.fromhex('0001080006040001') + mac + us + bytes(6) + gateway
frame = b'\\xff' * 6 + mac + b'\\x08\\x06' + arp
s.sendall(len(frame).to_bytes(4, 'big') + frame)
data = b''
while not (data[16:18] == b'\\x08\\x06' and data[24:26] == b'\\0\\2' and data[32:36] == gateway):
    size = int.from_bytes(s.recv(4, socket.MSG_WAITALL), 'big')
    data = bytes(4) + s.recv(size, socket.MSG_WAITALL)
print('answered by', data[26:32].hex(':'))
"""


@pytest.fixture
def initramfs(bootable: tuple[Path, str], tmp_path: Path) -> Iterator[Machine]:
    """A machine with nothing but its initramfs, in which our package is."""
    image, kind = bootable
    tree = tmp_path / "tree"
    package = Path(bucatini.__file__).parent
    shutil.copytree(
        package, tree / "opt/bucatini", ignore=shutil.ignore_patterns("*.c", "*.pyx", "*.pxd", "__pycache__")
    )
    program = tree / "opt/passt"
    program.write_text("#!/usr/bin/python3\nimport sys\nfrom bucatini.cli.passt import main\nsys.exit(main())\n")
    program.chmod(0o755)
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    archive = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"],
        cwd=tree,
        input=names.encode(),
        capture_output=True,
        check=True,
    ).stdout
    # The kernel unpacks one archive after the other
    boot = tmp_path / "boot"
    boot.mkdir()
    shutil.copy(image / "vmlinuz", boot)
    (boot / "initrd").write_bytes((image / "initrd").read_bytes() + archive)
    with Machine(boot, tmp_path, "user,id=net,restrict=on", accelerator=kind) as made:
        made.shell("echo nobody:x:65534:65534::/:/bin/false >>/etc/passwd; grep -q '^rootfs / rootfs' /proc/mounts")
        made.shell("ip link set eth0 up; ip address add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1")
        yield made


def test_L14_an_initramfs_is_left_by_chroot_where_that_is_asked_for(initramfs: Machine) -> None:
    """And only there: chroot alone is less than what pivot_root(2) gives."""
    status, said = initramfs.call(f"timeout 20 {PASST} -q -f -s {SOCKET}")
    assert said == (
        "passt: change the root: Invalid argument (this root cannot be exchanged, as on an initramfs: "
        "--chroot-fallback uses chroot instead)\n"
    )
    assert status == 1
    initramfs.shell(f"{PASST} -q --chroot-fallback -s {SOCKET} -P /tmp/pid")
    initramfs.shell(f"cat >/tmp/ask.py <<'EOF'\n{ASK}\nEOF")
    for _ in range(2):
        assert initramfs.shell("python3 /tmp/ask.py") == "answered by 9a:55:9a:55:9a:55\n"
    # Nothing is in its root, and nobody's rights are left
    pid = initramfs.shell("cat /tmp/pid").strip()
    assert initramfs.shell(f"ls -A /proc/{pid}/root/") == ""
    shown = initramfs.shell(f"cat /proc/{pid}/status")
    assert "CapEff:\t0000000000000000\n" in shown
    assert "Uid:\t65534\t65534\t65534\t65534\n" in shown
    initramfs.shell(f"kill {pid}; for i in $(seq 100); do [ -d /proc/{pid} ] || exit 0; sleep 0.1; done; exit 1")
    # In the foreground, too
    initramfs.spawn(f"{PASST} -q -f --chroot-fallback -s {SOCKET}")
    initramfs.shell(f"for i in $(seq 100); do grep -q {SOCKET} /proc/net/unix && exit 0; sleep 0.1; done; exit 1")
    assert initramfs.shell("python3 /tmp/ask.py") == "answered by 9a:55:9a:55:9a:55\n"
