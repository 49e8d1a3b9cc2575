"""Our node against Tailscale's own, in the variant of Coder's deployments: as their client's agent and as their client.

The peer is tests/peers/tailnet: their path layer, WireGuard and TCP, with the packet filter of Coder's programs. It is
built here, and needs the `go` tool.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from agent.api.proto import tailnet_pb2 as pb
from agent.api.tailnet import TAILSCALE_PREFIX, agent_addresses
from agent.clock import SystemClock
from agent.protocol.ip import Endpoint
from agent.protocol.speedtest import Direction
from agent.protocol.wireguard import device, keypairs
from agent.tailnet.derp_dial import DialOptions
from agent.tailnet.derp_map import DerpMap
from agent.tailnet.speedtest import measure
from agent.tailnet.streams import TailnetStream
from agent.tailnet.tailnet import Tailnet
from agent.testing import traffic
from agent.testing.deployment import Deployment
from agent.testing.nodes import OURS, Node, NodeError, foreign
from tests.e2e.tailnet_peer import foreign_agent, foreign_client
from tests.e2e.test_derp_peer import running
from tests.e2e.test_tailnet import World, parse, world
from tests.e2e.test_tailnet_server import guest

pytestmark = pytest.mark.timeout(660)  # the first of them builds the peer; each has its own deadlines

SIZE = 20_000_000
PORT_SPEEDTEST, PORT_ECHO, PORT_RESET = 3, 7, 1001
MIN_SPEEDTEST = 2 << 20
"""Bytes: theirs counts blocks of so many, and breaks when there is not even one (tailnet.md §8.6)."""
FALLBACK = 6.5
"""Seconds after the last answer over UDP until a way over UDP is not trusted any more (tailnet.md §6.4)."""


def address() -> bytes:
    return TAILSCALE_PREFIX + os.urandom(10)


def theirs(program: Path, *options: str) -> Node:
    return Node(foreign(program), [address()], *options)


@asynccontextmanager
async def joined(dialer: Node, target: Node, relays: DerpMap, *, direct: bool = False) -> AsyncIterator[str]:
    """Two processes that know each other; gives the target's address once it answers the dialer."""
    async with dialer, target:
        for node in (dialer, target):
            await node.set_map(relays)
            await node.wait_state(endpoints=direct)
        await target.set_peers(dialer.as_peer(endpoints=direct))
        await dialer.set_peers(target.as_peer(endpoints=direct, keep_alive=True))
        to = target.addresses[0]
        await dialer.reach(to)
        if direct:
            await until_direct(dialer, to)
        yield to


async def until_direct(node: Node, to: str, direct: bool = True) -> float:
    """Seconds until a ping is answered over UDP, or over a relay."""
    began = time.monotonic()
    async with asyncio.timeout(20):
        while ("endpoint" in await node.ping(to)) is not direct:
            await asyncio.sleep(0.1)
    return time.monotonic() - began


# ---- both as processes, in both roles


@pytest.mark.parametrize("direct", [False, True], ids=["relayed", "direct"])
@pytest.mark.parametrize("role", ["their-client", "their-agent"])
async def test_streams(peer_program: Path, role: str, direct: bool) -> None:
    foreign_node = theirs(peer_program, *([] if direct else ["--direct=false"]))
    ours = Node(OURS, [address()], *([] if direct else ["--relayed"]))
    nodes = (foreign_node, ours) if role == "their-client" else (ours, foreign_node)
    async with world() as here, joined(*nodes, here.derp_map, direct=direct) as to:
        dialer = nodes[0]
        assert ("endpoint" in await dialer.ping(to)) is direct
        for up in (False, True):
            # Half-close is a part of it: the sink answers after the FIN. Checksums are compared at the end.
            await dialer.bulk(to, up=up, size=SIZE)
            await dialer.bulk(to, up=up, size=SIZE, streams=100)
        assert len(await dialer.echo(to, size=1, count=100)) == 100
        await dialer.echo(to, size=100_000, count=3)
        both = [dialer.bulk(to, up=up, size=SIZE // 2) for up in (False, True)]
        await asyncio.gather(*both, dialer.echo(to, count=50))
        with pytest.raises(NodeError, match="refused"):
            await dialer.echo(to, port=PORT_RESET)


@pytest.mark.spec("tailnet", 33)
@pytest.mark.parametrize("role", ["their-client", "their-agent"])
async def test_relays_by_websocket(peer_program: Path, role: str) -> None:
    foreign_node = theirs(peer_program, "--direct=false", "--websocket")
    ours = Node(OURS, [address()], "--relayed", "--websocket")
    nodes = (foreign_node, ours) if role == "their-client" else (ours, foreign_node)
    async with world() as here, joined(*nodes, here.derp_map) as to:
        for up in (False, True):
            await nodes[0].bulk(to, up=up, size=SIZE, streams=2)
        assert here.upgrades == {"websocket"}


@pytest.mark.parametrize("role", ["their-client", "their-agent"])
async def test_their_relay(peer_program: Path, role: str) -> None:
    foreign_node, ours = theirs(peer_program, "--direct=false"), Node(OURS, [address()], "--relayed")
    nodes = (foreign_node, ours) if role == "their-client" else (ours, foreign_node)
    async with running(peer_program, "derp-server") as server:
        port = int(await server.line("port"))
        relays = World()
        relays.port = port
        async with joined(*nodes, relays.derp_map) as to:
            for up in (False, True):
                await nodes[0].bulk(to, up=up, size=SIZE, streams=2)


# ---- our node in this process, theirs as the client of it


class Road:
    """Our node's way over UDP, which a test can break."""

    def __init__(self, node: Tailnet) -> None:
        self.open = True
        self._node = node
        self._send, self._receive = node.send_udp, node.engine.receive_udp
        node.send_udp = self.send  # type: ignore[method-assign]
        node.engine.receive_udp = self.receive  # type: ignore[method-assign]

    def send(self, endpoint: Endpoint, datagrams: Sequence[bytes]) -> None:
        if self.open:
            self._send(endpoint, datagrams)

    def receive(self, endpoint: Endpoint, datagrams: Sequence[bytes]) -> None:
        if self.open:
            self._receive(endpoint, datagrams)


class Pair:
    """Our node and a client of it."""

    def __init__(self, node: Tailnet, client: Node) -> None:
        self.node, self.client = node, client
        self.address = node.engine.addresses[0]
        self.to = str(ipaddress.IPv6Address(self.address))
        self.road = Road(node)

    async def introduce(self, *, direct: bool) -> None:
        """Make them known to each other, as they are now."""
        await self.client.wait_state(endpoints=direct)
        known = self.client.as_peer(endpoints=direct)
        state = None
        async with asyncio.timeout(10):
            while state is None or (direct and not state.endpoints):
                state = await self.node.node_changed(state)
        self.node.set_peer(
            bytes.fromhex(known["node"]),
            bytes.fromhex(known["disco"]),
            self.client.packed,
            known["home"],
            [parse(text) for text in known["endpoints"]],
        )
        await self.client.set_peers(
            {
                "node": self.node.node_key.hex(),
                "disco": self.node.disco_key.hex(),
                "addresses": [self.to],
                "home": state.home,
                "endpoints": state.endpoints,
                "keep_alive": True,
            }
        )


@asynccontextmanager
async def pair(program: Path, *, direct: bool) -> AsyncIterator[Pair]:
    """Our node with the services of `agent.testing.traffic`, reachable for the client."""
    options = DialOptions(environment={})
    async with world() as here, theirs(program, *([] if direct else ["--direct=false"])) as client:
        node = Tailnet([address()], SystemClock(), options=options, direct=direct, forward=True)
        here.stack.push_async_callback(node.aclose)
        made = Pair(node, client)
        traffic.serve(node)
        node.start()
        node.update_derp_map(here.derp_map)
        await client.set_map(here.derp_map)
        await made.introduce(direct=direct)
        await client.reach(made.to)
        if direct:
            await until_direct(client, made.to)
        yield made


@pytest.mark.spec("tailnet", 53, 54, 61)
async def test_ports_of_the_workspace(peer_program: Path) -> None:
    async with pair(peer_program, direct=False) as made:
        for host in ("127.0.0.1", "::1"):
            server = await asyncio.start_server(answer, host, 0)
            async with server:
                port = server.sockets[0].getsockname()[1]
                await made.client.echo(made.to, port=port, size=50_000, count=2)
        with pytest.raises(NodeError, match="refused"):
            await made.client.echo(made.to, port=port)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(UdpEcho, ("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        await made.client.echo(made.to, network="udp", port=port, size=1232, count=50)
        transport.close()


async def test_we_reset_a_connection(peer_program: Path) -> None:
    async with pair(peer_program, direct=False) as made:

        async def reset(stream: TailnetStream) -> None:
            await stream.read()
            stream.abort()

        made.node.listen_tcp(PORT_RESET, reset)
        with pytest.raises(NodeError, match="reset by peer"):
            await made.client.echo(made.to, port=PORT_RESET)


@pytest.mark.spec("tailnet", 42)
async def test_rekeying_under_load(peer_program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """We initiate, again and again: theirs would wait for two minutes."""
    monkeypatch.setattr(keypairs, "REKEY_AFTER_TIME", 1.0)
    monkeypatch.setattr(device, "REKEY_TIMEOUT", 0.2)
    async with pair(peer_program, direct=False) as made:
        key = bytes.fromhex(made.client.state["node"])
        # As after a restart of theirs, which makes us the initiator of the next handshake.
        made.node.remove_peer(key)
        await made.introduce(direct=False)
        await made.node.reach(made.client.packed[0], 10)
        session = made.node.engine.device.peer(key)
        assert session is not None
        first = session.last_handshake
        assert first is not None
        for up in (True, False):
            await made.client.bulk(made.to, up=up, size=3 * SIZE)
        assert session.last_handshake is not None
        assert session.last_handshake > first + 1


@pytest.mark.spec("tailnet", 49)
async def test_udp_dies_and_comes_back(peer_program: Path) -> None:
    async with pair(peer_program, direct=True) as made:
        steady = asyncio.create_task(made.client.echo(made.to, count=200, pause=0.02))
        await asyncio.sleep(0.5)
        made.road.open = False
        assert await made.client.reach(made.to, 20) < FALLBACK + 0.6
        assert "region" in await made.client.ping(made.to)
        made.road.open = True
        assert await until_direct(made.client, made.to) < 10
        await steady


@pytest.mark.spec("tailnet", 50)
async def test_direct_paths_are_forbidden_and_allowed_again(peer_program: Path) -> None:
    async with pair(peer_program, direct=True) as made:
        steady = asyncio.create_task(made.client.echo(made.to, count=150, pause=0.02))
        for direct in (False, True):
            made.node.set_direct(direct)
            await made.introduce(direct=direct)
            await until_direct(made.client, made.to, direct)
        await steady


# ---- with our server between them


@pytest.mark.spec("tailnet", 55, 61, 63)
@pytest.mark.parametrize("direct", [False, True], ids=["relayed", "direct"])
async def test_their_client_and_our_agent_that_is_killed(peer_program: Path, tmp_path: Path, direct: bool) -> None:
    """The programs as people run them: server, agent, and a listener of the workspace."""
    options = [] if direct else ["--direct=false"]
    async with Deployment(tmp_path) as deployed, await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        created = await deployed.create_agent(json.dumps({"name": "dev"}))
        ident = UUID(created.id)
        addresses = [str(ipaddress.IPv6Address(own)) for own in agent_addresses(ident)]
        to = addresses[0]
        agent = deployed.agent(created)
        first = theirs(peer_program, *options)
        async with first, foreign_client(first, deployed.url, deployed.token, ident) as bridge:
            for _ in range(2):  # killed in between, after which it is the same agent with new keys
                await agent.start()
                await first.reach(to, 20)
                for each in addresses:
                    await first.echo(each, port=port, size=100_000, count=10)
                if direct:
                    await until_direct(first, to)
                for up in (False, True):
                    assert await first.speedtest(to, up=up, seconds=0.5) >= MIN_SPEEDTEST
                # A client that comes while everything else is there waits for nothing.
                second = theirs(peer_program, *options)
                async with second, foreign_client(second, deployed.url, deployed.token, ident):
                    await second.reach(to, 4)
                    await second.echo(to, port=port, count=10)
                await agent.kill()
            kinds = [update.kind for update in bridge.updates]
            assert kinds.count(pb.CoordinateResponse.PeerUpdate.READY_FOR_HANDSHAKE) >= 2


@pytest.mark.parametrize("direct", [False, True], ids=["relayed", "direct"])
async def test_our_client_finds_their_agent_through_the_server(
    peer_program: Path, tmp_path: Path, direct: bool
) -> None:
    async with Deployment(tmp_path) as deployed:
        created = await deployed.create_agent(json.dumps({"name": "dev"}))
        agent = UUID(created.id)
        token = created.token_file.read_text().strip()
        async with guest(deployed, agent, direct=direct) as client:
            for _ in range(2):  # the second agent is the same with new keys, as after a restart
                node = Node(foreign(peer_program), agent_addresses(agent), *([] if direct else ["--direct=false"]))
                async with node, foreign_agent(node, deployed.url, token):
                    await client.reachable(10)
                    trips = await traffic.round_trips(lambda: client.dial(PORT_ECHO), size=100_000, count=10)
                    assert len(trips) == 10
                    for direction in Direction:
                        stream = await client.dial(PORT_SPEEDTEST)
                        size = sum([part.size async for part in measure(stream, direction, 0.5, SystemClock())])
                        stream.close()
                        assert size >= MIN_SPEEDTEST
                    if direct:
                        async with asyncio.timeout(10):
                            while (await client.ping(5)).endpoint is None:
                                await asyncio.sleep(0.1)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


class UdpEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self.transport.sendto(data, addr)
