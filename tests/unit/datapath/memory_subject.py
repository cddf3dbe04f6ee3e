"""The packet path in a process of its own, which tells what it uses: `memory_subject.py LINK CONTROL FLOWS`.

LINK is a packet socket in place of a tap; for each "?" on CONTROL a line comes back: bytes in use of malloc (heap and
mapped), minor and major page faults, and the counters; for each "#" only how many frames there were.
"""

import ctypes
import json
import os
import resource
import sys

from bucatini.datapath.loop import DataPath
from bucatini.services.responder import Responder, ServiceConfig

GUEST, HOST = bytes([192, 0, 2, 15]), bytes([192, 0, 2, 1])
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
    link, control, flows = map(int, sys.argv[1:])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo
    path = DataPath(flows=flows, listeners=1)
    path.settings(mtu=1500, our_mac=MAC, no_tcp=False, no_udp=False, no_icmp=False, freebind=False, peek_off=True)
    path.family(
        4, guest=mapped(GUEST), learn=False, ours=mapped(HOST), map_host_loopback=mapped(HOST), host=mapped(HOST)
    )
    config = ServiceConfig(mac=MAC, v6=False, address4=GUEST, prefix4=24, gateway4=HOST, dns4=(HOST,), mtu=1500)
    path.set_slow_path(Responder(config, os.urandom))
    path.open_tap(link, 0)

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


main()
