"""The packet path in a process of its own, which tells what it uses: `memory_subject.py SETTINGS`, of JSON (`main`).

For each "?" on `control` a line comes back: bytes in use of malloc (heap and mapped), minor and major page faults, and
the counters; for each "#" only how many frames there were.
"""

import ctypes
import json
import os
import resource
import sys

from bucatini.datapath.loop import FEATURE_TSO, FEATURE_USO, DataPath
from bucatini.services.responder import Responder, ServiceConfig

GUEST, HOST = bytes([192, 0, 2, 15]), bytes([192, 0, 2, 1])
GUEST6, HOST6 = (bytes.fromhex("20010db8") + bytes(11) + bytes([last]) for last in (0x15, 0x01))
LOOPBACK, LOOPBACK6 = bytes([127, 0, 0, 1]), bytes(15) + b"\1"
MAC = b"\x9a\x55\x9a\x55\x9a\x55"


class Mallinfo(ctypes.Structure):
    """struct mallinfo2 of mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def mapped(address: bytes) -> bytes:
    return bytes(10) + b"\xff\xff" + address


def main() -> None:
    """Serve until `control` ends.

    Settings: `link`, a packet socket in place of a tap, or with `stream` QEMU's; `flows`; `capture`, a descriptor;
    `maker`, the maker of sockets; `listeners`, the arguments of `add_listener`, with `address` in hexadecimal.
    """
    asked = json.loads(sys.argv[1])
    link, control = asked["link"], asked["control"]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo
    path = DataPath(flows=asked["flows"], listeners=16)
    path.settings(
        mtu=1500, our_mac=MAC, no_tcp=False, no_udp=False, no_icmp=False, freebind=False,
        peek_off=asked.get("peek_off", True),
    )  # fmt: skip
    path.family(
        4, guest=mapped(GUEST), learn=False, ours=mapped(HOST), map_host_loopback=mapped(HOST), host=mapped(HOST)
    )
    path.family(6, guest=GUEST6, learn=False, ours=HOST6, map_host_loopback=HOST6, host=HOST6)
    config = ServiceConfig(mac=MAC, v6=False, address4=GUEST, prefix4=24, gateway4=HOST, dns4=(HOST,), mtu=1500)
    path.set_slow_path(Responder(config, os.urandom))
    if asked.get("stream"):
        path.open_stream(print)
        path.attach(link)
    else:
        path.open_tap(link, FEATURE_TSO | FEATURE_USO if asked.get("offload") else 0)
    if "capture" in asked:
        path.capture(asked["capture"])
    if "maker" in asked:
        path.open_sockets(asked["maker"])
    for listener in asked.get("listeners", ()):
        to_address = bytes.fromhex(listener.pop("to_address", ""))
        path.add_listener(**listener, to_address=to_address)

    def measure() -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        info = mallinfo2()
        asked = os.read(control, 1)
        if not asked:
            path.stop()
            return
        if asked == b"#":
            os.write(control, b"%d\n" % path.counters()["frames_in"])
            return
        told = {
            "malloc": info.uordblks + info.hblkhd,
            "minor": usage.ru_minflt,
            "major": usage.ru_majflt,
            "flows": path.flows,
            **path.counters(),
        }
        os.write(control, json.dumps(told).encode() + b"\n")

    path.watch(control, measure)
    path.run()


if __name__ == "__main__":
    main()
