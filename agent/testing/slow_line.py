"""A TCP proxy that is a slow line: bytes toward the client pass at a rate, and little waits in it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

BUFFER = 4096
"""Bytes that each of the proxy's sockets is asked to hold; the kernel doubles it."""
PIECE = 1024


@asynccontextmanager
async def slow_line(port: int, rate: float, delay: float = 0.0) -> AsyncIterator[int]:
    """A local port that leads to another one, for as long as the body runs.

    `rate` is in bytes a second toward whoever connects; `delay` in seconds, once in each direction and piece by piece.
    """
    connections: set[asyncio.Task[None]] = set()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        plain.setblocking(False)
        far: asyncio.StreamWriter | None = None
        try:
            await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
            source, far = await asyncio.open_connection(sock=plain, limit=PIECE)
            await asyncio.gather(_carry(source, writer, rate, delay), _carry(reader, far, 0.0, delay))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            if far is not None:
                far.close()
            else:
                plain.close()
            connections.discard(task)

    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    bound.bind(("127.0.0.1", 0))
    server = await asyncio.start_server(connect, sock=bound, limit=PIECE)
    try:
        yield bound.getsockname()[1]
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter, rate: float, delay: float) -> None:
    """Until either end; then both directions end."""
    loop = asyncio.get_running_loop()
    sink.transport.set_write_buffer_limits(0)
    free = loop.time()
    while data := await source.read(PIECE):
        if rate:
            free = max(free, loop.time()) + len(data) / rate
            await asyncio.sleep(free - loop.time())
        if delay:
            loop.call_later(delay, _write, sink, data)
        else:
            sink.write(data)
            await sink.drain()
    raise ConnectionError("the end")


def _write(sink: asyncio.StreamWriter, data: bytes) -> None:
    if not sink.is_closing():
        sink.write(data)
