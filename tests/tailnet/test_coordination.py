"""The agent's side of coordination against a scripted control plane."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest

from agent.api import methods
from agent.api.proto import tailnet_pb2 as pb
from agent.api.tailnet import agent_addresses, write_disco, write_key
from agent.protocol import keys
from agent.rpc import CallError, RpcClient, RpcServer, ServerStream, Streaming
from agent.tailnet.coordination import CoordinationEndedError, Coordinator, follow_derp_map
from agent.tailnet.derp_dial import DialOptions
from agent.tailnet.peers import LOST_AFTER
from agent.tailnet.tailnet import NodeState, Tailnet
from agent.testing import ManualClock, memory_pair, settle

AGENT = UUID("8a3c5d1e-0b7f-4c2a-9d6e-1f2e3d4c5b6a")
Kind = pb.CoordinateResponse.PeerUpdate


class Plane:
    """A control plane whose coordination does what the test says."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.tailnet = Tailnet(agent_addresses(AGENT), clock, options=DialOptions(), direct=False)
        self.coordinator = Coordinator(self.tailnet, AGENT, clock)
        self.requests: list[pb.CoordinateRequest] = []
        self.call: ServerStream | None = None
        self.end = asyncio.Event()
        self.honour_goodbye = True

    async def coordinate(self, call: ServerStream) -> None:
        self.call = call
        ending = asyncio.ensure_future(self.end.wait())
        try:
            while not self.end.is_set():
                receiving = asyncio.ensure_future(call.receive())
                await asyncio.wait({receiving, ending}, return_when=asyncio.FIRST_COMPLETED)
                if not receiving.done():
                    receiving.cancel()
                    return
                message = receiving.result()
                if message is None:
                    return
                request = pb.CoordinateRequest.FromString(message)
                self.requests.append(request)
                if request.HasField("disconnect") and self.honour_goodbye:
                    return
        finally:
            ending.cancel()

    async def update(self, *updates: Kind, error: str = "") -> None:
        assert self.call is not None
        await self.call.send(pb.CoordinateResponse(peer_updates=updates, error=error).SerializeToString())
        await settle()

    def say_node(self, *endpoints: str, home: int = 999) -> None:
        """As the tailnet does when it has found its home."""
        self.tailnet._node = NodeState(home, {"999-v4": 0.0125}, {}, endpoints)
        self.tailnet._node_changed.set()
        self.tailnet._node_changed = asyncio.Event()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[asyncio.Task[None]]:
        self.call, self.end = None, asyncio.Event()
        left, right = memory_pair()
        client = RpcClient(left, self.clock)
        server = RpcServer(right, {methods.COORDINATE.path: Streaming(self.coordinate)}, self.clock)
        serving = asyncio.create_task(server.serve())
        await client.start()
        running = asyncio.create_task(self.coordinator.run(client))
        await settle()
        try:
            yield running
        finally:
            running.cancel()
            await client.aclose()
            await asyncio.gather(serving, running, return_exceptions=True)

    @property
    def told(self) -> list[pb.Node]:
        return [request.update_self.node for request in self.requests if request.HasField("update_self")]

    @property
    def ready(self) -> list[list[bytes]]:
        return [
            [one.id for one in request.ready_for_handshake] for request in self.requests if request.ready_for_handshake
        ]

    def knows(self, node: pb.Node) -> bool:
        return self.tailnet.engine.device.peer(node.key[2:]) is not None


@pytest.fixture
async def plane(clock: ManualClock) -> AsyncIterator[Plane]:
    made = Plane(clock)
    yield made
    await made.tailnet.aclose()


def a_node(home: int = 999, key: bytes | None = None) -> pb.Node:
    address = f"fd7a:115c:a1e0:{os.urandom(2).hex()}::1/128"
    return pb.Node(
        key=write_key(key or keys.public_key(keys.generate())),
        disco=write_disco(keys.public_key(keys.generate())),
        preferred_derp=home,
        addresses=[address],
        allowed_ips=[address],
    )


def node_update(node: pb.Node, ident: bytes | None = None) -> Kind:
    return Kind(id=ident or uuid4().bytes, kind=Kind.NODE, node=node)


@pytest.mark.spec("tailnet", 7)
async def test_the_node_is_told_once_there_is_a_home_and_when_it_changes(plane: Plane) -> None:
    async with plane.connected():
        assert plane.told == []
        plane.say_node()
        await settle()
        plane.say_node()
        await settle()
        assert len(plane.told) == 1
        plane.say_node("203.0.113.9:41641")
        await settle()
        first, second = plane.told
        assert list(second.endpoints) == ["203.0.113.9:41641"]
        assert first.key == write_key(plane.tailnet.node_key)
        assert first.id == 7102705278859322518
        assert (
            list(first.addresses)
            == list(first.allowed_ips)
            == [
                "fd7a:115c:a1e0:4c2a:9d6e:1f2e:3d4c:5b6a/128",
                "fd60:627a:a42b:4c2a:9d6e:1f2e:3d4c:5b6a/128",
            ]
        )


@pytest.mark.spec("tailnet", 8, 15)
async def test_every_node_is_acknowledged_and_nothing_else(plane: Plane) -> None:
    one, two = a_node(), a_node()
    first, second = uuid4().bytes, uuid4().bytes
    async with plane.connected():
        await plane.update(node_update(one, first), node_update(two, second))
        await plane.update(node_update(one, first))
        await plane.update(
            Kind(id=first, kind=Kind.LOST),
            Kind(id=second, kind=Kind.DISCONNECTED),
            Kind(id=second, kind=Kind.READY_FOR_HANDSHAKE),
            Kind(id=b"x" * 15, kind=Kind.NODE, node=one),
        )
        assert plane.ready == [[first, second], [first]]
        assert plane.knows(one)
        assert not plane.knows(two)


@pytest.mark.spec("tailnet", 9)
async def test_nodes_that_cannot_be_used_are_ignored_but_acknowledged(plane: Plane) -> None:
    homeless, broken = a_node(home=0), a_node()
    broken.disco = "discokey:" + "0" * 64
    low_order = a_node(key=bytes(32))
    async with plane.connected():
        await plane.update(node_update(homeless), node_update(broken), node_update(low_order))
        assert len(plane.ready[0]) == 3
        assert plane.coordinator.peers == 0


async def test_who_repeats_a_node_that_is_of_no_use_does_not_fill_the_log(
    plane: Plane, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    low_order = a_node(key=bytes(32))
    async with plane.connected():
        for _ in range(50):
            await plane.update(node_update(low_order))
        assert caplog.text.count("a peer was ignored") == 1
        await clock.advance(61)
        await plane.update(node_update(low_order))
        assert caplog.text.count("a peer was ignored") == 2
        assert "(50 times since this was last told)" in caplog.text


@pytest.mark.spec("tailnet", 12)
async def test_a_peer_with_another_key_is_another_peer(plane: Plane) -> None:
    before, after = a_node(), a_node()
    ident = uuid4().bytes
    async with plane.connected():
        await plane.update(node_update(before, ident))
        await plane.update(node_update(after, ident))
        assert not plane.knows(before)
        assert plane.knows(after)


@pytest.mark.spec("tailnet", 10, 11)
async def test_peers_outlive_the_control_plane_for_a_while(plane: Plane, clock: ManualClock) -> None:
    node = a_node()
    ident = uuid4().bytes
    expiring = asyncio.create_task(plane.coordinator.expire())
    plane.say_node()
    async with plane.connected() as running:
        await plane.update(node_update(node, ident))
        session = plane.tailnet.engine.device.peer(node.key[2:])
        assert session is not None
        session.last_handshake = clock.now()
        plane.end.set()
        with pytest.raises(CoordinationEndedError):
            await running
    await clock.advance(LOST_AFTER - 1)
    assert plane.knows(node)
    async with plane.connected():
        assert len(plane.told) == 2  # again on every connection, with the same keys
        assert plane.told[0].key == plane.told[1].key
        await plane.update(node_update(node, ident))  # it is still there
        await clock.advance(60)
        assert plane.knows(node)
        await plane.update(Kind(id=ident, kind=Kind.LOST))
        await clock.advance(60)
        assert not plane.knows(node)
    expiring.cancel()


@pytest.mark.spec("tailnet", 13)
async def test_an_error_text_does_not_end_the_stream(plane: Plane) -> None:
    async with plane.connected() as running:
        await plane.update(error='ready for handshake error: you do not share a tunnel with "x"')
        await plane.update(error="something worse")
        assert not running.done()


@pytest.mark.spec("tailnet", 14)
async def test_leaving_says_so_and_waits(plane: Plane, clock: ManualClock) -> None:
    async with plane.connected() as running:
        await plane.coordinator.leave()
        await running
        assert plane.requests[-1].HasField("disconnect")


@pytest.mark.spec("tailnet", 14)
async def test_leaving_does_not_wait_for_ever(plane: Plane, clock: ManualClock) -> None:
    plane.honour_goodbye = False
    async with plane.connected():
        leaving = asyncio.create_task(plane.coordinator.leave())
        await settle()
        assert not leaving.done()
        await clock.advance(5)
        await leaving


async def test_a_lost_connection_is_told_by_its_own_error(plane: Plane) -> None:
    left, right = memory_pair()
    client = RpcClient(left, plane.clock)
    await client.start()
    running = asyncio.create_task(plane.coordinator.run(client))
    await settle()
    await right.break_off()
    with pytest.raises(CallError, match="reset by peer"):
        await running
    with pytest.raises(CallError):
        await follow_derp_map(client, lambda derp_map: None)
    await client.aclose()
