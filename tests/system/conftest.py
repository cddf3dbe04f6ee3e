"""Fixtures of the system tests: see CONTRIBUTING.md.

Every test gets a host and a server of its own, and is checked for what it left behind: processes (orphans
too), namespaces, reports of a sanitizer.
"""

import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bucatini.bench.machine import accelerator, image
from system.installation import Installation, install
from system.machine import Machine, Passt
from system.machine_settings import TUN, open_machine
from system.namespaces import NamedNamespace, alive, descendants, wait_until
from system.programs import need
from system.topology import Pasta, Topology
from system.users import ROOT, User, unprivileged

CACHE = Path(__file__).parents[2] / "build" / "guest"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """System tests make namespaces: without root there is nothing that they could do."""
    reason = None
    if os.geteuid() != 0:
        reason = "system tests need root, to make the namespaces of the host and the server"
    elif not Path(TUN).exists():
        reason = f"{TUN} does not exist (modprobe tun)"
    if reason is None:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def plain_user() -> Iterator[User]:
    """The unprivileged user, on a machine that lets it do what the tests need."""
    with open_machine():
        yield unprivileged()


@pytest.fixture(scope="session")
def installation(plain_user: User) -> Iterator[Installation]:
    """The programs under test, where every user can run them."""
    made = install(plain_user)
    yield made
    made.remove()


@pytest.fixture(params=["unprivileged", "root"])
def user(request: pytest.FixtureRequest, plain_user: User) -> User:
    """Who runs pasta: each test runs once for each, those marked `only_root` or `only_unprivileged` for one."""
    return ROOT if request.param == "root" else plain_user


@pytest.fixture
def workspace(user: User) -> Iterator[Path]:
    """A directory of the user's."""
    directory = Path(tempfile.mkdtemp(prefix="bucatini-test-", dir="/var/tmp"))
    os.chown(directory, user.uid, user.gid)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def clean(installation: Installation) -> Iterator[None]:
    """Fails the test that leaves a process, a namespace or a sanitizer's report behind, and removes it."""
    namespaces, before = _namespaces(), _running()
    yield
    try:
        wait_until(lambda: _running() <= before, "end of all processes of the test", 5)
    except AssertionError:
        left = _running() - before
        names = ", ".join(f"{pid} {Path(f'/proc/{pid}/comm').read_text().strip()}" for pid in left)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        pytest.fail(f"left running: {names}")
    left_over = _namespaces() - namespaces
    assert not left_over, f"namespaces left: {left_over}"
    reports = sorted(installation.logs.iterdir()) if installation.logs is not None else []
    text = "\n".join(report.read_text(errors="replace") for report in reports)
    for report in reports:
        report.unlink()
    assert not text, text


def _running() -> set[int]:
    """Processes of the tests that have not ended (tests/conftest.py: orphans are there too)."""
    return {pid for pid in descendants(os.getppid()) if pid != os.getpid() and alive(pid)}


def _namespaces() -> set[str]:
    """Names and mounts of network namespaces that this session has made; another one may run beside it."""
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - nsfs " in line}
    names = set(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else set()
    return {name for name in mounts | names if f"bucatini-{os.getpid()}-" in name}


@pytest.fixture
def topology(clean: None) -> Iterator[Topology]:
    """The host and the server of this test."""
    with Topology() as made:
        yield made


@pytest.fixture
def far(topology: Topology) -> Iterator[NamedNamespace]:
    """One more namespace, behind the server."""
    with topology.far() as made:
        yield made


@pytest.fixture
def pasta(installation: Installation, topology: Topology, user: User, workspace: Path) -> Iterator[Pasta]:
    """The program under test on the host, as the user."""
    made = Pasta(installation, topology, user, workspace)
    yield made
    made.close()


@pytest.fixture
def passt(installation: Installation, topology: Topology, user: User, workspace: Path) -> Iterator[Passt]:
    """Passt on the host, as the user."""
    made = Passt(installation, topology, user, workspace)
    yield made
    made.close()


@pytest.fixture
def machine(topology: Topology) -> Iterator[Machine]:
    """A guest of passt, not connected and not configured."""
    with Machine(topology) as made:
        yield made


@pytest.fixture(scope="session")
def bootable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Kernel and initramfs, made once and kept for the next session, and the accelerator that runs them."""
    for program, package in (
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("cpio", "cpio"),
        ("iperf3", "iperf3"),
        ("curl", "curl"),
        ("dhclient", "isc-dhcp-client"),
    ):
        need(program, package)
    made = image(CACHE)
    # Where everybody may read it, whatever is above the clone
    folder = Path(tempfile.mkdtemp(prefix="bucatini-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    for name in ("vmlinuz", "initrd"):
        shutil.copy(made / name, folder)
        (folder / name).chmod(0o644)
    yield folder, accelerator(folder, tmp_path_factory.mktemp("vm"))
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def payload() -> bytes:
    """64 MiB that do not repeat."""
    return random.Random(64).randbytes(64 << 20)


@pytest.fixture(scope="session")
def payload_file(payload: bytes) -> Iterator[Path]:
    """The same in a file that everyone can read."""
    directory = Path(tempfile.mkdtemp(prefix="bucatini-test-", dir="/var/tmp"))
    directory.chmod(0o755)
    path = directory / "payload"
    path.write_bytes(payload)
    path.chmod(0o644)
    yield path
    shutil.rmtree(directory)
