"""What the control plane does by itself: end stop builds whose agent is gone, and forget what is old."""

from __future__ import annotations

import structlog

from agent.backoff import Backoff
from agent.clock import Clock
from agent.server.events import Events, workspace_topic
from agent.server.store import Database, QueryError, reason, workspaces

STOP_PERIOD = 1.0
PURGE_PERIOD = 3600.0
SECOND = 1_000_000

log = structlog.get_logger("agent.server.housekeeping")


class Housekeeping:
    """Replicas may all do it: every step takes what it finds, once. `stop_limit` and `retention` are in seconds."""

    def __init__(
        self, database: Database, events: Events, clock: Clock, *, stop_limit: float, retention: float
    ) -> None:
        self._database, self._events, self._clock = database, events, clock
        self._stop_limit, self._retention = round(stop_limit * SECOND), round(retention * SECOND)

    async def run(self) -> None:
        """Until cancelled. A database that is away is tried again."""
        backoff = Backoff(first=STOP_PERIOD, cap=30)
        next_purge = self._clock.now()
        while True:
            try:
                await self.end_stops()
                if self._clock.now() >= next_purge:
                    await self.purge()
                    next_purge = self._clock.now() + PURGE_PERIOD
            except QueryError as error:
                log.warning("housekeeping has to wait for the database", error=reason(error))
                await self._clock.sleep(backoff.next())
            else:
                backoff.reset()
                await self._clock.sleep(STOP_PERIOD)

    async def end_stops(self) -> None:
        """Stop builds that are over become `succeeded`, which shuts the agent out."""
        now = self._clock.wall() // 1000
        async with self._database.reading() as session:
            over = await workspaces.stops_that_are_over(session, now - self._stop_limit)
        for build in over:
            async with self._database.transaction() as session:
                ended = await workspaces.finish_build(session, build.id, "succeeded", "", now)
            if ended:
                self._events.publish(workspace_topic(build.workspace_id))

    async def purge(self) -> None:
        async with self._database.transaction() as session:
            await workspaces.purge(session, self._clock.wall() // 1000 - self._retention)
