"""What test_profiles runs in a machine whose kernel enforces the profiles: pasta and passt in all their ways to start.

Prints what it finds, a line each: a label and the profile of a process, or what was received.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

GATEWAY = "10.0.2.2"  # for the namespace this is the machine's loopback
DEADLINE = 20  # seconds


def profile(pid: int | str) -> str:
    return Path(f"/proc/{pid}/attr/current").read_text().strip("\0\n")


def serving(pid_file: Path) -> int:
    return int(pid_file.read_text())


def wait_for(condition: object, what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            sys.exit(f"waited in vain for {what}")
        time.sleep(0.05)


def end(pid: int) -> None:
    os.kill(pid, 15)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "the end of a program")


def answered(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            return sock.recv(10) == b"inside"
    except OSError:
        return False


def command(server: socket.socket) -> None:
    """A command in a new namespace, which connects to us."""
    client = f"import socket; print(socket.create_connection(('{GATEWAY}', 7000)).recv(10).decode())"
    text = f'cat /proc/self/attr/current; echo; python3 -c "{client}"'
    pasta = subprocess.Popen(
        ["pasta", "--config-net", "-u", "7200", "--", "sh", "-c", text], stdout=subprocess.PIPE, text=True
    )
    with server.accept()[0] as sock:
        print("pasta:", profile(pasta.pid))
        sock.sendall(b"outside")
    output, _ = pasta.communicate(timeout=DEADLINE)
    assert pasta.returncode == 0, pasta.returncode
    own, received = output.split()
    print("command:", own)
    print("command received:", received)


def join(folder: Path) -> None:
    """A namespace of somebody else's process, with a port that forwards itself."""
    ours = os.readlink("/proc/self/ns/net")
    inside = "import socket; s = socket.create_server(('', 7100))\nwhile 1: s.accept()[0].sendall(b'inside')"
    target = subprocess.Popen(["unshare", "-Urn", "python3", "-c", inside])
    wait_for(lambda: os.readlink(f"/proc/{target.pid}/ns/net") != ours, "a namespace")
    pid_file = folder / "pasta.pid"
    options = ["--config-net", "-t", "auto", "--pid", str(pid_file), "--log-file", str(folder / "pasta.log")]
    if os.getuid() == 0:
        options += ["--runas", "0"]  # it is root's
    subprocess.run(["pasta", *options, "--pcap", str(folder / "pcap"), str(target.pid)], check=True)
    pid = serving(pid_file)
    print("pasta joining:", profile(pid))
    wait_for(lambda: answered(7100), "an answer from the namespace")
    print("joined received: inside")
    target.kill()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "the end of pasta after that of its namespace")


def machine(folder: Path) -> None:
    """passt, with a client; resolvers that change; and at its default path."""
    path, pid_file = folder / "passt.socket", folder / "passt.pid"
    subprocess.run(
        ["passt", "--socket", str(path), "-u", "7200", "--pid", str(pid_file)], check=True, stderr=subprocess.DEVNULL
    )
    print("passt:", profile(serving(pid_file)))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        question = bytes.fromhex("00010800060400010200000000330a0002630000000000000a000202")  # ARP, who has the gateway
        frame = b"\xff" * 6 + bytes.fromhex("0200000000330806") + question
        sock.sendall(len(frame).to_bytes(4, "big") + frame)
        print("client received:", "frames" if sock.recv(4096) else "nothing")
    end(serving(pid_file))
    subprocess.run(["passt", "--pid", str(pid_file)], check=True, stderr=subprocess.DEVNULL)
    end(serving(pid_file))
    Path("/tmp/passt_1.socket").unlink()  # of another user it may not be removed, and the next path is taken


def forbidden() -> None:
    """What the profile is there for."""
    done = subprocess.run(["passt", "--log-file", "/srv/log"], capture_output=True, text=True)
    print("elsewhere:", done.returncode, done.stderr.strip())


def main() -> None:
    folder = Path(sys.argv[1])
    with socket.create_server(("", 7000)) as server:
        command(server)
    join(folder)
    machine(folder)
    if "forbidden" in sys.argv:
        forbidden()


if __name__ == "__main__":
    main()
