"""What the tests change on the machine itself while they run, and put back."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

TUN = "/dev/net/tun"
ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")  # those that a namespace may choose
CUBIC = "cubic"  # that of every namespace made here, whatever the machine prefers


@contextlib.contextmanager
def open_machine() -> Iterator[None]:
    """Give every user /dev/net/tun, as distributions do, and every namespace its choice of congestion control."""
    mode, allowed = stat.S_IMODE(os.stat(TUN).st_mode), ALLOWED.read_text()
    os.chmod(TUN, mode | 0o666)
    if CUBIC not in allowed.split():
        ALLOWED.write_text(f"{CUBIC} {allowed}")
    try:
        yield
    finally:
        os.chmod(TUN, mode)
        ALLOWED.write_text(allowed)
