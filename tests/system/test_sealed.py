"""Python after a process is sealed: nothing is imported, opened or executed, and no error has it look into files.

The filter ends a process that opens a file. An audit hook sees more: what is compiled or imported from memory, what
fails before it gets to the kernel. It runs inside the programs (sitecustomize), and ends a process that does what it
may not.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from system.machine import INTERFACE, Machine, Passt
from system.namespaces import alive, echo, wait_until
from system.topology import HOST, SERVER4, Guest, Pasta
from system.users import only_unprivileged
from system.workload import FORWARD, answers, use

pytestmark = [pytest.mark.release, only_unprivileged]

HOOK = """
import os, sys
allowed = None
def hook(event, arguments):
    global allowed
    if event == "bucatini.sealed":
        allowed = {"open"} if "lookout" in arguments else set()
        os.write(2, b"sealed\\n")
        at_seal(arguments)
    elif allowed is None:
        return
    elif event == "socket.__new__":  # of a port that forwards itself
        os.write(2, b"inside the wall\\n")
    elif (event in FORBIDDEN or event.partition(".")[0] in FORBIDDEN) and event not in allowed:
        os.write(2, f"after the seal: {event} {arguments}\\n".encode())
        os._exit(1)
def at_seal(profiles):
    pass
FORBIDDEN = {
    "open", "import", "exec", "compile", "subprocess", "ctypes", "marshal", "shutil", "glob", "tempfile",
    "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.system", "os.listdir", "os.scandir",
}
sys.addaudithook(hook)
"""
SLOW_ERROR = """
def at_seal(profiles):
    if "serve" in profiles:
        kind = sys.modules["bucatini.services.responder"].Responder
        answer = kind.on_frame
        def fail(self, frame, now):
            kind.on_frame = answer
            raise RuntimeError("on purpose")
        kind.on_frame = fail
"""
LOOP_ERROR = """
def at_seal(profiles):
    if "serve" in profiles:
        raise RuntimeError("on purpose")
"""
EVERYTHING = ("--trace", "--debug", "--stats", "1", "--dns-forward", FORWARD)

Hook = Callable[..., None]


@pytest.fixture
def hook(pasta: Pasta, monkeypatch: pytest.MonkeyPatch) -> Hook:
    """Have the programs run the hook, and what is given besides."""

    def put(more: str = "") -> None:
        folder = pasta.workspace / "hook"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(HOOK + more)
        folder.chmod(0o755)
        monkeypatch.setenv("PYTHONPATH", str(folder))

    pasta.topology.server.serve_udp(SERVER4, lambda data, _: data, 53)
    return put


def change_resolvers(pasta: Pasta, log: Callable[[], str]) -> None:
    """Give the host other resolvers."""
    pasta.topology.host.resolv_conf(f"search example.test\nnameserver {SERVER4}\n")
    wait_until(lambda: "has changed" in log(), "the new resolvers")
    assert "is gone" not in log()


@pytest.fixture
def log(pasta: Pasta) -> Path:
    return pasta.workspace / "log"


def test_pasta_around_a_command(pasta: Pasta, hook: Hook) -> None:
    hook()
    pcap = pasta.workspace / "pcap"
    auto = ("-t", "auto", "-u", "auto", "-T", "auto", "-U", "auto")
    guest = pasta.guest("--config-net", *EVERYTHING, "--pcap", str(pcap), *auto)
    use(pasta.topology, guest, "host0")
    inside = guest.serve_tcp("0.0.0.0", echo, 8123)
    wait_until(lambda: answers(pasta.topology.host, "127.0.0.1", inside.port), "the port that forwards itself")
    change_resolvers(pasta, lambda: "".join(guest.output))
    wait_until(lambda: any("statistics" in line for line in guest.output), "statistics")
    assert guest.finish() == 0
    assert "inside the wall\n" in guest.output
    assert [line for line in guest.output if "after the seal" in line] == []
    assert pcap.stat().st_size > 1 << 20


def test_pasta_in_the_background(pasta: Pasta, hook: Hook, log: Path) -> None:
    hook()
    target = pasta.holder()
    options = ("--log-file", str(log), "--pcap", str(pasta.workspace / "pcap"), "-t", "8123")
    daemon = pasta.background("--config-net", *EVERYTHING, *options, operands=[str(target.pid)])
    guest = Guest(pasta, daemon.pid, target, target.pid)
    use(pasta.topology, guest, "host0")
    guest.serve_tcp("0.0.0.0", echo, 8123)
    assert answers(pasta.topology.host, "127.0.0.1", 8123)
    change_resolvers(pasta, log.read_text)
    wait_until(lambda: "statistics" in log.read_text(), "statistics")
    guest.close()
    assert "sealed\n" in daemon.output
    assert alive(daemon.pid)


@pytest.mark.parametrize("foreground", [True, False])
def test_passt_with_a_client(
    pasta: Pasta, passt: Passt, machine: Machine, hook: Hook, log: Path, foreground: bool
) -> None:
    hook()
    options = (*EVERYTHING, "--log-file", str(log), "--pcap", str(passt.workspace / "pcap"), "-t", "8123")
    if foreground:
        process = passt.foreground("--socket", passt.socket, *options)
        wait_until(Path(passt.socket).exists, "the socket")
        pid = process.pid
    else:
        pid = passt.background(*options)
    machine.configure()
    for _ in range(2):
        machine.cable.connect(passt.socket)
        use(passt.topology, machine, INTERFACE)
        machine.cable.disconnect()
        wait_until(lambda: "client disconnected" in log.read_text(), "the end of the client")
    machine.cable.connect(passt.socket)
    machine.serve_tcp("0.0.0.0", echo, 8123)
    assert answers(passt.topology.server, HOST[4], 8123)
    change_resolvers(pasta, log.read_text)
    assert alive(pid)
    if foreground:
        process.terminate()
        assert process.wait(5) == 0
        assert process.stdout is not None
        output = process.stdout.read()
        assert "sealed" in output
        assert "after the seal" not in output


def test_an_error_in_the_slow_path_costs_a_frame(passt: Passt, machine: Machine, hook: Hook, log: Path) -> None:
    hook(SLOW_ERROR)
    pid = passt.background("--stats", "1", "--dns-forward", FORWARD, "--log-file", str(log))
    machine.cable.connect(passt.socket)
    machine.configure()
    use(passt.topology, machine, INTERFACE)
    wait_until(lambda: "slow_errors 1" in log.read_text(), "the error")
    assert alive(pid)


@pytest.mark.parametrize("debug", [False, True])
def test_an_error_that_nobody_foresaw_ends_with_a_line(pasta: Pasta, hook: Hook, debug: bool) -> None:
    hook(LOOP_ERROR)
    options = ("--debug",) if debug else ()
    result = pasta.run("--config-net", *options, check=False, command=["true"])
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    told = [number for number, line in enumerate(lines) if line.startswith("pasta: ")]
    assert len(told) == 1, result.stderr
    line, places = lines[told[0]], lines[told[0] + 1 :]
    assert line.startswith("pasta: unexpected RuntimeError at sitecustomize.py:")
    assert line.endswith(": on purpose")
    assert bool(places) == debug
    assert all(":" in place and " in " in place for place in places)


def test_such_an_error_in_the_background_is_logged(pasta: Pasta, hook: Hook, log: Path) -> None:
    """Before it is ready it is told to whoever started it, too."""
    hook(LOOP_ERROR)
    target = pasta.holder()
    result = pasta.run("--config-net", "--log-file", str(log), str(target.pid), check=False)
    assert result.returncode == 1
    assert "unexpected RuntimeError" in result.stderr
    assert "error: unexpected RuntimeError at sitecustomize.py:" in log.read_text()
