"""A real virtual machine behind passt: QEMU, Debian's kernel, and what a user does in it."""

import contextlib
import hashlib
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bucatini.bench.machine import INTERFACE, Machine
from system.machine import Passt
from system.namespaces import alive, echo, receive, wait_until
from system.servers import http, sink
from system.topology import GATEWAY4, HOST, HOST4, HOST6, LOOPBACK, SERVER, SERVER4, SERVER6, url
from system.users import User, only_unprivileged

pytestmark = pytest.mark.timeout(180)
both_versions = pytest.mark.parametrize("version", [4, 6])

Boot = Callable[..., Machine]


@pytest.fixture
def boot(bootable: tuple[Path, str], passt: Passt, user: User) -> Iterator[Boot]:
    """Boots a machine behind a passt, as the user."""
    image, kind = bootable
    with contextlib.ExitStack() as stack:

        def start(options: str = "", **keywords: object) -> Machine:
            netdev = f"stream,id=net,server=off,addr.type=unix,addr.path={passt.socket}{options}"
            made = Machine(image, passt.workspace, netdev, accelerator=kind, wrap=user.prefix, **keywords)  # type: ignore[arg-type]
            return stack.enter_context(made)

        yield start


def test_a_machine_configures_itself_and_reaches_the_network(passt: Passt, boot: Boot) -> None:
    passt.topology.host.resolv_conf("nameserver 203.0.113.53\nnameserver 2001:db8:53::53\nsearch example.org\n")
    passt.background("-H", "guest")
    vm = boot()
    vm.configure()
    lease = vm.shell("cat /run/lease")
    for line in (f"ip={HOST4}", f"router={GATEWAY4}", "dns=203.0.113.53", "search=example.org", "mtu=65520"):
        assert f"\n{line}\n" in lease
    shown = vm.shell(f"ip address show dev {INTERFACE}; ip link show dev {INTERFACE}")
    assert f"inet {HOST4}/24" in shown
    assert re.search(r"inet6 2001:db8::ff:fe00:33/64", shown)
    assert "mtu 65520" in shown
    # And the host's own address by DHCPv6
    vm.shell("printf '#!/bin/sh\\nenv >>/run/lease6\\n' >/tmp/script; chmod 755 /tmp/script; touch /tmp/leases")
    vm.shell(f"timeout 20 dhclient -6 -1 -lf /tmp/leases -pf /tmp/pid -sf /tmp/script {INTERFACE}; true")
    lease6 = vm.shell("cat /run/lease6")
    assert f"new_ip6_address={HOST6}" in lease6
    assert "new_dhcp6_name_servers=2001:db8:53::53" in lease6
    for address in (SERVER4, SERVER6, GATEWAY4):
        vm.shell(f"ping -c 2 -W 5 {address}")
    for version in (4, 6):
        server = passt.topology.server.serve_tcp(SERVER[version], http({"/": b"the page"}))
        assert vm.shell(f"curl -sS -m 10 '{url(SERVER[version], server.port)}'").strip() == "the page"
    assert vm.call(f"curl -sS -m 5 {url(SERVER4, 9)}")[0] != 0


@only_unprivileged
@pytest.mark.parametrize("mtu", [1500, 65520])
def test_64_megabytes_go_both_ways(passt: Passt, boot: Boot, mtu: int, payload: bytes) -> None:
    passt.background("-m", str(mtu))
    vm = boot()
    vm.configure()
    assert f"mtu {mtu}" in vm.shell(f"ip link show dev {INTERFACE}")
    expected = hashlib.sha256(payload).hexdigest()
    for version in (4, 6):
        server = passt.topology.server
        down = server.serve_tcp(SERVER[version], http({"/payload": payload}))
        found = vm.shell(f"curl -sS -m 60 '{url(SERVER[version], down.port, '/payload')}' | sha256sum", 120)
        assert found.split()[0] == expected
        digests: list[str] = []
        up = server.serve_tcp(SERVER[version], sink(digests))
        vm.shell("dd if=/dev/urandom of=/tmp/data bs=1M count=64 2>/dev/null")
        sent = vm.shell("sha256sum /tmp/data").split()[0]
        code = (
            "import socket,sys;s=socket.create_connection((sys.argv[1],int(sys.argv[2])));"
            "s.sendfile(open('/tmp/data','rb'));s.shutdown(1);s.recv(1)"
        )
        vm.run("python3", "-c", code, SERVER[version], str(up.port), timeout=120)
        wait_until(lambda: digests, "the end of the upload")
        assert digests == [sent]


@only_unprivileged
def test_iperf3_runs_both_ways_over_tcp_and_udp(passt: Passt, boot: Boot) -> None:
    passt.background("--no-map-gw")
    vm = boot()
    vm.configure()
    passt.topology.server.start("iperf3", "-s", tcp=5201)
    for way in ("", "-R", "-P 3", "-u -b 20M -l 1400", "-u -b 20M -l 1400 -R"):
        assert "receiver" in vm.shell(f"iperf3 -c {GATEWAY4} -t 1 {way}", 60)


@only_unprivileged
@both_versions
def test_L5_forwards_reach_the_machine(passt: Passt, boot: Boot, version: int) -> None:
    passt.background("-t", "2222:22,9000-9002", "-u", "5353:53", f"-t{HOST[version]}/7070:70")
    vm = boot()
    vm.configure()
    # The address that forwards lead to, which SLAAC does not give
    vm.shell(f"ip -6 address replace {HOST6}/64 dev {INTERFACE}")
    code = (
        "import socket,threading\n"
        "def serve(port):\n"
        " l=socket.create_server(('::',port),family=socket.AF_INET6,dualstack_ipv6=True)\n"
        " while True:\n"
        "  c,_=l.accept();c.sendall(b'port %d' % port);c.close()\n"
        "[threading.Thread(target=serve,args=(p,)).start() for p in (22,70,9000,9001,9002)]\n"
        "u=socket.socket(socket.AF_INET6,socket.SOCK_DGRAM);u.bind(('::',53))\n"
        "open('/tmp/up','w')\n"
        "while True:\n d,a=u.recvfrom(9000);u.sendto(d.upper(),a)\n"
    )
    vm.shell(f"cat >/tmp/server.py <<'EOF'\n{code}\nEOF")
    vm.spawn("python3 /tmp/server.py")
    vm.shell("for i in $(seq 100); do [ -e /tmp/up ] && exit 0; sleep 0.1; done; exit 1")
    for port, to in ((2222, 22), (9000, 9000), (9002, 9002), (7070, 70)):
        with passt.topology.server.connect(HOST[version], port) as connection:
            assert receive(connection) == b"port %d" % to
    for where, address in ((passt.topology.server, HOST[version]), (passt.topology.host, LOOPBACK[version])):
        with where.connect(address, 2222) as connection:
            assert receive(connection) == b"port 22"
        with where.connect(address, 5353, kind=socket.SOCK_DGRAM) as connection:
            connection.send(b"query")
            assert connection.recv(100) == b"QUERY"


@only_unprivileged
def test_T18_a_machine_that_reboots_leaves_no_connection_behind(passt: Passt, boot: Boot) -> None:
    again = threading.Event()

    def hold(connection: socket.socket) -> None:
        connection.sendall(b"x")
        assert again.wait(60)
        connection.sendall(b"y")
        receive(connection)

    pid = passt.background()
    vm = boot()
    vm.configure()
    server = passt.topology.server.serve_tcp(SERVER4, hold)
    code = (
        f"import socket,time;s=socket.create_connection(('{SERVER4}',{server.port}));"
        "s.recv(1);open('/tmp/up','w');time.sleep(99)"
    )
    vm.spawn(f'python3 -c "{code}"')
    vm.shell("for i in $(seq 100); do [ -e /tmp/up ] && exit 0; sleep 0.1; done; exit 1")
    vm.reboot()
    vm.configure()
    again.set()
    wait_until(lambda: server.errors, "the reset")
    assert isinstance(server.errors[0], ConnectionResetError)
    answering = passt.topology.server.serve_tcp(SERVER4, http({"/": b"the page"}))
    assert vm.shell(f"curl -sS -m 10 {url(SERVER4, answering.port)}").strip() == "the page"
    assert alive(pid)


@only_unprivileged
def test_L16_D18_qemu_comes_back_to_a_passt_that_was_restarted(passt: Passt, boot: Boot) -> None:
    pid = passt.background("-t", "2222:22")
    vm = boot(",reconnect-ms=200")
    vm.configure()
    vm.shell("httpd -p 22 -h /etc")
    with passt.topology.server.connect(HOST4, 2222) as connection:
        connection.sendall(b"GET /passwd HTTP/1.0\r\n\r\n")
        assert b"root:x:0:0" in receive(connection)
    passt.terminate(pid)
    passt.background("-t", "2222:22")
    # The machine has nothing to say; it is found
    with passt.topology.server.connect(HOST4, 2222, timeout=20) as connection:
        connection.sendall(b"GET /passwd HTTP/1.0\r\n\r\n")
        assert b"root:x:0:0" in receive(connection)
    server = passt.topology.server.serve_tcp(SERVER4, http({"/": b"the page"}))
    assert vm.shell(f"curl -sS -m 10 {url(SERVER4, server.port)}").strip() == "the page"


@only_unprivileged
def test_an_inherited_socket_serves_qemu_until_its_end(passt: Passt, bootable: tuple[Path, str], user: User) -> None:
    ours, theirs = socket.socketpair()
    process = passt.foreground("-q", "--fd", str(ours.fileno()), pass_fds=[ours.fileno()])
    ours.close()
    os.set_inheritable(theirs.fileno(), True)
    netdev = f"stream,id=net,server=off,addr.type=fd,addr.str={theirs.fileno()}"
    image, kind = bootable
    with Machine(image, passt.workspace, netdev, accelerator=kind, wrap=user.prefix, inherited=[theirs.fileno()]) as vm:
        theirs.close()
        vm.configure()
        server = passt.topology.server.serve_tcp(SERVER4, echo)
        code = f"import socket;s=socket.create_connection(('{SERVER4}',{server.port}));s.send(b'x');print(s.recv(1))"
        assert "b'x'" in vm.run("python3", "-c", code)
    assert process.wait(5) == 0


@only_unprivileged
def test_two_machines_may_follow_each_other(passt: Passt, boot: Boot) -> None:
    passt.background()
    server = passt.topology.server.serve_tcp(SERVER4, http({"/": b"the page"}))
    for mac in ("02:00:00:00:00:41", "02:00:00:00:00:42"):
        vm = boot(mac=mac)
        vm.configure()
        assert vm.shell(f"curl -sS -m 10 {url(SERVER4, server.port)}").strip() == "the page"
        vm.stop()
