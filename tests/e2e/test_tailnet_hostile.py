"""Peers that mean harm, at an agent's node with real sockets: what they get is bounded, and others notice nothing."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from agent.protocol.ip import Datagram
from agent.protocol.tcp import Limits
from agent.tailnet.forward import SMALL_CHUNK, Quota, UdpForwarder
from agent.tailnet.streams import TailnetStream
from agent.tailnet.tailnet import TailnetError
from agent.testing import ManualClock
from tests.e2e.test_tailnet import world
from tests.tailnet.nodes import pair


@pytest.fixture
def few_files() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_quota() -> None:
    quota = Quota(5, 2)
    assert [quota.take(peer) for peer in (b"a", b"a", b"a", b"b", b"b", b"b", b"c", b"c")] == [
        *(True, True, False),
        *(True, True, False),
        *(True, False),
    ]
    quota.give_back(b"a")
    assert quota.take(b"c")
    assert not quota.take(b"a")


@pytest.mark.usefixtures("few_files")
async def test_a_flood_of_udp_flows_leaves_files_for_others(clock: ManualClock) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as service:
        service.bind(("127.0.0.1", 0))
        port = service.getsockname()[1]
        async with pair(clock) as (_, node):
            forwarder = UdpForwarder(node.engine, clock)
            before = open_files()
            flooder, other = bytes(15) + b"f", bytes(15) + b"o"
            for number in range(2000):
                forwarder.take(Datagram(flooder, 1024 + number, node.address, port, b"x"))
            await asyncio.sleep(0.1)
            assert open_files() - before <= 200 // 4 // 4
            assert forwarder.dropped >= 1900
            forwarder.take(Datagram(other, 1, node.address, port, b"honest"))
            await asyncio.sleep(0.1)
            service.setblocking(False)
            got = [service.recv(100) for _ in range(13)]
            assert got[-1] == b"honest"
            await forwarder.aclose()
            await asyncio.sleep(0)
            assert open_files() == before


@pytest.mark.usefixtures("few_files")
async def test_a_flood_of_forwarded_connections_leaves_files_for_others() -> None:
    held: list[asyncio.StreamWriter] = []

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    async def hello(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async with world() as w:
        host, flooder, honest = [await w.node(direct=False, forward=number == 0) for number in range(3)]
        await w.introduce(host, flooder, honest)
        assert host._tcp_forwarder is not None
        host._tcp_forwarder._quota = Quota(20, 10)
        server, greeter = (
            await asyncio.start_server(hold, "127.0.0.1", 0),
            await asyncio.start_server(hello, "127.0.0.1", 0),
        )
        port, greeting = (each.sockets[0].getsockname()[1] for each in (server, greeter))
        streams: list[TailnetStream] = []
        refused = 0
        for _ in range(30):
            try:
                streams.append(await flooder.dial_tcp(w.address(host), port, 5))
            except TailnetError:
                refused += 1
        assert (len(streams), refused, host._tcp_forwarder.refused) == (10, 20, 20)
        stream = await honest.dial_tcp(w.address(host), greeting, 5)
        async with asyncio.timeout(5):
            assert await stream.read() == b"hello"
        for each in [*streams, stream]:
            each.abort()
        for writer in held:
            writer.close()
        server.close()
        greeter.close()


async def test_many_connections_whose_peer_does_not_read_hold_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.tailnet.forward.MANY", 2)
    gone = asyncio.Event()

    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not gone.is_set():
                writer.write(bytes(1 << 20))
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with world() as w:
        host, flooder = [await w.node(direct=False, forward=number == 0) for number in range(2)]
        flooder.engine.stack._shared.limits = Limits(receive_buffer=100_000)
        await w.introduce(host, flooder)
        server = await asyncio.start_server(pour, "127.0.0.1", 0)
        streams = [await flooder.dial_tcp(w.address(host), server.sockets[0].getsockname()[1], 5) for _ in range(6)]
        await asyncio.sleep(1)
        held = sorted(connection.unsent for connection in host.engine.stack.connections)
        gone.set()
        for stream in streams:
            stream.abort()
        server.close()
        await asyncio.sleep(0.2)
        assert min(held[-2:]) > 1 << 20, "those that came first have all that they want"
        assert all(0 < size <= SMALL_CHUNK for size in held[:-2])
