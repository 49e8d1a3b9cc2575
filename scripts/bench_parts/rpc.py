"""How fast calls are: over a pair in memory, and over a WebSocket on loopback, both ends in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from agent.clock import SystemClock
from agent.rpc import MAX_MESSAGE, RpcClient, RpcServer, Unary, WebSocketTransport
from agent.testing import memory_pair

BULK = 4_194_304
ROUNDS = 3


async def measure(seconds: float = 1.0) -> dict[str, float]:
    """Calls per second one after another and 32 at a time, and MB/s of 4 MiB calls in each direction.

    The baseline is a bare WebSocket whose server sends each message back.
    """
    figures = {"bare websocket round trips/s": await _bare_rate(seconds)}
    for name, connect in (("memory", _memory), ("websocket", _websocket)):
        async with connect() as client:
            figures[f"{name} calls/s, one at a time"] = await _rate(client, 1, seconds)
            figures[f"{name} calls/s, 32 at a time"] = await _rate(client, 32, seconds)
            figures[f"{name} MB/s to the server"] = await _throughput(client, "/take", bytes(BULK))
            figures[f"{name} MB/s to the client"] = await _throughput(client, "/give", b"")
    return figures


async def _take(_: bytes) -> bytes:
    return b""


async def _give(_: bytes) -> bytes:
    return bytes(BULK)


async def _echo(request: bytes) -> bytes:
    return request


HANDLERS = {"/echo": Unary(_echo), "/take": Unary(_take), "/give": Unary(_give)}


async def _rate(client: RpcClient, workers: int, seconds: float) -> float:
    end = time.perf_counter() + seconds
    done = 0

    async def work() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await client.unary("/echo", b"x" * 100)
            done += 1

    await asyncio.gather(*(work() for _ in range(workers)))
    return done / seconds


async def _throughput(client: RpcClient, path: str, request: bytes) -> float:
    """The best of some rounds."""
    best = 0.0
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await client.unary(path, request)
        best = max(best, BULK / 1e6 / (time.perf_counter() - began))
    return best


@asynccontextmanager
async def _memory() -> AsyncIterator[RpcClient]:
    near, far = memory_pair()
    client, server = RpcClient(near, SystemClock()), RpcServer(far, HANDLERS, SystemClock())
    serving = asyncio.create_task(server.serve())
    await client.start()
    yield client
    await client.aclose()
    await serving


@asynccontextmanager
async def _websocket() -> AsyncIterator[RpcClient]:
    async def serve(socket: web.WebSocketResponse) -> None:
        await RpcServer(WebSocketTransport(socket), HANDLERS, SystemClock()).serve()

    async with _socket(serve) as socket:
        client = RpcClient(WebSocketTransport(socket), SystemClock())
        await client.start()
        yield client
        await client.aclose()


async def _bare_rate(seconds: float) -> float:
    async def serve(socket: web.WebSocketResponse) -> None:
        async for message in socket:
            await socket.send_bytes(message.data)

    async with _socket(serve) as socket:
        end = time.perf_counter() + seconds
        done = 0
        while time.perf_counter() < end:
            await socket.send_bytes(b"x" * 100)
            await socket.receive_bytes()
            done += 1
        return done / seconds


@asynccontextmanager
async def _socket(
    serve: Callable[[web.WebSocketResponse], Awaitable[None]],
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async def upgrade(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False, max_msg_size=MAX_MESSAGE)
        await socket.prepare(request)
        await serve(socket)
        return socket

    app = web.Application()
    app.router.add_get("/", upgrade)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    async with aiohttp.ClientSession() as http, http.ws_connect(url, max_msg_size=MAX_MESSAGE) as socket:
        yield socket
    await runner.cleanup()
