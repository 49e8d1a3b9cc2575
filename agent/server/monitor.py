"""Is an agent still there, and may it still be? One task watches all connections (agent-api.md §6.7).

The connections are spread over the slots of one ping period; each tick serves one slot with a constant number of
database statements, so that five hundred agents cost a few batches per second and no timer of their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID, uuid4

from agent.clock import Clock, wait_for
from agent.rpc import ConnectionLostError

logger = logging.getLogger("agent.server.monitor")

SLOTS = 15
PING_TIMEOUT = 10.0
CLOSE_TIMEOUT = 10.0
MIN_SILENCE = 2.0
"""Seconds; a connection is never dropped for a shorter silence, however short the ping period."""


class Peer(Protocol):
    """The server side of one connection; `agent.rpc.RpcServer`."""

    async def ping(self, timeout: float) -> float: ...
    async def aclose(self, code: int = 1000, reason: str = "") -> None: ...


class Presence(Protocol):
    """What the database remembers of connections. The newest connection of an agent owns the row until it ends: only
    its writes count, so that an old connection that ends late does not mark a newer one as gone. After it, those of
    every other connection count."""

    async def connected(self, agent: UUID, connection: UUID) -> None:
        """This connection is the agent's newest."""

    async def seen(self, connections: Collection[tuple[UUID, UUID]]) -> None:
        """These pairs of agent and connection are alive now."""

    async def disconnected(self, agent: UUID, connection: UUID) -> None:
        """This connection ended."""

    async def obsolete(self, tokens: Collection[bytes]) -> set[bytes]:
        """Those of the (hashed) tokens that let nobody in any more: replaced, or of an outdated build (§1.3)."""


@dataclass(eq=False, slots=True)
class _Watched:
    agent: UUID
    token: bytes
    connection: UUID
    peer: Peer
    shown: bool
    last_pong: float


class ConnectionMonitor:
    """Watches the connections of all agents; `run` is its one task."""

    def __init__(self, presence: Presence, clock: Clock, period: float = 15.0) -> None:
        self._presence = presence
        self._clock = clock
        self._tick = period / SLOTS
        self._silence = max(2 * period, MIN_SILENCE)
        self._slots: list[set[_Watched]] = [set() for _ in range(SLOTS)]
        self._occupied = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def watch(self, agent: UUID, token: bytes, peer: Peer, *, shown: bool = True) -> AsyncIterator[None]:
        """The connection, opened with this (hashed) token, is closed when the peer falls silent or the token lets
        nobody in any more. If it is `shown`, the agent is connected while the body runs; the end is written even when
        the body was cancelled."""
        watched = _Watched(agent, token, uuid4(), peer, shown, self._clock.now())
        if shown:
            await self._presence.connected(agent, watched.connection)
        slot = min(self._slots, key=len)
        slot.add(watched)
        self._occupied.set()
        try:
            yield
        finally:
            slot.discard(watched)
            if shown:
                await self._report_end(watched)

    async def run(self) -> None:
        """Until cancelled."""
        current = 0
        try:
            while True:
                if not any(self._slots):
                    self._occupied.clear()
                    await self._occupied.wait()
                await self._clock.sleep(self._tick)
                current = (current + 1) % SLOTS
                if self._slots[current]:
                    self._spawn(self._check(tuple(self._slots[current])))
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _check(self, slot: tuple[_Watched, ...]) -> None:
        now = self._clock.now()
        silent = [one for one in slot if now - one.last_pong > self._silence]
        alive = [one for one in slot if now - one.last_pong <= self._silence]
        for one in silent:
            self._spawn(self._drop(one, "ping timeout"))
        for one in alive:
            self._spawn(self._ping(one))
        try:
            await self._presence.seen([(one.agent, one.connection) for one in alive if one.shown])
            obsolete = await self._presence.obsolete({one.token for one in alive})
        except Exception:
            # A database that is away must not cost the agents their connections; the next tick tries again.
            logger.exception("cannot write which agents are connected")
            return
        for one in alive:
            if one.token in obsolete:
                self._spawn(self._drop(one, "build is outdated, or token was replaced"))

    async def _ping(self, watched: _Watched) -> None:
        with suppress(ConnectionLostError):  # the silence is judged at the next ticks, the end by who serves
            await watched.peer.ping(PING_TIMEOUT)
            watched.last_pong = self._clock.now()

    async def _drop(self, watched: _Watched, why: str) -> None:
        logger.info("agent %s: closing its connection: %s", watched.agent, why)
        with suppress(TimeoutError):
            await wait_for(self._clock, watched.peer.aclose(), CLOSE_TIMEOUT)

    async def _report_end(self, watched: _Watched) -> None:
        """Shielded from the cancellation that may have ended the connection, with a time limit of its own."""
        report = asyncio.ensure_future(
            wait_for(self._clock, self._presence.disconnected(watched.agent, watched.connection), CLOSE_TIMEOUT)
        )
        try:
            await asyncio.shield(report)
        except asyncio.CancelledError:
            await asyncio.gather(report, return_exceptions=True)
            raise
        except Exception:
            # The times that were written last tell readers the same after the inactive timeout (§3.1).
            logger.exception("agent %s: cannot write that it disconnected", watched.agent)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
