"""The relay over HTTP: the Upgrade variant on a bare connection, and WebSockets (tailnet.md §5.1, §5.2, §5.6)."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from agent.clock import SystemClock
from agent.protocol import derp, disco, keys
from agent.protocol.derp import ClientSession
from agent.server.api.derp import MAX_MESSAGE
from agent.testing import ManualClock, settle
from tests.server.deployment import Deployment, deployment

UPGRADE = b"GET /derp HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(f"sqlite:///{tmp_path}/test.db", tmp_path) as running:
        yield running


class Peer:
    """A client over any byte stream."""

    def __init__(self) -> None:
        private = keys.generate()
        self.key = keys.public_key(private)
        self.session = ClientSession(private, home=True)
        self.packets: list[tuple[bytes, bytes]] = []
        self.events: list[Any] = []

    async def read(self) -> bytes:
        raise NotImplementedError

    async def write(self, data: bytes) -> None:
        raise NotImplementedError

    async def receive(self) -> None:
        async with asyncio.timeout(5):
            data = await self.read()
        if not data:
            raise EOFError
        packets, events = self.session.receive(data)
        self.packets += packets
        self.events += events
        await self.write(b"".join(self.session.data_to_send()))

    async def log_in(self) -> None:
        while not self.session.logged_in:
            await self.receive()
        self.events.clear()

    async def send(self, to: Peer, *datagrams: bytes) -> None:
        await self.write(b"".join(self.session.packet(to.key, datagram, 0.0) for datagram in datagrams))

    async def until(self, count: int) -> list[bytes]:
        """The datagrams that arrived, when there are so many."""
        while len(self.packets) < count:
            await self.receive()
        return [datagram for _, datagram in self.packets]


class Upgraded(Peer):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__()
        self.reader, self.writer = reader, writer

    async def read(self) -> bytes:
        return await self.reader.read(65536)

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


class OverWebSocket(Peer):
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        super().__init__()
        self.socket = socket
        self.largest = 0

    async def read(self) -> bytes:
        message = await self.socket.receive()
        data = message.data if message.type is aiohttp.WSMsgType.BINARY else b""
        self.largest = max(self.largest, len(data))
        return bytes(data)

    async def write(self, data: bytes) -> None:
        if data:
            await self.socket.send_bytes(data)


@asynccontextmanager
async def stream(server: Deployment) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    url = URL(server.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def upgraded(server: Deployment) -> AsyncIterator[Upgraded]:
    async with stream(server) as (reader, writer):
        writer.write(UPGRADE + b"\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        peer = Upgraded(reader, writer)
        await peer.log_in()
        yield peer


@asynccontextmanager
async def over_websocket(server: Deployment) -> AsyncIterator[OverWebSocket]:
    async with server.http.ws_connect(server.url + "/derp", protocols=("derp",), max_msg_size=0) as socket:
        assert socket.protocol == "derp"
        peer = OverWebSocket(socket)
        await peer.log_in()
        yield peer


@pytest.mark.spec("tailnet", 34, 38)
@pytest.mark.parametrize("first", [upgraded, over_websocket])
@pytest.mark.parametrize("second", [upgraded, over_websocket])
async def test_both_variants_reach_each_other(server: Deployment, first: Any, second: Any) -> None:
    async with first(server) as one, second(server) as two:
        datagrams = [bytes([n]) * (n * 20 + 1) for n in range(64)]
        await one.send(two, *datagrams)
        assert await two.until(64) == datagrams
        await two.send(one, b"back", bytes(65536))
        assert await one.until(2) == [b"back", bytes(65536)]
        one.session.ping(b"12345678")
        await one.write(b"".join(one.session.data_to_send()))
        await one.receive()
        assert one.events == [derp.PongReceived(b"12345678")]


async def test_what_the_upgrade_says(server: Deployment) -> None:
    async with stream(server) as (reader, writer):
        writer.write(UPGRADE + b"\r\n")
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        greeting = await reader.readexactly(45)
    status, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert status == "HTTP/1.1 101 Switching Protocols"
    assert (headers["upgrade"], headers["connection"], headers["derp-version"]) == ("DERP", "Upgrade", "2")
    assert headers["derp-public-key"] == greeting[13:].hex()
    assert not {"content-length", "transfer-encoding"} & set(headers)


@pytest.mark.spec("tailnet", 38)
async def test_fast_start_gets_no_http_response(server: Deployment) -> None:
    async with stream(server) as (reader, writer):
        writer.write(UPGRADE + b"Derp-Fast-Start: 1\r\n\r\n")
        assert (await reader.readexactly(45)).startswith(b"\x01\0\0\0\x28" + derp.MAGIC)


@pytest.mark.spec("tailnet", 38)
async def test_a_request_without_an_upgrade(server: Deployment) -> None:
    async with server.http.get(server.url + "/derp") as response:
        assert (response.status, (await response.text()).strip()) == (426, "DERP requires connection upgrade")
    async with server.http.get(server.url + "/derp", headers={"Upgrade": "h2c", "Connection": "Upgrade"}) as response:
        assert response.status == 426


@pytest.mark.spec("tailnet", 38)
async def test_the_latency_check(server: Deployment) -> None:
    async with server.http.get(server.url + "/derp/latency-check", headers={"Host": "elsewhere"}) as response:
        assert (response.status, await response.read()) == (200, b"")


async def test_a_websocket_upgrade_without_the_subprotocol_is_a_bare_one(server: Deployment) -> None:
    async with stream(server) as (reader, writer):
        writer.write(UPGRADE.replace(b"Upgrade: DERP", b"Upgrade: websocket") + b"\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Upgrade: DERP\r\n" in head
        await Upgraded(reader, writer).log_in()


@pytest.mark.spec("tailnet", 38)
async def test_a_text_message_is_a_mistake(server: Deployment) -> None:
    async with over_websocket(server) as peer:
        await peer.socket.send_str("hello")
        await peer.socket.receive()
        assert peer.socket.close_code == 1003


@pytest.mark.spec("tailnet", 33)
async def test_websocket_messages_are_small_and_mean_nothing(server: Deployment) -> None:
    async with over_websocket(server) as one, over_websocket(server) as two:
        wire = b"".join(one.session.packet(two.key, bytes([n]) * 9000, 0.0) for n in range(20))
        for at in range(0, len(wire), 7777):
            await one.socket.send_bytes(wire[at : at + 7777])
        await one.socket.send_bytes(wire)
        assert await two.until(40) == [bytes([n]) * 9000 for n in range(20)] * 2
        await one.send(two, bytes(65536))
        await two.until(41)
        assert two.largest <= MAX_MESSAGE


@pytest.mark.spec("tailnet", 34, 37)
@pytest.mark.parametrize("connect", [upgraded, over_websocket])
async def test_a_broken_rule_ends_the_connection(server: Deployment, connect: Any) -> None:
    async with connect(server) as other, connect(server) as peer:
        await peer.send(other, b"x")
        await other.until(1)
        await peer.write(derp.frame(derp.Kind.CLOSE_PEER, other.key))
        with pytest.raises((EOFError, ConnectionError)):
            await peer.receive()
        await other.receive()
        assert other.events == [derp.PeerGone(peer.key, derp.GoneReason.DISCONNECTED)]


@pytest.mark.spec("tailnet", 34)
async def test_a_box_that_does_not_open_ends_the_connection(server: Deployment) -> None:
    async with stream(server) as (reader, writer):
        writer.write(UPGRADE + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(45)
        writer.write(derp.frame(derp.Kind.CLIENT_INFO, keys.public_key(keys.generate()) + bytes(100)))
        with suppress(ConnectionError):
            assert await reader.read() == b""


async def test_a_peer_that_is_gone_is_noticed(server: Deployment) -> None:
    async with upgraded(server) as other:
        for connect in (upgraded, over_websocket):
            async with connect(server) as peer:
                await peer.send(other, disco.MAGIC + bytes(100))
                await other.until(1)
                other.packets.clear()
            await other.receive()
            assert other.events.pop() == derp.PeerGone(peer.key, derp.GoneReason.DISCONNECTED)


@pytest.mark.parametrize("connect", [upgraded, over_websocket])
async def test_a_client_that_does_not_read_is_cut_off_and_others_do_not_wait(tmp_path: Path, connect: Any) -> None:
    """Real time for what is sent, and manual time for the two seconds."""
    clock = ManualClock()
    async with (
        deployment(f"sqlite:///{tmp_path}/test.db", tmp_path, clock) as server,
        upgraded(server) as sender,
        upgraded(server) as reader,
        connect(server) as deaf,
    ):
        transport: Any = deaf.writer.transport if isinstance(deaf, Upgraded) else deaf.socket._writer.transport
        transport.pause_reading()
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for n in range(400):  # more than both kernels take
            await sender.send(deaf, bytes(60000))
            await sender.send(reader, b"%d" % n)
            await reader.until(n + 1)
        await clock.advance(2.5)
        while derp.PeerGone(deaf.key, derp.GoneReason.NOT_HERE) not in sender.events:
            await sender.send(deaf, disco.MAGIC + bytes(100))
            await clock.advance(1)
            await sender.write(derp.frame(derp.Kind.PING, b"12345678"))
            await sender.receive()
        transport.resume_reading()


async def test_a_server_that_stops_closes_its_connections(tmp_path: Path) -> None:
    async with AsyncExitStack() as clients, AsyncExitStack() as servers:
        server = await servers.enter_async_context(deployment(f"sqlite:///{tmp_path}/test.db", tmp_path))
        own = await clients.enter_async_context(aiohttp.ClientSession())
        one = await clients.enter_async_context(upgraded(server))
        two = await clients.enter_async_context(over_websocket(dataclasses.replace(server, http=own)))
        async with asyncio.timeout(4), asyncio.TaskGroup() as tasks:
            tasks.create_task(_until_closed(one))
            tasks.create_task(_until_closed(two))
            await settle()
            await servers.aclose()
        assert two.socket.close_code == 1001


async def _until_closed(peer: Peer) -> None:
    with suppress(EOFError, ConnectionError):
        while True:
            await peer.receive()


async def test_aiohttp_forgets_connections_that_were_taken_over(server: Deployment) -> None:
    before = len(asyncio.all_tasks())
    for _ in range(3):
        async with upgraded(server), over_websocket(server):
            pass
    async with asyncio.timeout(3):
        while len(asyncio.all_tasks()) > before:
            await SystemClock().sleep(0.01)
