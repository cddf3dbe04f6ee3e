"""The long way between two namespaces: a tap in each, and a process that carries frames between them with delay.

Run as root: `python -m bucatini.bench.path LEFT RIGHT INTERFACE SECONDS NAME=VALUE...`, the names being those of
`delay.run`. Prints "ready" when both taps are there, and what it carried at its end.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import sys

from bucatini.bench import delay
from bucatini.guest.tap import DEVICE, IFF_NO_PI, IFF_TAP, TUNSETIFF
from bucatini.host import kernel

CLONE_NEWNET = 0x40000000  # linux/sched.h


def open_plain_tap(namespace: str, interface: str) -> int:
    """Make a tap without offloads in a named namespace: frames are as on a wire."""
    with open(f"/run/netns/{namespace}", "rb") as target:
        kernel.setns(target.fileno(), CLONE_NEWNET, f"join {namespace}")
    fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", interface.encode(), IFF_TAP | IFF_NO_PI))
    return fd


def main() -> None:
    left, right, interface, seconds, *options = sys.argv[1:]
    fds = [open_plain_tap(namespace, interface) for namespace in (left, right)]
    print("ready", flush=True)
    values = {name: float(value) for name, _, value in (option.partition("=") for option in options)}
    whole = {name: int(values.pop(name)) for name in ("mtu", "seed") if name in values}
    counts = delay.run(*fds, seconds=float(seconds), **values, **whole)  # type: ignore[arg-type, misc]
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
