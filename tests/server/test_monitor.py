"""Which connections live, on a manual clock (agent-api.md §6.7)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest

from agent.rpc import ConnectionLostError
from agent.server.monitor import ConnectionMonitor
from agent.testing import ManualClock, settle


class Peer:
    def __init__(self) -> None:
        self.answers = True
        self.pings = 0
        self.closed = asyncio.Event()

    async def ping(self, timeout: float) -> float:
        self.pings += 1
        if not self.answers:
            raise ConnectionLostError("no pong")
        return 0.001

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        assert code == 1000
        self.closed.set()


class Presence:
    """The rows as a dictionary: agent → (connection, what was written last, when)."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.rows: dict[UUID, tuple[UUID, str, float]] = {}
        self.outdated: set[UUID] = set()
        self.statements = 0
        self.broken = False

    async def connected(self, agent: UUID, connection: UUID) -> None:
        self.rows[agent] = (connection, "connected", self.clock.now())

    async def seen(self, connections: Collection[tuple[UUID, UUID]]) -> None:
        self.statements += 1
        if self.broken:
            raise OSError("the database is away")
        for agent, connection in connections:
            if self.rows[agent][0] == connection:
                self.rows[agent] = (connection, "seen", self.clock.now())

    async def disconnected(self, agent: UUID, connection: UUID) -> None:
        if self.broken:
            raise OSError("the database is away")
        if self.rows[agent][0] == connection:
            self.rows[agent] = (connection, "disconnected", self.clock.now())

    async def obsolete(self, tokens: Collection[bytes]) -> set[bytes]:
        return {token for token in tokens if UUID(bytes=token) in self.outdated}


@asynccontextmanager
async def running(monitor: ConnectionMonitor) -> AsyncIterator[None]:
    task = asyncio.create_task(monitor.run())
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def hold(monitor: ConnectionMonitor, agent: UUID, peer: Peer) -> None:
    """What the handler of `me/rpc` does: serve until the connection is closed."""
    async with monitor.watch(agent, agent.bytes, peer):
        await peer.closed.wait()


@pytest.fixture
def presence(clock: ManualClock) -> Presence:
    return Presence(clock)


@pytest.mark.spec("agent-api", 39)
async def test_connected_seen_disconnected(clock: ManualClock, presence: Presence) -> None:
    monitor, agent, peer = ConnectionMonitor(presence, clock), uuid4(), Peer()
    async with running(monitor):
        held = asyncio.create_task(hold(monitor, agent, peer))
        await settle()
        assert presence.rows[agent][1:] == ("connected", 0)
        await clock.advance(15)
        assert presence.rows[agent][1] == "seen"
        first = presence.rows[agent][2]
        await clock.advance(15)
        assert presence.rows[agent][1:] == ("seen", first + 15)
        assert peer.pings == 2
        await peer.aclose()
        await held
        assert presence.rows[agent][1:] == ("disconnected", 30)


@pytest.mark.spec("agent-api", 39)
async def test_silence_is_found_within_45_seconds(clock: ManualClock, presence: Presence) -> None:
    monitor, agent, peer = ConnectionMonitor(presence, clock), uuid4(), Peer()
    async with running(monitor):
        held = asyncio.create_task(hold(monitor, agent, peer))
        await clock.advance(60)
        peer.answers = False
        await clock.advance(29)
        assert not peer.closed.is_set()
        await clock.advance(16)
        await held
        assert presence.rows[agent][1] == "disconnected"


@pytest.mark.spec("agent-api", 40)
async def test_outdated_build_is_dropped_within_one_period(clock: ManualClock, presence: Presence) -> None:
    monitor, agent, other, peer, other_peer = ConnectionMonitor(presence, clock), uuid4(), uuid4(), Peer(), Peer()
    async with running(monitor):
        tasks = [
            asyncio.create_task(hold(monitor, agent, peer)),
            asyncio.create_task(hold(monitor, other, other_peer)),
        ]
        await clock.advance(7)
        presence.outdated.add(agent)
        await clock.advance(15)
        assert peer.closed.is_set()
        assert not other_peer.closed.is_set()
        await other_peer.aclose()
        await asyncio.gather(*tasks)


async def test_an_old_connection_that_ends_late_changes_nothing(clock: ManualClock, presence: Presence) -> None:
    monitor, agent, old, new = ConnectionMonitor(presence, clock), uuid4(), Peer(), Peer()
    async with running(monitor):
        first = asyncio.create_task(hold(monitor, agent, old))
        await clock.advance(5)
        second = asyncio.create_task(hold(monitor, agent, new))
        await clock.advance(5)
        await old.aclose()
        await first
        assert presence.rows[agent][1] != "disconnected"
        await new.aclose()
        await second
        assert presence.rows[agent][1] == "disconnected"


async def test_end_is_written_when_the_handler_is_cancelled(clock: ManualClock, presence: Presence) -> None:
    monitor, agent, peer = ConnectionMonitor(presence, clock), uuid4(), Peer()
    held = asyncio.create_task(hold(monitor, agent, peer))
    await settle()
    held.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held
    assert presence.rows[agent][1] == "disconnected"


async def test_a_database_that_is_away_costs_no_connection(clock: ManualClock, presence: Presence) -> None:
    monitor, agent, peer = ConnectionMonitor(presence, clock), uuid4(), Peer()
    async with running(monitor):
        held = asyncio.create_task(hold(monitor, agent, peer))
        await settle()
        presence.broken = True
        await clock.advance(120)
        assert not peer.closed.is_set()
        presence.broken = False
        await clock.advance(15)
        assert presence.rows[agent][1] == "seen"
        presence.broken = True
        await peer.aclose()
        await held


async def test_five_hundred_agents_cost_one_batch_per_slot(clock: ManualClock, presence: Presence) -> None:
    monitor, peers = ConnectionMonitor(presence, clock), [Peer() for _ in range(500)]
    async with running(monitor):
        tasks = [asyncio.create_task(hold(monitor, uuid4(), peer)) for peer in peers]
        await clock.advance(15)
        assert presence.statements <= 15
        assert {peer.pings for peer in peers} == {1}
        for peer in peers:
            await peer.aclose()
        await asyncio.gather(*tasks)


async def test_an_idle_server_does_not_wake(clock: ManualClock, presence: Presence) -> None:
    monitor = ConnectionMonitor(presence, clock)
    async with running(monitor):
        await settle()
        assert clock.sleepers == 0
