"""What happens at the limits: refused in a stated way, and served again afterwards."""

import resource
import subprocess

from system.namespaces import echo
from system.topology import SERVER4, Pasta
from system.users import only_unprivileged

pytestmark = only_unprivileged


def test_out_of_descriptors_connections_are_refused_and_later_ones_served(pasta: Pasta) -> None:
    server = pasta.topology.server.serve_tcp(SERVER4, echo)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = f"""
import socket
opened = []
refused = 0
for _ in range(60):
    try:
        opened.append(socket.create_connection(('{SERVER4}', {server.port}), 5))
    except ConnectionRefusedError:
        refused += 1
opened[0].sendall(b'x')
assert opened[0].recv(1) == b'x'
for connection in opened:
    connection.close()
for _ in range(50):
    try:
        again = socket.create_connection(('{SERVER4}', {server.port}), 5)
    except ConnectionRefusedError:
        continue
    again.sendall(b'y')
    assert again.recv(1) == b'y'
    break
else:
    raise SystemExit('never served again')
print(len(opened), refused)
"""
    command = ["prlimit", "--nofile=40:40", *pasta.argv("-q", "--config-net", command=["python3", "-c", code])]
    try:
        result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    finally:
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
    assert result.returncode == 0, result.stderr
    opened, refused = map(int, result.stdout.split())
    assert opened > 5
    assert refused > 5
    assert opened + refused == 60
