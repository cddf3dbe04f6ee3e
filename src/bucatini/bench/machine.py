"""A virtual machine: QEMU, what it boots (tools/guest-image), and a shell in it that takes commands."""

from __future__ import annotations

import base64
import contextlib
import os
import shlex
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

QEMU = f"qemu-system-{os.uname().machine}"
BOOT = 60.0  # seconds, at most; it takes about three
KVM_BOOT = 10.0  # with /dev/kvm, before it is taken for one that does not work
READY = b"#READY\n"
END = b"\n#END "
INTERFACE = "eth0"


def image(folder: Path) -> Path:
    """Make sure that there is something to boot in `folder`; returns it.

    Raises:
        RuntimeError: it could not be made; says why.
    """
    script = Path(__file__).parents[3] / "tools" / "guest-image"
    done = subprocess.run([str(script), str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script}: {done.stderr.strip()[-300:]}")
    return folder


class Agent:
    """The shell in a machine, at the other end of a virtio port."""

    def __init__(self, path: Path) -> None:
        """`path` is the socket at which QEMU has the port."""
        self.agent_path = path
        self.agent: socket.socket | None = None
        self._read = b""

    def connect(self, deadline: float) -> None:
        """Wait until it takes commands.

        Args:
            deadline: of the monotonic clock, seconds.

        Raises:
            OSError: nobody listens there (yet), or not by then (TimeoutError).
            EOFError: the machine has ended.
        """
        if self.agent is None:
            agent = socket.socket(socket.AF_UNIX)
            try:
                agent.connect(str(self.agent_path))
            except OSError:
                agent.close()
                raise
            self.agent = agent
        self._until(READY, deadline)

    def hang_up(self) -> None:
        """Take no more commands."""
        if self.agent is not None:
            self.agent.close()
            self.agent = None

    def _until(self, mark: bytes, deadline: float) -> bytes:
        """What the agent says before `mark`."""
        assert self.agent is not None
        while mark not in self._read:
            self.agent.settimeout(max(0.01, deadline - time.monotonic()))
            data = self.agent.recv(1 << 16)
            if not data:
                raise EOFError
            self._read += data
        before, _, self._read = self._read.partition(mark)
        return before

    def call(self, command: str, timeout: float = 60) -> tuple[int, str]:
        """Run a command of the shell; its status, and what it printed."""
        assert self.agent is not None
        self.agent.sendall(base64.b64encode(command.encode()) + b"\n")
        deadline = time.monotonic() + timeout
        output = self._until(END, deadline)
        status = int(self._until(b"\n", deadline))
        return status, output.decode(errors="replace").replace("\r\n", "\n")

    def run(self, *arguments: str, timeout: float = 60) -> str:
        """Run a program to its end; what it printed. RuntimeError when it fails."""
        return self.shell(shlex.join(arguments), timeout)

    def shell(self, command: str, timeout: float = 60) -> str:
        """Run a command of the shell that has to succeed; what it printed."""
        status, output = self.call(command, timeout)
        if status:
            raise RuntimeError(f"{command}: status {status}\n{output}")
        return output

    def spawn(self, command: str) -> None:
        """Run a command in the background."""
        self.shell(f"setsid sh -c {shlex.quote(command)} </dev/null >/tmp/spawned 2>&1 &")

    def reboot(self) -> None:
        """Reset, and wait until it takes commands again."""
        assert self.agent is not None
        self.agent.sendall(base64.b64encode(b"reboot -f") + b"\n")
        self._until(READY, time.monotonic() + BOOT)

    def configure(self) -> None:
        """Let DHCP and SLAAC configure it."""
        self.shell(f"ip link set {INTERFACE} up")
        self.shell(f"udhcpc -i {INTERFACE} -f -q -n -t 20 -T 1 -O mtu -O search -s /etc/udhcpc.script")
        self.shell(
            "for i in $(seq 300); do ip -6 route | grep -q ^default && "
            f"ip -6 address show dev {INTERFACE} scope global | grep inet6 | grep -qv tentative && exit 0; "
            "sleep 0.1; done; exit 1"
        )


class Machine(Agent):
    """One virtual machine, from `start` to `stop`."""

    def __init__(
        self,
        boot: Path,
        folder: Path,
        netdev: str,
        *,
        accelerator: str = "tcg",
        wrap: Sequence[str] = (),
        mac: str = "02:00:00:00:00:33",
        inherited: Sequence[int] = (),
    ) -> None:
        """Prepare a machine.

        Args:
            boot: folder with vmlinuz and initrd.
            folder: where its sockets and its console's log go; short, for the path of a socket.
            netdev: value of -netdev, with the id "net".
            wrap: what runs QEMU, such as a change of user.
            inherited: descriptors that QEMU keeps.
        """
        super().__init__(folder / "agent")
        self.console = folder / "console"
        self.inherited = inherited
        self.command = [
            *wrap, QEMU, "-accel", accelerator, "-accel", "tcg", "-cpu", "max", "-m", "384",
            "-nodefaults", "-no-user-config", "-display", "none", "-serial", f"file:{self.console}",
            "-kernel", str(boot / "vmlinuz"), "-initrd", str(boot / "initrd"),
            "-append", "console=ttyS0 quiet panic=-1 tsc=unstable",
            "-netdev", netdev, "-device", f"virtio-net-pci,netdev=net,mac={mac}",
            "-chardev", f"socket,id=agent,path={self.agent_path},server=on,wait=off",
            "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent",
        ]  # fmt: skip
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, timeout: float = BOOT) -> None:
        """Boot, until it takes commands; RuntimeError when it does not."""
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            pass_fds=self.inherited,
        )  # fmt: skip
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.connect(deadline)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.command}: {self._end()}") from None
                time.sleep(0.02)
            except (OSError, EOFError):
                self.stop()
                text = self.console.read_text(errors="replace")[-1000:] if self.console.exists() else ""
                raise RuntimeError(f"the machine did not come up within {timeout:g} s: {text}") from None

    def _end(self) -> str:
        assert self.process is not None
        self.process.kill()
        output, _ = self.process.communicate()
        return output

    def stop(self) -> None:
        """Power off without a word."""
        self.hang_up()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None
        with contextlib.suppress(FileNotFoundError):
            self.agent_path.unlink()


def accelerator(boot: Path, folder: Path) -> str:
    """Return "kvm" where it runs our guest, else "tcg"."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    with contextlib.suppress(RuntimeError):
        machine = Machine(boot, folder, "user,id=net,restrict=on", accelerator="kvm")
        try:
            machine.start(KVM_BOOT)
        finally:
            machine.stop()
        return "kvm"
    return "tcg"
