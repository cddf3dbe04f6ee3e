"""Types of the compiled `bucatini.bench.delay`."""

def run(
    left: int,
    right: int,
    *,
    mtu: int = ...,
    delay: float,
    rate: float,
    backlog: float,
    loss: float = ...,
    reorder: float = ...,
    late: float = ...,
    seed: int = ...,
    seconds: float,
) -> list[tuple[int, int, int, int]]: ...
