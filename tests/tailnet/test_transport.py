"""A stream as an asyncio transport: order, back-pressure both ways, half-close, and every way to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.tailnet.connector import TailnetConnector
from agent.tailnet.streams import TailnetStream
from agent.tailnet.transport import CLOSE_LIMIT, HIGH_WATER, StreamTransport
from agent.testing import ManualClock, settle
from agent.testing.streams import MemoryStream, stream_pair
from tests.tailnet.nodes import pair


class Recorder(asyncio.Protocol):
    def __init__(self, *, keep_open: bool = False) -> None:
        self.got = bytearray()
        self.events: list[str] = []
        self.lost: list[Exception | None] = []
        self.keep_open = keep_open

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.got += data

    def eof_received(self) -> bool:
        self.events.append("eof")
        return self.keep_open

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


async def test_what_is_written_arrives_in_order(clock: ManualClock) -> None:
    near, far = stream_pair(capacity=7)
    sender, receiver = Recorder(), Recorder()
    one, two = StreamTransport(near, sender, clock), StreamTransport(far, receiver, clock)
    one.writelines([b"hello ", bytearray(b"big "), memoryview(b"world")])
    one.write(b"!")
    one.close()
    await one.wait_closed()
    await two.wait_closed()
    assert receiver.got == b"hello big world!"
    assert sender.lost == receiver.lost == [None]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.binary(max_size=200_000), max_size=6), st.integers(1, 100_000))
async def test_any_writes_through_any_window(clock: ManualClock, writes: list[bytes], capacity: int) -> None:
    near, far = stream_pair(max(capacity, sum(map(len, writes)) // 50 + 1))
    receiver = Recorder()
    one, two = StreamTransport(near, Recorder(), clock), StreamTransport(far, receiver, clock)
    for data in writes:
        one.write(data)
    one.close()
    await two.wait_closed()
    assert receiver.got == b"".join(writes)
    assert one.get_write_buffer_size() == 0


async def test_a_peer_that_does_not_read_pauses_the_writer(clock: ManualClock) -> None:
    near, far = stream_pair(capacity=1000)
    protocol = Recorder()
    transport = StreamTransport(near, protocol, clock)
    transport.write(bytes(HIGH_WATER))
    await settle()
    assert "pause" not in protocol.events
    transport.write(bytes(1))
    assert protocol.events == ["made", "pause"]
    await settle()
    assert len(far.arrived) == 1000
    assert transport.get_write_buffer_size() == HIGH_WATER + 1
    while "resume" not in protocol.events:
        await far.read()
    transport.abort()
    await transport.wait_closed()


async def test_a_protocol_that_pauses_closes_the_window(clock: ManualClock) -> None:
    near, far = stream_pair(capacity=10)
    protocol = Recorder()
    transport = StreamTransport(near, protocol, clock)
    transport.pause_reading()
    assert not transport.is_reading()
    writing = asyncio.create_task(far.write(bytes(100)))
    await settle()
    assert not writing.done()
    assert not protocol.got
    transport.resume_reading()
    await settle(200)
    await writing
    assert protocol.got == bytes(100)
    transport.abort()
    await transport.wait_closed()


async def test_half_close(clock: ManualClock) -> None:
    near, far = stream_pair()
    protocol = Recorder(keep_open=True)
    transport = StreamTransport(near, protocol, clock)
    far.shutdown_write()
    await settle()
    assert protocol.events == ["made", "eof"]
    transport.write(b"still here")
    await settle()
    assert await far.read() == b"still here"
    transport.write_eof()
    with pytest.raises(RuntimeError, match="write after write_eof"):
        transport.write(b"x")
    await settle()
    assert await far.read() == b""
    await transport.wait_closed()  # nothing can happen on it any more
    assert protocol.lost == [None]


async def test_the_peer_ends(clock: ManualClock) -> None:
    near, far = stream_pair()
    protocol = Recorder()
    transport = StreamTransport(near, protocol, clock)
    far.close()
    await transport.wait_closed()
    assert (protocol.events, protocol.lost) == (["made", "eof"], [None])
    transport.write(b"too late")
    transport.close()
    transport.abort()


async def test_a_reset_is_told_as_one(clock: ManualClock) -> None:
    near, far = stream_pair()
    protocol = Recorder()
    transport = StreamTransport(near, protocol, clock)
    far.abort()
    await transport.wait_closed()
    (error,) = protocol.lost
    assert isinstance(error, ConnectionResetError)
    assert "reset" in str(error)


async def test_a_peer_that_never_reads_does_not_hold_a_closed_transport_for_ever(clock: ManualClock) -> None:
    near, _ = stream_pair(capacity=10)
    protocol = Recorder()
    transport = StreamTransport(near, protocol, clock)
    transport.write(bytes(1000))
    transport.close()
    await clock.advance(CLOSE_LIMIT - 1)
    assert not protocol.lost
    await clock.advance(1)
    await transport.wait_closed()
    assert protocol.lost == [None]
    assert near.closed


async def test_a_defect_of_the_protocol_ends_its_connection_and_is_told(clock: ManualClock) -> None:
    class Broken(Recorder):
        def data_received(self, data: bytes) -> None:
            raise ZeroDivisionError("a defect")

    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    near, far = stream_pair()
    protocol = Broken()
    transport = StreamTransport(near, protocol, clock)
    await far.write(b"x")
    await transport.wait_closed()
    assert isinstance(protocol.lost[0], ZeroDivisionError)
    assert [type(context["exception"]) for context in told] == [ZeroDivisionError]


def test_water_marks() -> None:
    async def body() -> None:
        near, _ = stream_pair()
        transport = StreamTransport(near, Recorder(), ManualClock())
        transport.set_write_buffer_limits(high=100)
        assert transport.get_write_buffer_limits() == (25, 100)
        transport.set_write_buffer_limits(low=10)
        assert transport.get_write_buffer_limits() == (10, 40)
        with pytest.raises(ValueError, match="low water"):
            transport.set_write_buffer_limits(high=1, low=2)
        transport.abort()
        await transport.wait_closed()

    asyncio.run(body())


# ---- HTTP on it


class Site:
    """An aiohttp server on streams in memory, and how a connector dials it."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.connections = 0
        self.ends: list[MemoryStream] = []
        self.transports: list[StreamTransport] = []
        app = web.Application()
        app.router.add_get("/", self.hello)
        app.router.add_post("/echo", self.echo)
        app.router.add_get("/socket", self.socket)
        self.runner = web.AppRunner(app, handle_signals=False, access_log=None)

    async def dial(self, host: str, port: int) -> MemoryStream:
        if port != 80:
            raise LookupError(f"{host}:{port}: nobody listens")
        self.connections += 1
        near, far = stream_pair()
        assert self.runner.server is not None
        self.transports.append(StreamTransport(far, self.runner.server(), self.clock))
        self.ends.append(far)
        return near

    async def hello(self, request: web.Request) -> web.Response:
        return web.Response(text=f"hello from {request.host}")

    async def echo(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        async for chunk in request.content.iter_any():
            await answer.write(chunk)
        return answer

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data.upper())
        return socket


@pytest.fixture
async def site(clock: ManualClock) -> AsyncIterator[Site]:
    site = Site(clock)
    await site.runner.setup()
    yield site
    await site.runner.cleanup()
    for transport in site.transports:
        transport.abort()
        await transport.wait_closed()


@pytest.fixture
async def session(site: Site, clock: ManualClock) -> AsyncIterator[aiohttp.ClientSession]:
    connector = TailnetConnector(site.dial, clock, unreachable=(LookupError,))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session
    await settle()


async def test_requests_share_a_connection(site: Site, session: aiohttp.ClientSession) -> None:
    for _ in range(3):
        async with session.get("http://workspace/") as answer:
            assert await answer.text() == "hello from workspace"
    assert site.connections == 1


async def test_a_large_body_both_ways(session: aiohttp.ClientSession) -> None:
    body = bytes(range(256)) * 4000
    async with session.post("http://workspace/echo", data=body) as answer:
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert await answer.read() == body


async def test_a_websocket(session: aiohttp.ClientSession) -> None:
    async with session.ws_connect("ws://workspace/socket") as socket:
        for text in ("a", "b" * 100_000):
            await socket.send_str(text)
            assert await socket.receive_str() == text.upper()


async def test_who_is_not_there_is_a_connection_error(session: aiohttp.ClientSession) -> None:
    with pytest.raises(aiohttp.ClientConnectorError, match="workspace:81: nobody listens"):
        await session.get("http://workspace:81/")
    async with session.get("http://workspace/") as answer:
        assert answer.status == 200


async def test_many_at_once(site: Site, session: aiohttp.ClientSession) -> None:
    async def one(number: int) -> None:
        async with session.post("http://workspace/echo", data=f"{number}".encode() * 10_000) as answer:
            assert await answer.text() == f"{number}" * 10_000

    await asyncio.gather(*(one(number) for number in range(150)))
    assert 1 < site.connections <= 100


async def test_a_connection_that_breaks_in_an_answer(site: Site, session: aiohttp.ClientSession) -> None:
    async with session.ws_connect("ws://workspace/socket") as socket:
        site.ends[0].abort()
        message = await socket.receive()
        assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)


# ---- over two joined nodes


async def test_http_between_two_nodes(clock: ManualClock, site: Site) -> None:
    """The whole way: WireGuard and TCP of both nodes in between."""
    async with pair(clock) as (a, b):

        def serve(stream: TailnetStream) -> None:
            assert site.runner.server is not None
            site.transports.append(StreamTransport(stream, site.runner.server(), clock))

        b.handler = serve

        async def dial(host: str, port: int) -> TailnetStream:
            stream = a.engine.dial(b.address, 7)
            await stream.connected()
            return stream

        async with aiohttp.ClientSession("http://workspace", connector=TailnetConnector(dial, clock)) as session:
            for size in (0, 1, 700_000):
                body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
                async with session.post("/echo", data=body) as answer:
                    assert await answer.read() == body
            async with session.ws_connect("/socket") as socket:
                await socket.send_str("hello")
                assert await socket.receive_str() == "HELLO"
            assert len(site.transports) <= 2
            for transport in site.transports:
                transport.abort()
            async with session.get("/") as answer:  # a new connection, after RST of those that were kept
                assert answer.status == 200
