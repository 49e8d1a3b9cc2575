"""Metadata of all agents, written a few times a second in one transaction (agent-api.md §11.2 allows up to 5 s).

Agents report every second or two, and only the newest value of a key counts: hundreds of agents would otherwise be
hundreds of transactions a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from uuid import UUID

from agent.backoff import Backoff
from agent.clock import Clock
from agent.server.reports import MetadataValue
from agent.server.store import Database, QueryError, metadata
from agent.server.store.metadata import MetadataRow

PERIOD = 0.5
"""Seconds from a report to its transaction."""

logger = logging.getLogger("agent.server.metadata")


class MetadataWriter:
    """`written` is called with each agent whose values were stored. What is pending is one value per key of an agent:
    callers must only `put` keys that the agent's definition has."""

    def __init__(self, database: Database, clock: Clock, written: Callable[[UUID], None]) -> None:
        self._database, self._clock, self._written = database, clock, written
        self._pending: dict[tuple[UUID, str], MetadataRow] = {}
        self._wake = asyncio.Event()

    def put(self, agent: UUID, values: Iterable[MetadataValue]) -> None:
        """Take the values in; they count as collected now."""
        now = self._clock.wall() // 1000
        for value in values:
            self._pending[agent, value.key] = MetadataRow(agent, value.key, value.value, value.error, now)
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled; then what is pending is written. A database that is away gets the newest when it is back."""
        backoff = Backoff(first=PERIOD, cap=10)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._clock.sleep(PERIOD)
                while not await self.flush():
                    await self._clock.sleep(backoff.next())
                backoff.reset()
        finally:
            await self.flush()

    async def flush(self) -> bool:
        """Write what is pending; False when the database did not take it."""
        rows, self._pending = self._pending, {}
        if not rows:
            return True
        try:
            await metadata.write(self._database, list(rows.values()))
        except (QueryError, asyncio.CancelledError) as error:
            self._pending = rows | self._pending
            if isinstance(error, asyncio.CancelledError):
                raise
            logger.exception("cannot store the metadata of agents")
            return False
        for agent in {agent for agent, _ in rows}:
            self._written(agent)
        return True
