"""Binary WebSocket messages as a byte stream, from both sides (agent-api.md §1.8)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from agent.clock import SystemClock
from agent.rpc import MAX_MESSAGE, RpcClient, Transport, TransportError, WebSocketTransport

ServerSide = Callable[[web.WebSocketResponse], Awaitable[None]]


@asynccontextmanager
async def connected(serve: ServerSide) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
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
    try:
        async with aiohttp.ClientSession() as http, http.ws_connect(url, max_msg_size=MAX_MESSAGE) as socket:
            yield socket
    finally:
        await runner.cleanup()


async def drain(transport: Transport) -> bytes:
    """Everything up to the end of the stream."""
    received = bytearray()
    while data := await transport.receive():
        received += data
    return bytes(received)


async def test_messages_are_a_stream_in_both_directions() -> None:
    ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(socket: web.WebSocketResponse) -> None:
        transport = WebSocketTransport(socket)
        await transport.send([b"ab", b"", b"c"])
        ended.set_result(await drain(transport))

    async with connected(serve) as socket:
        transport = WebSocketTransport(socket)
        assert await transport.receive() == b"abc", "chunks of one write are one message"
        await socket.send_bytes(b"")
        await transport.send([b"x" * (MAX_MESSAGE - 1)])
        await transport.send([b"y"])
        await transport.aclose()
        await transport.aclose()
        assert await ended == b"x" * (MAX_MESSAGE - 1) + b"y"
        assert await transport.receive() == b""
        assert socket.close_code == 1000


@pytest.mark.parametrize("by_client", [True, False])
async def test_a_text_message_closes_with_1003(by_client: bool) -> None:
    caught: asyncio.Future[TransportError] = asyncio.get_running_loop().create_future()
    codes: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def send(socket: web.WebSocketResponse | aiohttp.ClientWebSocketResponse) -> None:
        await socket.send_str("text")
        await socket.receive()
        codes.set_result(socket.close_code)

    async def take(socket: web.WebSocketResponse | aiohttp.ClientWebSocketResponse) -> None:
        with pytest.raises(TransportError, match="text message") as error:
            await WebSocketTransport(socket).receive()
        caught.set_result(error.value)

    async with connected(take if by_client else send) as socket:
        await (send if by_client else take)(socket)
        await caught
        assert await codes == 1003


@pytest.mark.parametrize(("code", "reason"), [(1000, b""), (1001, b"going"), (1011, b"it broke"), (1002, b"")])
async def test_how_a_close_reads(code: int, reason: bytes) -> None:
    async def serve(socket: web.WebSocketResponse) -> None:
        await socket.close(code=code, message=reason)

    async with connected(serve) as socket:
        transport = WebSocketTransport(socket)
        if code in (1000, 1001):
            assert await transport.receive() == b""
        else:
            with pytest.raises(TransportError, match=f"closed with {code}.*{reason.decode()}"):
                await transport.receive()


async def test_a_connection_that_is_cut() -> None:
    async def serve(socket: web.WebSocketResponse) -> None:
        assert socket._req is not None
        assert socket._req.transport is not None
        socket._req.transport.abort()

    async with connected(serve) as socket:
        transport = WebSocketTransport(socket)
        with pytest.raises(TransportError, match="cut off"):
            await transport.receive()
        with pytest.raises(TransportError):
            await transport.send([b"x"])
        await transport.aclose()


async def test_a_message_that_is_too_large() -> None:
    async def serve(socket: web.WebSocketResponse) -> None:
        await socket.send_bytes(bytes(MAX_MESSAGE))
        await socket.receive()

    async with connected(serve) as socket:
        with pytest.raises(TransportError, match=f"Message size {MAX_MESSAGE} exceeds limit"):
            await WebSocketTransport(socket).receive()


async def test_what_is_no_websocket_message_is_told() -> None:
    async def serve(socket: web.WebSocketResponse) -> None:
        assert socket._req is not None
        assert socket._req.transport is not None
        socket._req.transport.write(b"\xc2\x05hello")
        await socket.receive()

    async with connected(serve) as socket:
        with pytest.raises(TransportError, match="reserved bits"):
            await WebSocketTransport(socket).receive()


async def test_a_close_reason_is_cut_between_characters() -> None:
    async def serve(socket: web.WebSocketResponse) -> None:
        await WebSocketTransport(socket).aclose(1011, "x" + "ä" * 100)

    async with connected(serve) as socket:
        message = await socket.receive()
        assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 1011, "x" + "ä" * 61)


async def test_a_writer_waits_for_a_peer_that_does_not_read() -> None:
    release = asyncio.Event()

    async def serve(socket: web.WebSocketResponse) -> None:
        await release.wait()

    async with connected(serve) as socket:
        transport = WebSocketTransport(socket)

        async def push() -> None:
            for _ in range(1000):
                await transport.send([bytes(200_000)])

        pushing = asyncio.create_task(push())
        await asyncio.sleep(0.3)
        assert not pushing.done(), "200 MB went nowhere"
        pushing.cancel()
        await asyncio.wait({pushing})
        release.set()


async def test_a_client_that_is_closed_says_1000_while_data_arrives() -> None:
    codes: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def serve(socket: web.WebSocketResponse) -> None:
        for _ in range(50):
            await socket.send_bytes(bytes.fromhex("000200010000000000000000") * 10)
        async for _message in socket:
            pass
        codes.set_result(socket.close_code)

    async with connected(serve) as socket:
        client = RpcClient(WebSocketTransport(socket), SystemClock())
        await client.start()
        await asyncio.sleep(0)
        await client.aclose()
        assert await codes == 1000
