"""Two nodes on loopback: through our relay, and directly over UDP."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import MappingProxyType

import pytest
from aiohttp import web

from agent.api.tailnet import TAILSCALE_PREFIX
from agent.clock import SystemClock
from agent.protocol import ip
from agent.protocol.ip import Endpoint
from agent.server.api.derp import Derp
from agent.server.http import Call
from agent.server.longlived import LongLived
from agent.server.relay import Relay
from agent.tailnet.derp_dial import DialOptions
from agent.tailnet.derp_map import NO_STUN, DerpMap, Node, Region
from agent.tailnet.netcheck import LatencyProbe
from agent.tailnet.streams import TailnetStream
from agent.tailnet.tailnet import NodeState, Tailnet, TailnetError

REGION = 999
CLOCK = SystemClock()


def parse(text: str) -> Endpoint:
    host, _, port = text.rpartition(":")
    return ip.mapped(ipaddress.ip_address(host.strip("[]")).packed), int(port)


class World:
    """A relay, and nodes that know each other as coordination would tell them."""

    def __init__(self) -> None:
        self.relay = Relay(CLOCK)
        self.port = 0
        self.stack = AsyncExitStack()
        self.count = 0
        self.addresses: dict[int, bytes] = {}
        self.upgrades: set[str] = set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith("latency-check"):
            return web.Response()
        self.upgrades.add(request.headers["Upgrade"].lower())
        part = Derp(self.relay, LongLived(), CLOCK)
        return await part.connect(Call(request, part.routes()[0], CLOCK, None))

    @property
    def derp_map(self) -> DerpMap:
        node = Node(
            name="999b",
            region_id=REGION,
            host_name="127.0.0.1",
            derp_port=self.port,
            force_http=True,
            stun_port=NO_STUN,
        )
        return DerpMap(MappingProxyType({REGION: Region(REGION, "t", "Test", nodes=(node,))}))

    async def node(self, *, direct: bool, forward: bool = False) -> Tailnet:
        self.count += 1
        address = TAILSCALE_PREFIX + bytes(9) + bytes((self.count,))
        node = Tailnet([address], CLOCK, options=DialOptions(), direct=direct, forward=forward)
        self.addresses[id(node)] = address
        node.start()
        self.stack.push_async_callback(node.aclose)
        node.update_derp_map(self.derp_map)
        return node

    def address(self, node: Tailnet) -> bytes:
        return self.addresses[id(node)]

    async def introduce(self, *nodes: Tailnet) -> None:
        for node in nodes:
            async with asyncio.timeout(10):
                state: NodeState | None = None
                while state is None or (node.engine.paths.direct and not state.endpoints):
                    state = await node.node_changed(state)
        for one in nodes:
            for other in nodes:
                if one is not other:
                    assert other.node is not None
                    one.set_peer(
                        other.node_key,
                        other.disco_key,
                        [self.address(other)],
                        other.node.home,
                        [parse(text) for text in other.node.endpoints],
                    )


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    made = World()
    app = web.Application()
    app.router.add_get("/derp", made.handle)
    app.router.add_get("/derp/latency-check", made.handle)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.port = runner.addresses[0][1]
    relaying = asyncio.ensure_future(made.relay.run())
    try:
        yield made
    finally:
        await made.stack.aclose()
        relaying.cancel()
        await asyncio.gather(relaying, return_exceptions=True)
        await runner.cleanup()


async def echo(stream: TailnetStream) -> None:
    while data := await stream.read():
        await stream.write(data)
    stream.shutdown_write()
    await stream.drained()


async def exchange(stream: TailnetStream, data: bytes) -> bytes:
    async def send() -> None:
        await stream.write(data)
        stream.shutdown_write()

    sending = asyncio.ensure_future(send())
    back = bytearray()
    while part := await stream.read():
        back += part
    await sending
    return bytes(back)


@pytest.mark.parametrize("direct", [False, True], ids=["relayed", "direct"])
async def test_a_stream_each_way(direct: bool) -> None:
    async with world() as here:
        a, b = await here.node(direct=direct), await here.node(direct=direct)
        b.listen_tcp(7, echo)
        await here.introduce(a, b)
        await a.reach(here.address(b), 10)
        if direct:
            async with asyncio.timeout(10):
                while (await a.ping(here.address(b))).endpoint is None:
                    await asyncio.sleep(0.05)
        data = os.urandom(8 << 20)
        stream = await a.dial_tcp(here.address(b), 7, 10)
        assert await exchange(stream, data) == data
        stream.close()


@pytest.mark.spec("tailnet", 48)
async def test_a_ping_tells_the_way() -> None:
    async with world() as here:
        a, b = await here.node(direct=True), await here.node(direct=False)
        await here.introduce(a, b)
        answered = await a.ping(here.address(b), 10)
        assert (answered.endpoint, answered.region) == (None, REGION)
        b.set_direct(True)
        async with asyncio.timeout(10):
            await b.node_changed(b.node)
        await here.introduce(a, b)
        async with asyncio.timeout(10):
            while (await a.ping(here.address(b), 10)).endpoint is None:
                await asyncio.sleep(0.05)


@pytest.mark.spec("tailnet", 53, 54)
async def test_ports_of_the_workspace() -> None:
    async with world() as here:
        a, b = await here.node(direct=False), await here.node(direct=False, forward=True)
        await here.introduce(a, b)
        await a.reach(here.address(b), 10)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.read()).upper())
            await writer.drain()
            writer.close()

        for host in ("127.0.0.1", "::1"):
            server = await asyncio.start_server(answer, host, 0)
            async with server:
                port = server.sockets[0].getsockname()[1]
                stream = await a.dial_tcp(here.address(b), port, 10)
                # Half-close: the listener answers only when it has read everything.
                assert await exchange(stream, b"hello") == b"HELLO"
                stream.close()
        with pytest.raises(TailnetError, match="refused"):
            await a.dial_tcp(here.address(b), port, 10)


async def test_the_relay_comes_back_and_streams_go_on() -> None:
    async with world() as here:
        a, b = await here.node(direct=False), await here.node(direct=False)
        b.listen_tcp(7, echo)
        await here.introduce(a, b)
        stream = await a.dial_tcp(here.address(b), 7, 10)
        await stream.write(b"before")
        assert await stream.read() == b"before"
        for node in (a, b):
            client, _ = node.relays._clients[REGION]
            assert client._wire is not None
            await client._wire.aclose()
        await stream.write(b"after")
        async with asyncio.timeout(20):
            assert await stream.read() == b"after"
        stream.close()


async def test_closing_leaves_nothing() -> None:
    async with world() as here:
        a, b = await here.node(direct=True), await here.node(direct=True, forward=True)
        await here.introduce(a, b)
        await a.reach(here.address(b), 10)
        before = asyncio.current_task()
        await a.aclose()
        await b.aclose()
        names = [task.get_name() for task in asyncio.all_tasks() if task is not before]
        assert not [name for name in names if "relay region" in name or "tailnet" in name or "service" in name], names


async def test_relays_are_measured_by_family_and_the_absent_are_left_out() -> None:
    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(0.2)
        return web.Response()

    app = web.Application()
    app.router.add_get("/derp/latency-check", slow)
    runner = web.AppRunner(app)
    await runner.setup()
    regions = {}
    for number, host in ((1, "127.0.0.1"), (2, "::1")):
        await web.TCPSite(runner, host, 0).start()
        port = runner.addresses[-1][1]
        node = Node(name="a", region_id=number, host_name=host, derp_port=port, force_http=True)
        regions[number] = Region(number, nodes=(node,))
    absent = Node(name="a", region_id=3, host_name="127.0.0.1", derp_port=1, force_http=True)
    regions[3] = Region(3, nodes=(absent,))
    try:
        found = await LatencyProbe(CLOCK, DialOptions()).measure(DerpMap(MappingProxyType(regions)))
    finally:
        await runner.cleanup()
    assert sorted(found) == ["1-v4", "2-v6"]
    assert all(0.2 <= seconds < 2 for seconds in found.values())
