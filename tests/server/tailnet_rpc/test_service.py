"""Streams and the coordinator behind them, over a connection in memory: who does not read, breaks off, or is odd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest

from agent.api import methods
from agent.api.proto import tailnet_pb2 as pb
from agent.rpc import RpcClient, RpcServer
from agent.server.coordinator import MAX_NODE, Coordinator, Update
from agent.server.derp_map import DerpMaps, DerpOptions
from agent.server.events import Events
from agent.server.store import open_database
from agent.server.tailnet_rpc.policies import Policy, ServerPolicy
from agent.server.tailnet_rpc.resume import ResumeTokens
from agent.server.tailnet_rpc.service import (
    CLOSE_TIMEOUT,
    MAX_REQUEST,
    REQUEST_BURST,
    REQUEST_RATE,
    SEND_TIMEOUT,
    Client,
    TailnetService,
)
from agent.testing import ManualClock, memory_pair, settle

P1, P2 = UUID(int=1), UUID(int=2)
Request = pb.CoordinateRequest


class Faulty:
    """A policy with a defect."""

    async def check(self, request: Request) -> None:
        raise LookupError("secret detail")


class Slow:
    """A policy that takes its time."""

    async def check(self, request: Request) -> None:
        await asyncio.get_running_loop().create_future()


class Kit:
    def __init__(self, clock: ManualClock, service: TailnetService, coordinator: Coordinator) -> None:
        self.clock, self.service, self.coordinator = clock, service, coordinator

    @asynccontextmanager
    async def client(self, peer: UUID, policy: Policy | None = None) -> AsyncIterator[RpcClient]:
        left, right = memory_pair()
        told = Client(peer, policy or ServerPolicy(), "test", peer, is_owner=False, sees_workspaces=False)
        server = RpcServer(right, self.service.client_handlers(told), self.clock)
        serving = asyncio.create_task(server.serve())
        client = RpcClient(left, self.clock)
        await client.start()
        try:
            yield client
        finally:
            await client.aclose()
            await serving


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    clock, events, coordinator = ManualClock(), Events(), Coordinator()
    maps = DerpMaps("http://localhost", DerpOptions(), events, clock)
    database = await open_database(f"sqlite:///{tmp_path}/x.db")
    yield Kit(clock, TailnetService(coordinator, maps, ResumeTokens("k", b"k"), database, events, clock), coordinator)
    await database.aclose()


def me(number: int, padding: int = 0) -> bytes:
    node = pb.Node(id=number, endpoints=["x" * padding])
    return Request(update_self=Request.UpdateSelf(node=node)).SerializeToString()


def tunnel(to: UUID) -> bytes:
    return Request(add_tunnel=Request.Tunnel(id=to.bytes)).SerializeToString()


def response(data: bytes | None) -> pb.CoordinateResponse:
    assert data is not None
    return pb.CoordinateResponse.FromString(data)


async def test_who_does_not_read_is_lost_and_costs_the_others_nothing(kit: Kit) -> None:
    async with (
        kit.client(P1) as writer,
        kit.client(P2) as reader,
        await writer.duplex(methods.COORDINATE.path) as p1,
        await reader.duplex(methods.COORDINATE.path) as p2,
    ):
        await p2.send(me(2))
        await p1.send(tunnel(P2))
        assert response(await p1.receive()).peer_updates[0].kind == Update.NODE
        for number in range(100):
            await p1.send(me(number, MAX_NODE - 1000))
            await settle()
        assert kit.coordinator.node(P1).id == 99  # type: ignore[union-attr]
        assert kit.coordinator.node(P2) is not None
        await kit.clock.advance(SEND_TIMEOUT + 1)
        await settle()
        gone = response(await p1.receive()).peer_updates[0]
        assert (gone.id, gone.kind) == (P2.bytes, Update.LOST)
        assert kit.coordinator.node(P2) is None


async def test_a_defect_of_a_policy_ends_its_stream_only(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    async with kit.client(P1, Faulty()) as client, await client.duplex(methods.COORDINATE.path) as stream:
        await stream.send(me(1))
        assert response(await stream.receive()).error == "internal error"
        assert kit.coordinator.refused == 1
        assert await stream.receive() is None
        await client.ping(5)
    assert "secret detail" in caplog.text


async def test_the_end_of_sending_is_the_end_of_the_peer(kit: Kit) -> None:
    async with kit.client(P1) as client, await client.duplex(methods.COORDINATE.path) as stream:
        await stream.send(me(1))
        await stream.close_send()
        assert await stream.receive() is None
        assert len(kit.coordinator) == 0


@pytest.mark.parametrize("policy", [ServerPolicy(), Slow()])
async def test_a_connection_that_breaks_leaves_nothing(kit: Kit, policy: Policy) -> None:
    async with kit.client(P1, policy) as client:
        stream = await client.duplex(methods.COORDINATE.path)
        await stream.send(me(1))
        await settle()
        assert len(kit.coordinator) == 1
    assert len(kit.coordinator) == 0
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("coordinate")]


async def test_a_peer_that_does_not_read_does_not_hold_up_the_end(kit: Kit) -> None:
    async with (
        kit.client(P1) as writer,
        kit.client(P2) as reader,
        await writer.duplex(methods.COORDINATE.path) as p1,
        await reader.duplex(methods.COORDINATE.path),
    ):
        await p1.send(tunnel(P2))
        for number in range(20):
            await p1.send(me(number, MAX_NODE - 1000))
            await settle()
        closing = asyncio.create_task(kit.service.aclose())
        await settle()
        assert response(await p1.receive()).error == "coordinator closed"
        assert not closing.done()
        await kit.clock.advance(CLOSE_TIMEOUT)
        await closing


async def test_requests_without_end_wait_and_cost_the_other_end_nothing(kit: Kit) -> None:
    """update_self as fast as it goes: 512 at once, then 128 a second, and no more than the newest is kept."""
    async with (
        kit.client(P1) as writer,
        kit.client(P2) as reader,
        await writer.duplex(methods.COORDINATE.path) as p1,
        await reader.duplex(methods.COORDINATE.path) as p2,
    ):
        await p2.send(me(1))
        await p1.send(tunnel(P2))
        assert response(await p1.receive()).peer_updates[0].kind == Update.NODE

        async def flood() -> None:
            for number in range(3000):
                await p1.send(me(number))

        flooding = asyncio.create_task(flood())
        for _ in range(20):
            await kit.clock.advance(0.05)
        node = kit.coordinator.node(P1)
        assert node is not None
        assert REQUEST_BURST - 10 <= node.id <= REQUEST_BURST + REQUEST_RATE * 1.1
        assert kit.service.slowed > 20
        assert kit.coordinator._peers[P2].pending <= 1
        await p2.send(me(7))  # the other one is not slowed
        await settle()
        assert kit.coordinator.node(P2).id == 7  # type: ignore[union-attr]
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)


async def test_a_request_that_is_too_large_is_not_even_parsed(kit: Kit) -> None:
    addresses = ["2001:db8::1/128"] * (MAX_REQUEST // 10)
    request = Request(update_self=Request.UpdateSelf(node=pb.Node(allowed_ips=addresses))).SerializeToString()
    async with kit.client(P1, Faulty()) as client, await client.duplex(methods.COORDINATE.path) as p1:
        await p1.send(request)
        assert response(await p1.receive()).error == f"a request of {len(request)} bytes is larger than {MAX_REQUEST}"
        assert await p1.receive() is None
        assert kit.coordinator.refused == 1
