"""Clients of the server that say half of something, or take nothing, over real sockets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
from aiohttp import web

from agent.server.listening import FrontDoor, serving

HEAD_TIMEOUT = 0.3
BODY = bytes(32 << 20)


@dataclass
class Running:
    port: int
    door: FrontDoor
    ended: asyncio.Event

    async def connect(self, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        return reader, writer


@asynccontextmanager
async def server(most_silent: int = 4096) -> AsyncIterator[Running]:
    ended = asyncio.Event()

    async def hello(_: web.Request) -> web.StreamResponse:
        return web.Response(text="hello")

    async def large(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        try:
            await response.prepare(request)
            await response.write(BODY)
        finally:
            ended.set()
        return response

    app = web.Application()
    app.router.add_get("/", hello)
    app.router.add_get("/large", large)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        options = {"head_timeout": HEAD_TIMEOUT, "untaken_timeout": 0.5}
        async with serving(app, bound, **options, most_silent=most_silent) as door:
            yield Running(port, door, ended)


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", b"GET /derp HTT", GET[:-1]])
async def test_half_a_head_has_a_deadline(sent: bytes) -> None:
    async with server() as running:
        began = time.monotonic()
        reader, writer = await running.connect(sent)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        assert time.monotonic() - began >= HEAD_TIMEOUT * 0.9
        writer.close()


async def test_a_head_in_drips_has_the_same_deadline() -> None:
    async with server() as running:
        reader, writer = await running.connect(b"GET / HTTP/1.1\r\n")
        ended = asyncio.ensure_future(reader.read())
        async with asyncio.timeout(10):
            while not ended.done():
                writer.write(b"X-A: b\r\n")
                await asyncio.sleep(0.02)
        assert isinstance(ended.exception(), ConnectionError) or ended.result() == b""
        writer.close()


async def test_half_of_the_second_head_has_a_deadline() -> None:
    async with server() as running:
        reader, writer = await running.connect(GET + GET[:-3])
        async with asyncio.timeout(10):
            assert (await reader.read()).endswith(b"hello")
        writer.close()


async def test_an_answer_that_nobody_takes_is_given_up() -> None:
    async with server() as running:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", running.port))
            await loop.sock_sendall(client, b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
            async with asyncio.timeout(20):
                await running.ended.wait()


async def test_many_silent_connections_keep_nobody_out() -> None:
    async with AsyncExitStack() as silent, server(most_silent=64) as running:
        for _ in range(300):
            _, writer = await running.connect()
            silent.callback(writer.close)
        reader, writer = await running.connect(GET)
        async with asyncio.timeout(5):
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        writer.close()
        assert running.door.silent <= 64
        assert running.door.displaced >= 200
