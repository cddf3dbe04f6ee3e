"""Both ends of the soak, as a program of its own: `server ADDRESS PORT` and `client ADDRESS PORT FLOWS SEED ALONG`.

A flow is told by a header of the client: seed, bytes up, bytes down, and how it ends. Both ends know from that every
byte that the other sends. The client prints one JSON object; the server prints a line for every fault it sees.
Only the standard library: the guest's interpreter has nothing else.
"""

import asyncio
import json
import random
import struct
import sys
import time
from collections.abc import AsyncIterator

HEADER = struct.Struct("!QIIB")
NORMAL, HALF_CLOSE, CLIENT_ABORTS, SERVER_ABORTS, PAUSES = range(5)
PIECE = 16384
PATIENCE = 100  # seconds for one flow: the retransmission timer of either kernel backs off


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def abort(writer: asyncio.StreamWriter) -> None:
    """Reset the connection."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SOL_SOCKET, SO_LINGER
    writer.transport.abort()


async def send(writer: asyncio.StreamWriter, data: bytes, rng: random.Random, *, pauses: bool) -> None:
    at = 0
    while at < len(data):
        size = rng.randint(1, PIECE)
        writer.write(data[at : at + size])
        at += size
        await writer.drain()
        if pauses and rng.random() < 0.2:
            await asyncio.sleep(rng.random() / 50)


async def pieces(reader: asyncio.StreamReader, rng: random.Random, *, pauses: bool) -> AsyncIterator[bytes]:
    while data := await reader.read(rng.randint(1, 65536)):
        yield data
        if pauses and rng.random() < 0.2:
            await asyncio.sleep(rng.random() / 50)


async def receive(reader: asyncio.StreamReader, expected: bytes, rng: random.Random, *, pauses: bool) -> None:
    """Read to the end; ValueError unless that was `expected`."""
    at = 0
    async for data in pieces(reader, rng, pauses=pauses):
        if data != expected[at : at + len(data)]:
            raise ValueError(f"wrong bytes from {at} on")
        at += len(data)
    if at != len(expected):
        raise ValueError(f"{at} of {len(expected)} bytes")


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    seed = up = down = ending = 0
    sending: asyncio.Future[None] | None = None
    try:
        seed, up, down, ending = HEADER.unpack(await reader.readexactly(HEADER.size))
        rng = random.Random(seed + 2)
        pauses = ending == PAUSES
        sending = asyncio.ensure_future(send(writer, content(seed + 1, down), rng, pauses=pauses))
        if ending == SERVER_ABORTS:
            await asyncio.wait([sending], timeout=rng.random() / 20)
            sending.cancel()
            abort(writer)
            return
        expected, at = content(seed, up), 0
        while at < up:
            data = await reader.read(min(65536, up - at))
            if not data:
                raise ValueError(f"end after {at} of {up} bytes")
            if data != expected[at : at + len(data)]:
                raise ValueError(f"wrong bytes from {at} on")
            at += len(data)
        await sending
        if ending == HALF_CLOSE and await reader.read(1):
            raise ValueError("bytes behind the end")
        writer.write_eof()
        await reader.read(1)
        writer.close()
    except (OSError, EOFError, asyncio.IncompleteReadError) as error:
        if ending != CLIENT_ABORTS and up + down:
            print(f"flow {seed}: {error!r}", flush=True)
    except ValueError as error:
        print(f"flow {seed}: {error}", flush=True)
    finally:
        if sending is not None:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        writer.close()


async def server(address: str, port: int) -> None:
    listening = await asyncio.start_server(serve, address, port, backlog=4096)
    print("ready", flush=True)
    await listening.serve_forever()


async def flow(address: str, port: int, seed: int) -> str:
    """One flow; what went wrong."""
    rng = random.Random(seed)
    ending = rng.choice((NORMAL, NORMAL, HALF_CLOSE, CLIENT_ABORTS, SERVER_ABORTS, PAUSES))
    up, down = (int(2 ** rng.uniform(0, 17)) for _ in range(2))
    pauses = ending == PAUSES
    reader, writer = await asyncio.open_connection(address, port)
    sending: asyncio.Future[None] | None = None
    poking: asyncio.Future[None] | None = None
    try:
        writer.write(HEADER.pack(seed, up, down, ending))
        sending = asyncio.ensure_future(send(writer, content(seed, up), rng, pauses=pauses))
        if ending == CLIENT_ABORTS:
            await asyncio.wait([sending], timeout=rng.random() / 20)
            sending.cancel()
            abort(writer)
            return ""
        if ending == HALF_CLOSE:
            await sending
            writer.write_eof()
        if ending == SERVER_ABORTS:
            poking = asyncio.ensure_future(poke(writer))
        try:
            await receive(reader, content(seed + 1, down), rng, pauses=pauses)
            await sending
        except OSError:
            # A clean end is never right there: what the server sent before may be lost with its reset, not without
            if ending == SERVER_ABORTS:
                return ""
            raise
        return "" if ending != SERVER_ABORTS else "no reset"
    finally:
        for task in (sending, poking):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        writer.close()


async def poke(writer: asyncio.StreamWriter) -> None:
    """A reset may be lost, and nobody sends it again: who only waits never learns of it. Who speaks does."""
    while True:
        await asyncio.sleep(3)
        writer.write(b"?")


async def client(address: str, port: int, flows: int, seed: int, along: int) -> None:
    seeds = iter(range(seed * 1_000_000, seed * 1_000_000 + flows))
    wrong: list[str] = []
    slowest = 0.0

    async def work() -> None:
        nonlocal slowest
        for number in seeds:
            begin = time.monotonic()
            try:
                said = await asyncio.wait_for(flow(address, port, number * 10), PATIENCE)
            except (TimeoutError, OSError, ValueError) as error:
                said = repr(error)
            if said:
                wrong.append(f"flow {number * 10}: {said}")
            slowest = max(slowest, time.monotonic() - begin)

    await asyncio.gather(*(work() for _ in range(along)))
    print(json.dumps({"flows": flows, "wrong": wrong, "slowest": round(slowest, 1)}), flush=True)


def main() -> None:
    role, address, port, *rest = sys.argv[1:]
    if role == "server":
        asyncio.run(server(address, int(port)))
    else:
        asyncio.run(client(address, int(port), *map(int, rest)))


main()
