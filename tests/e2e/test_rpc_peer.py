"""Our transport against a foreign one: HashiCorp's yamux and Storj's dRPC in Go, over a real WebSocket.

The peer is tests/peers/rpc; it is built here, and needs the `go` tool.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from agent.clock import SystemClock
from agent.rpc import (
    MAX_MESSAGE,
    ConnectionLostError,
    Handler,
    RpcClient,
    RpcError,
    RpcServer,
    ServerStream,
    StreamBrokenError,
    Streaming,
    Transport,
    Unary,
    UnsupportedError,
    WebSocketTransport,
)

PEER = Path(__file__).parents[1] / "peers" / "rpc"
BANNERS = "/coder.agent.v2.Agent/GetAnnouncementBanners"
BANNER = bytes.fromhex("0a0f0801120248691a0723666630303030")

# agent-api.md §6.5
REQUEST = (
    bytes.fromhex("000100010000000100000000 000000000000000100000038 0301012c")
    + BANNERS.encode()
    + bytes.fromhex("05010200 0d010300")
)
ACK = bytes.fromhex("000100020000000100000000")
REPLY = bytes.fromhex("000000000000000100000015 05010111") + BANNER
CLOSE_SEND = bytes.fromhex("000000000000000100000004 0d010200")
FIN = bytes.fromhex("000100040000000100000000")


@pytest.fixture(scope="session")
def peer() -> Path:
    """The peer's program."""
    go = shutil.which("go")
    if go is None:
        if os.environ.get("CI") == "true":
            pytest.fail("the foreign peer of the transport needs Go: .ci/run must install it")
        pytest.skip("the foreign peer of the transport needs Go (the `go` tool)")
    built = subprocess.run(
        [go, "build", "-o", "bin/rpc-peer", "."], cwd=PEER, capture_output=True, text=True, timeout=300
    )
    assert built.returncode == 0, f"the peer needs Go 1.23 or newer and its modules: {built.stderr}"
    return PEER / "bin" / "rpc-peer"


class Recording:
    """A transport that keeps what passed through it."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.received = bytearray()
        self.sent = bytearray()

    async def receive(self) -> bytes:
        data = await self._inner.receive()
        self.received += data
        return data

    async def send(self, chunks: Sequence[bytes]) -> None:
        self.sent += b"".join(chunks)
        await self._inner.send(chunks)

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        await self._inner.aclose(code, reason)


def pattern(n: int) -> bytes:
    """What the peer's function of this name makes."""
    period = bytes((i * 31 >> 3) & 0xFF for i in range(2048))
    return (period * (n // len(period) + 1))[:n]


async def until(condition: object, seconds: float = 10) -> None:
    """Wait until `condition()` holds."""
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


# ---- the peer serves, we call


@asynccontextmanager
async def connected(peer: Path) -> AsyncIterator[tuple[RpcClient, Recording]]:
    process = await asyncio.create_subprocess_exec(
        peer, "serve", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().strip()
        async with aiohttp.ClientSession() as http, http.ws_connect(url, max_msg_size=MAX_MESSAGE) as socket:
            transport = Recording(WebSocketTransport(socket))
            client = RpcClient(transport, SystemClock())
            await client.start()
            try:
                yield client, transport
                assert await client.unary("/peer/Echo", b"afterwards", 10) == b"afterwards"
            finally:
                await client.aclose()
                assert await client.wait_closed() is None
                assert socket.close_code == 1000
    finally:
        process.stdin.close()
        await process.wait()


@pytest.mark.spec("agent-api", 17, 24)
async def test_the_worked_example_as_client(peer: Path) -> None:
    async with connected(peer) as (client, transport):
        assert await client.unary(BANNERS, b"") == BANNER
        await until(lambda: transport.received.endswith(FIN))
        assert transport.sent == REQUEST + FIN
        # The peer drops its CloseSend when our FIN comes first: a race that its own client has too (§6.4).
        assert transport.received.replace(ACK, b"").replace(CLOSE_SEND, b"") == REPLY + FIN


@pytest.mark.spec("agent-api", 19)
async def test_300_calls_as_client(peer: Path) -> None:
    async with connected(peer) as (client, _):
        requests = [b"%d" % n for n in range(300)]
        assert await asyncio.gather(*(client.unary("/peer/Echo", request) for request in requests)) == requests


@pytest.mark.spec("agent-api", 18, 22)
async def test_large_packets_as_client(peer: Path) -> None:
    async with connected(peer) as (client, _):
        for size in (512_000, 4_194_304):
            assert await client.unary("/peer/Pattern", b"%d" % size, 30) == pattern(size)
        assert await client.unary("/peer/Echo", pattern(4_194_304), 30) == pattern(4_194_304)
        with pytest.raises(StreamBrokenError, match="overflow"):
            await client.unary("/peer/Pattern", b"4194305", 30)


@pytest.mark.spec("agent-api", 22)
async def test_errors_as_client(peer: Path) -> None:
    async with connected(peer) as (client, _):
        with pytest.raises(UnsupportedError) as unknown:
            await client.unary("/coder.agent.v2.Agent/Nope", b"")
        assert unknown.value.text == 'protocol error: unknown rpc: "/coder.agent.v2.Agent/Nope"'
        with pytest.raises(RpcError, match="outer: inner: cause") as failed:
            await client.unary("/peer/Fail", b"")
        assert failed.value.code == 0
        with pytest.raises(UnsupportedError, match="Unimplemented"):
            await client.unary("/peer/Unimplemented", b"")


async def test_streams_as_client(peer: Path) -> None:
    async with connected(peer) as (client, _):
        assert [message async for message in client.stream("/peer/Count", b"5000")] == [b"%d" % n for n in range(5000)]
        for last in (b"close", None):
            async with await client.duplex("/peer/Upper") as call:
                for text in (b"one", b"two", b"three" * 100_000):
                    await call.send(text)
                    assert await call.receive() == text.upper()
                await (call.close_send() if last is None else call.send(last))
                assert await call.receive() is None


@pytest.mark.spec("agent-api", 20, 23)
async def test_an_unread_stream_blocks_no_other_and_its_end_cancels_the_handler(peer: Path) -> None:
    async with connected(peer) as (client, transport):
        async with aclosing(client.stream("/peer/Flood", b"")) as flood:
            await anext(flood)
            for _ in range(30):
                assert await client.unary("/peer/Pattern", b"300000", 30) == pattern(300_000)
        hanging = asyncio.create_task(client.unary("/peer/Hang", b""))
        await client.ping(5)
        hanging.cancel()
        async with asyncio.timeout(10):
            while await client.unary("/peer/Cancelled", b"") != b"2":
                await asyncio.sleep(0.01)
        assert len(transport.received) < 30 * 301_000 + 2 * 262_144, "an unread stream got credit"


async def test_a_peer_that_dies_fails_its_calls(peer: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        peer, "serve", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    async with aiohttp.ClientSession() as http, http.ws_connect(url) as socket:
        client = RpcClient(WebSocketTransport(socket), SystemClock())
        await client.start()
        hanging = asyncio.create_task(client.unary("/peer/Hang", b""))
        await client.ping(5)
        process.kill()
        with pytest.raises(ConnectionLostError, match="cut off"):
            await hanging
        await client.aclose()
    await process.wait()


# ---- we serve, the peer calls


class Served:
    """The methods of the peer, by us."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.transports: list[Recording] = []
        self.handlers: dict[str, Handler] = {
            BANNERS: Unary(self.banners),
            "/peer/Echo": Unary(self.echo),
            "/peer/Pattern": Unary(self.pattern),
            "/peer/Fail": Unary(self.fail),
            "/peer/Unimplemented": Unary(self.unimplemented),
            "/peer/Cancelled": Unary(self.count_cancelled),
            "/peer/Hang": Unary(self.hang),
            "/peer/Flood": Streaming(self.flood),
            "/peer/Count": Streaming(self.count),
            "/peer/Upper": Streaming(self.upper),
        }

    async def upgrade(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False, max_msg_size=MAX_MESSAGE)
        await socket.prepare(request)
        self.transports.append(Recording(WebSocketTransport(socket)))
        await RpcServer(self.transports[-1], self.handlers, SystemClock()).serve()
        return socket

    async def banners(self, _: bytes) -> bytes:
        return BANNER

    async def echo(self, request: bytes) -> bytes:
        return request

    async def pattern(self, request: bytes) -> bytes:
        return pattern(int(request))

    async def fail(self, _: bytes) -> bytes:
        raise RpcError("outer: inner: cause")

    async def unimplemented(self, _: bytes) -> bytes:
        raise RpcError("Unimplemented", 12)

    async def count_cancelled(self, _: bytes) -> bytes:
        return b"%d" % self.cancelled

    async def hang(self, _: bytes) -> bytes:
        try:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]
        finally:
            self.cancelled += 1

    async def flood(self, stream: ServerStream) -> None:
        await stream.receive()
        while True:
            await stream.send(pattern(60_000))

    async def count(self, stream: ServerStream) -> None:
        for n in range(int(await stream.receive() or b"")):
            await stream.send(b"%d" % n)

    async def upper(self, stream: ServerStream) -> None:
        while (message := await stream.receive()) is not None:
            await stream.send(message.upper())


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Served, str]]:
    served = Served()
    app = web.Application()
    app.router.add_get("/", served.upgrade)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield served, f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def ask(peer: Path, url: str, case: str) -> None:
    process = await asyncio.create_subprocess_exec(
        peer, "call", url, case, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stderr is not None
    said = await process.stderr.read()
    assert await process.wait() == 0, said.decode()
    process.stdin.close()


@pytest.mark.spec("agent-api", 18, 19, 20, 22, 23, 24)
@pytest.mark.parametrize(
    "case",
    [
        "300-calls",
        "script-512000",
        "4-mib",
        "4-mib-and-1",
        "unread-stream",
        "cancel-by-fin",
        "cancel-by-frame",
        "unknown-rpc",
        "errors",
        "server-streaming",
        "duplex-close",
        "duplex-close-send",
        "calls-on-one-stream",
        "metadata",
        "broken-packet",
        "ping",
    ],
)
async def test_as_server(peer: Path, case: str) -> None:
    async with serving() as (served, url):
        await ask(peer, url, case)
        if case.startswith("cancel"):
            assert served.cancelled == 1
            assert (bytes.fromhex("89010400") in served.transports[0].received) == (case == "cancel-by-frame")


@pytest.mark.spec("agent-api", 17)
async def test_the_worked_example_as_server(peer: Path) -> None:
    async with serving() as (served, url):
        await ask(peer, url, "worked-example")
        transport = served.transports[0]
        assert transport.received.startswith(REQUEST)
        # One frame for both packets, as §6.5 allows.
        assert transport.sent.startswith(
            ACK + bytes.fromhex("000000000000000100000019 05010111") + BANNER + bytes.fromhex("0d010200")
        )
