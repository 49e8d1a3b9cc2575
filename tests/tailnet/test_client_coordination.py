"""A client's side of coordination: the tunnel, and waiting until the agent is ready."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from agent.api.proto import tailnet_pb2 as pb
from agent.protocol import keys
from agent.tailnet.coordination import READY_LIMIT, ClientCoordinator
from agent.testing import ManualClock
from tests.tailnet.test_coordination import AGENT, Kind, Plane, a_node, node_update

CLIENT = UUID("11111111-2222-4333-8444-555555555555")


class ClientPlane(Plane):
    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.coordinator = ClientCoordinator(self.tailnet, CLIENT, AGENT, clock)

    async def say(self, kind: Kind.Kind.ValueType) -> None:
        await self.update(Kind(id=AGENT.bytes, kind=kind))

    async def name(self, node: pb.Node) -> None:
        await self.update(node_update(node, AGENT.bytes))


@pytest.fixture
async def plane(clock: ManualClock) -> AsyncIterator[ClientPlane]:
    made = ClientPlane(clock)
    yield made
    await made.tailnet.aclose()


async def test_every_connection_begins_with_the_tunnel(plane: ClientPlane) -> None:
    plane.say_node()
    for _ in range(2):
        plane.requests.clear()
        async with plane.connected():
            assert plane.requests[0].add_tunnel.id == AGENT.bytes
            assert len(plane.told) == 1


async def test_an_agent_is_programmed_when_it_is_ready_and_never_answered(plane: ClientPlane) -> None:
    node = a_node()
    async with plane.connected():
        await plane.name(node)
        assert not plane.knows(node)
        await plane.say(Kind.READY_FOR_HANDSHAKE)
        assert plane.knows(node)
        assert plane.ready == []


async def test_an_agent_may_be_ready_before_it_is_named(plane: ClientPlane) -> None:
    node = a_node()
    async with plane.connected():
        await plane.say(Kind.READY_FOR_HANDSHAKE)
        await plane.name(node)
        assert plane.knows(node)


async def test_an_agent_that_never_says_so_is_tried_after_five_seconds(plane: ClientPlane, clock: ManualClock) -> None:
    node = a_node()
    async with plane.connected():
        await plane.name(node)
        await clock.advance(READY_LIMIT - 0.1)
        assert not plane.knows(node)
        await clock.advance(0.2)
        assert plane.knows(node)


async def test_news_of_a_known_agent_is_taken_at_once(plane: ClientPlane) -> None:
    key = keys.public_key(keys.generate())
    async with plane.connected():
        await plane.say(Kind.READY_FOR_HANDSHAKE)
        await plane.name(a_node(key=key))
    async with plane.connected():
        moved = a_node(home=7, key=key)
        await plane.name(moved)
        assert plane.tailnet.engine.paths.home_of(key) == 7


@pytest.mark.spec("tailnet", 63)
async def test_a_restarted_agent_takes_the_place_of_the_lost_one(plane: ClientPlane, clock: ManualClock) -> None:
    first, second, third = a_node(), a_node(), a_node()
    async with plane.connected():
        await plane.say(Kind.READY_FOR_HANDSHAKE)
        await plane.name(first)
        await plane.say(Kind.LOST)
        assert plane.knows(first)  # only the control plane lost it
        await plane.name(second)
        assert not plane.knows(second)
        await plane.say(Kind.READY_FOR_HANDSHAKE)
        assert plane.knows(second)
        assert not plane.knows(first)
        # It is ready before it tells of itself: nothing is waited for.
        await plane.say(Kind.LOST)
        await plane.say(Kind.READY_FOR_HANDSHAKE)
        await plane.name(third)
        assert plane.knows(third)
        assert plane.coordinator.peers == 1


async def test_an_agent_that_leaves_is_forgotten_also_while_it_waits(plane: ClientPlane, clock: ManualClock) -> None:
    node = a_node()
    async with plane.connected():
        await plane.name(node)
        await plane.say(Kind.DISCONNECTED)
        await clock.advance(READY_LIMIT + 1)
        assert not plane.knows(node)
        await plane.say(Kind.READY_FOR_HANDSHAKE)
        await plane.name(node)
        assert plane.knows(node)
        await plane.say(Kind.DISCONNECTED)
        assert not plane.knows(node)


async def test_who_else_is_named_is_nobody_for_a_client(plane: ClientPlane, clock: ManualClock) -> None:
    other = a_node()
    async with plane.connected():
        await plane.update(node_update(other), Kind(id=b"short", kind=Kind.NODE), Kind(id=AGENT.bytes, kind=Kind.LOST))
        await clock.advance(READY_LIMIT + 1)
        assert plane.coordinator.peers == 0


async def test_a_cancelled_connection_leaves_no_task(plane: ClientPlane) -> None:
    async with plane.connected() as running:
        await plane.name(a_node())
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    left = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
    assert not [name for name in left if "Coordinator" in name]
