"""HTTP through the tailnet: an aiohttp server on one node and a client on another, in one process, beside the same pair
on loopback sockets. Only our work and aiohttp's is measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from tailnet import joined

from agent.clock import SystemClock
from agent.tailnet.connector import TailnetConnector
from agent.tailnet.streams import TailnetStream
from agent.tailnet.transport import StreamTransport

REQUESTS = 2000
SIZE = 32 * 1024 * 1024
PIECE = bytes(256 * 1024)


async def _hello(request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def _much(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(SIZE)})
    await response.prepare(request)
    for _ in range(SIZE // len(PIECE)):
        await response.write(PIECE)
    return response


def _runner() -> web.AppRunner:
    app = web.Application()
    app.router.add_get("/", _hello)
    app.router.add_get("/much", _much)
    return web.AppRunner(app, access_log=None)


@asynccontextmanager
async def _through_tailnet() -> AsyncIterator[aiohttp.ClientSession]:
    runner = _runner()
    await runner.setup()
    clock = SystemClock()
    transports: list[StreamTransport] = []
    async with joined() as (one, two):

        async def serve() -> None:
            while True:
                stream = await two.accepted.get()
                assert runner.server is not None
                transports.append(StreamTransport(stream, runner.server(), clock))

        async def dial(host: str, port: int) -> TailnetStream:
            stream = one.engine.dial(two.address, port)
            await stream.connected()
            return stream

        serving = asyncio.create_task(serve())
        try:
            async with aiohttp.ClientSession("http://agent", connector=TailnetConnector(dial, clock)) as session:
                yield session
        finally:
            serving.cancel()
            for transport in transports:
                transport.abort()
                await transport.wait_closed()
            await runner.cleanup()


@asynccontextmanager
async def _through_loopback() -> AsyncIterator[aiohttp.ClientSession]:
    runner = _runner()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
            yield session
    finally:
        await runner.cleanup()


async def _rate(session: aiohttp.ClientSession, at_once: int) -> float:
    """Small requests a second, over connections that are kept."""
    left = REQUESTS

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            async with session.get("/") as answer:
                await answer.read()

    await asyncio.gather(*(work() for _ in range(at_once)))  # the connections
    left = REQUESTS
    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return REQUESTS / (time.perf_counter() - began)


async def _bulk(session: aiohttp.ClientSession) -> float:
    """MB/s of one long answer."""
    began = time.perf_counter()
    async with session.get("/much") as answer:
        async for _ in answer.content.iter_any():
            pass
    return SIZE / 1e6 / (time.perf_counter() - began)


async def measure() -> dict[str, float]:
    """Small requests, one after another and from 20 clients, and one long answer."""
    found = {}
    for way, opened in (("tailnet", _through_tailnet), ("loopback", _through_loopback)):
        async with opened() as session:
            found[f"requests/s one by one, {way}"] = await _rate(session, 1)
            found[f"requests/s of 20 clients, {way}"] = await _rate(session, 20)
            found[f"MB/s, {way}"] = await _bulk(session)
    return found


if __name__ == "__main__":
    for what, value in asyncio.run(measure()).items():
        print(f"{what:36} {value:8,.0f}")
