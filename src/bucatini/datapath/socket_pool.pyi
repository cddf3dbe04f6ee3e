"""Types of the compiled `bucatini.datapath.socket_pool`."""

BIND: int
DIAG: int
TABLE: int
REQUEST: str
REPLY: str

def make_sockets(pool: int, requests: int, below: int = 0) -> None: ...
