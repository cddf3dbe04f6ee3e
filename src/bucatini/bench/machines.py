"""Virtual machines as systems of the benchmark: the same guest behind our passt and behind upstream's.

QEMU is on the CPU of the ends, the translator on its own, as everywhere. What runs in the guest is run by its shell.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bucatini.bench.machine import Machine, accelerator, image
from bucatini.bench.systems import FORWARDED, OURS, TRANSLATOR_CPU, System

if TYPE_CHECKING:
    from bucatini.bench.topology import Topology

MACHINE_CPU = 1
CACHE = Path(__file__).parents[3] / "build" / "guest"


class MachineSystem(System):
    """A passt and the machine behind it."""

    server_cpu = TRANSLATOR_CPU

    def __init__(self, name: str, program: str, where: Topology, mtu: int) -> None:
        super().__init__(name, None, where, mtu)
        self.machine: Machine | None = None
        boot = image(CACHE)
        path = where.folder / "passt.socket"
        if name == OURS:
            program = str(Path(program).with_name("passt"))
        ports = ",".join(map(str, FORWARDED))
        command = [program, "-f", "-q", "-s", str(path), "-m", str(mtu), "--no-map-gw", "-t", ports, "-u", "none"]
        self.process = where.spawn(command, where=where.host, cpu=TRANSLATOR_CPU, user=True)
        netdev = f"stream,id=net,server=off,reconnect-ms=100,addr.type=unix,addr.path={path}"
        wrap = ["taskset", "-c", str(MACHINE_CPU)]
        machine = Machine(boot, where.folder, netdev, accelerator=accelerator(boot, where.folder), wrap=wrap)
        self.machine = machine
        try:
            machine.start()
            machine.configure()
        except BaseException:
            self.stop()
            raise

    def output(self, command: list[str], cpu: int) -> str:
        """Run a command in the guest; it has one processor."""
        assert self.machine is not None
        told = ["python3" if word == sys.executable else word for word in command]
        try:
            return self.machine.shell(f"ulimit -n 20000; {shlex.join(told)}", 120)
        except (OSError, EOFError) as error:
            raise RuntimeError(f"{' '.join(command)}: {error}") from None

    def wrap(self, command: list[str], cpu: int) -> list[str]:
        raise RuntimeError("a machine runs nothing from outside")

    def retransmissions(self) -> int:
        names, values = (line.split() for line in self.output(["grep", "^Tcp:", "/proc/net/snmp"], 0).splitlines()[:2])
        return int(values[names.index("RetransSegs")])

    def stop(self) -> None:
        if self.machine is not None:
            self.machine.stop()
        super().stop()


def connect(name: str, program: str | None, where: Topology, mtu: int) -> MachineSystem:
    """Boot a machine behind a system; RuntimeError where that cannot be."""
    if program is None:
        raise RuntimeError("no program")
    try:
        return MachineSystem(name, program, where, mtu)
    except (OSError, EOFError, subprocess.SubprocessError) as error:
        raise RuntimeError(str(error)) from None
