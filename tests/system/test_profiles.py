"""The profiles of contrib/: that they are well-formed, and that the programs work where AppArmor enforces theirs.

The latter takes a kernel of its own: a virtual machine with Debian's, in whose file system the programs are installed
as a distribution would.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import bucatini
from bucatini.bench.machine import Machine
from system.programs import need

ROOT = Path(__file__).parents[2]
CONTRIB = ROOT / "contrib"
MAKEFILE = Path("/usr/share/selinux/devel/Makefile")

INIT = """#!/bin/busybox sh
# A root that can be exchanged (pivot_root(2)), which that of an initramfs cannot
PATH=/bin
/bin/busybox mkdir /new
busybox mount -t tmpfs none /new
for folder in bin dev etc home init2 lib lib64 modules opt proc run srv sys tmp usr var; do
    busybox cp -a /$folder /new/
done
exec busybox switch_root /new /init2
"""
SCRIPT = """#!/usr/bin/python3
import sys
from bucatini.cli.{name} import main
sys.exit(main())
"""
PREPARE = """set -e
mount -t securityfs none /sys/kernel/security
chmod 666 /dev/net/tun /dev/null
chmod 1777 /tmp
mkdir -p /run/user/1000 /run/test
chown 1000:1000 /run/user/1000
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
for name in pasta passt; do apparmor_parser -r /etc/apparmor.d/$name; done
dmesg -c >/dev/null"""
FOUND = """pasta: pasta (enforce)
command: unconfined
command received: outside
pasta joining: pasta (enforce)
joined received: inside
passt: passt (enforce)
client received: frames
"""


@pytest.mark.lint
@pytest.mark.parametrize("name", ["pasta", "passt"])
def test_the_apparmor_profile_can_be_parsed(name: str) -> None:
    parser = need("apparmor_parser", "apparmor")
    folder = CONTRIB / "apparmor"
    command = [parser, "--skip-kernel-load", "--skip-cache", "--Include", str(folder), str(folder / name)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    names = subprocess.run([*command, "--names"], capture_output=True, text=True, check=True).stdout.split()
    assert names == [name]


@pytest.mark.lint
def test_the_selinux_module_can_be_compiled(tmp_path: Path) -> None:
    need("checkmodule", "checkpolicy")
    need("semodule_package", "semodule-utils")
    if not MAKEFILE.exists():
        need(str(MAKEFILE), "selinux-policy-dev")
    for file in (CONTRIB / "selinux").iterdir():
        shutil.copy(file, tmp_path)
    result = subprocess.run(
        ["make", "-f", str(MAKEFILE), "NAME=default", "bucatini.pp"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "arning" not in result.stderr
    assert (tmp_path / "bucatini.pp").stat().st_size


def add(tree: Path, program: str) -> None:
    """Copy a program and the libraries that it needs."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    for path in (program, *re.findall(r"(/\S+) \(", listed)):
        target = tree / path[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def addition(tree: Path) -> bytes:
    """What the image has to have besides: the programs as a distribution has them, the profiles and their loader."""
    for folder in ("etc", "home", "srv", "modules", "usr/bin"):
        (tree / folder).mkdir(parents=True)
    for program, package in (("apparmor_parser", "apparmor"), ("setpriv", "util-linux")):
        add(tree, need(program, package))
    shutil.copytree("/etc/apparmor.d", tree / "etc/apparmor.d")
    shutil.copytree(CONTRIB / "apparmor", tree / "etc/apparmor.d", dirs_exist_ok=True)
    (tree / "etc/apparmor").mkdir()
    (tree / "etc/apparmor/parser.conf").touch()
    minor = int(subprocess.check_output(["/usr/bin/python3", "-c", "import sys; print(sys.version_info.minor)"]))
    package = tree / f"usr/local/lib/python3.{minor}/dist-packages/bucatini"
    ignored = shutil.ignore_patterns("*.c", "*.pyx", "*.pxd", "__pycache__")
    shutil.copytree(Path(bucatini.__file__).parent, package, ignore=ignored)
    shutil.copy(Path(__file__).with_name("confined.py"), tree / "srv")
    for name in ("pasta", "passt"):
        script = tree / "usr/bin" / name
        script.write_text(SCRIPT.format(name=name))
        script.chmod(0o755)
    (tree / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\nnobody:x:65534:65534::/:/\n")
    (tree / "etc/group").write_text("root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n")
    (tree / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\n")
    (tree / "etc/resolv.conf").write_text("nameserver 10.0.2.3\n")
    image = ROOT / "build" / "guest"
    kernel = tree.with_name("kernel")
    subprocess.run(["dpkg-deb", "-x", str(image / "kernel.deb"), str(kernel)], check=True)
    shutil.copy(next(kernel.rglob("tun.ko")), tree / "modules/90-tun.ko")
    with (image / "initrd").open("rb") as archive:  # its init goes on after ours
        subprocess.run(["cpio", "-id", "--quiet", "init"], cwd=tree, stdin=archive, check=True)
    (tree / "init").rename(tree / "init2")
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    pack = ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"]
    return subprocess.run(pack, cwd=tree, input=names.encode(), capture_output=True, check=True).stdout


@pytest.fixture
def enforcing(bootable: tuple[Path, str], tmp_path: Path) -> Iterator[Machine]:
    """A machine whose kernel enforces the profiles."""
    image, kind = bootable
    boot = tmp_path / "boot"
    boot.mkdir()
    shutil.copy(image / "vmlinuz", boot)
    (boot / "initrd").write_bytes((image / "initrd").read_bytes() + addition(tmp_path / "tree"))
    machine = Machine(boot, tmp_path, "user,id=net,restrict=on", accelerator=kind)
    machine.command[machine.command.index("-append") + 1] += " apparmor=1 security=apparmor"
    machine.command[machine.command.index("-m") + 1] = "900"  # the file system is in it twice
    with machine:
        machine.shell(PREPARE)
        yield machine


@pytest.mark.release
@pytest.mark.timeout(300)
def test_the_programs_work_where_apparmor_enforces_their_profiles(enforcing: Machine) -> None:
    as_user = "setpriv --reuid 1000 --regid 1000 --clear-groups"
    run = "env -u PYTHONPATH HOME=/home {} python3 /srv/confined.py {}"
    for command in (
        run.format(f"/usr/bin/{as_user}", "/run/user/1000"),
        run.format("", "/run/test"),
    ):
        assert enforcing.shell(command, 120) == FOUND
        assert enforcing.shell("dmesg -c | grep DENIED || true") == ""
    found = enforcing.shell(run.format("", "/run/test forbidden"), 120)
    assert found == FOUND + "elsewhere: 1 passt: open the log file /srv/log: Permission denied\n"
    assert 'profile="passt" name="/srv/log"' in enforcing.shell("dmesg -c | grep DENIED")
