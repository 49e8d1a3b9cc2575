"""What the page watches: all agents, and one agent with what became of its scripts and how it is reached.

Both are server-sent events, `data` with the whole state whenever it changed: our own endpoints under `/api/v2/agents`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

import msgspec
import structlog
from aiohttp import web
from msgspec import UNSET, UnsetType

from agent.clock import Clock
from agent.server.api import models
from agent.server.api.agents import Agents, find_agent
from agent.server.errors import ApiError
from agent.server.events import Events, agent_topic, owner_topic, workspace_topic
from agent.server.http import Call
from agent.server.longlived import HEARTBEAT, EventStream, LongLived, OneWaySocket, event_stream
from agent.server.network import AgentNetwork, AgentUnreachableError
from agent.server.routes import Route, Text
from agent.server.store import Database, QueryError, agents, users, workspaces
from agent.server.wire import Time, encode, rfc3339

PAUSE = 0.25
"""Seconds between two states at least: what changes together is told together."""
RECHECK = 5.0
"""Seconds after which is looked again though nothing was told: time alone makes an agent late."""
MEASURE_FIRST = 0.5
"""Seconds until it is looked at how a watched agent is reached …"""
MEASURE = 10.0
"""… between two looks …"""
MEASURE_LIMIT = 5.0
"""… and how long one may take."""
RUNS = 200
"""Runs of scripts that are told, the newest."""

log = structlog.get_logger("agent.server.watch")


class Timing(msgspec.Struct, kw_only=True):
    """One finished run of a script."""

    script_id: UUID
    stage: str
    started_at: Time
    ended_at: Time
    exit_code: int
    status: str


class Path(msgspec.Struct, kw_only=True):
    """How this server reaches the agent: directly at `endpoint`, or through the relay `region`."""

    direct: bool
    endpoint: str
    region: str
    latency_ms: float | UnsetType


class WatchedAgent(msgspec.Struct, kw_only=True):
    """`name` is that of the workspace. `path` is null while there is no tunnel to the agent."""

    name: str
    agent: models.WorkspaceAgent
    timings: list[Timing]
    path: Path | None


class Watch:
    """Handlers; a member sees own agents only, an owner all."""

    def __init__(
        self,
        database: Database,
        events: Events,
        long_lived: LongLived,
        network: AgentNetwork,
        agents: Agents,
        clock: Clock,
    ) -> None:
        self._database, self._events, self._long_lived, self._clock = database, events, long_lived, clock
        self._network, self._agents = network, agents

    def routes(self) -> list[Route]:
        stream = {200: Text("text/event-stream")}
        return [
            Route(
                method="GET",
                path="/api/v2/agents/watch",
                handler=self.all,
                summary="The list of agents whenever it changes, as server-sent events",
                responses=stream,
            ),
            Route(
                method="GET",
                path="/api/v2/agents/{agent}/watch",
                handler=self.one,
                summary="One agent with its scripts' runs whenever something changes, as server-sent events",
                responses=stream,
            ),
        ]

    async def all(self, call: Call) -> web.StreamResponse:
        user = call.user

        async def look() -> tuple[models.AgentList, set[str]]:
            async with self._database.reading() as session:
                rows = await agents.newest(session, None if user.is_owner else user.id)
                latest = await workspaces.latest_builds(session, [row.workspace.id for row in rows])
                owners = [one.id for one in await users.all_users(session)] if user.is_owner else [user.id]
            now = self._clock.wall() // 1000
            found = [models.summary(row, latest[row.workspace.id], now) for row in rows]
            topics = {agent_topic(row.agent.id) for row in rows} | {workspace_topic(row.workspace.id) for row in rows}
            return models.AgentList(agents=found), topics | {owner_topic(owner) for owner in owners}

        return await self._serve(call, look)

    async def one(self, call: Call) -> web.StreamResponse:
        async with self._database.reading() as session:
            agent = (await find_agent(session, call)).agent.id
        connected = False

        async def look() -> tuple[WatchedAgent, set[str]]:
            nonlocal connected
            async with self._database.reading() as session:
                row = await find_agent(session, call)
                described = await self._agents.describe(session, row)
                runs = await agents.timings(session, agent, RUNS)
            connected = described.status == "connected"
            timings = [
                Timing(
                    script_id=run.script_id,
                    stage=run.stage,
                    started_at=rfc3339(run.started_at),
                    ended_at=rfc3339(run.ended_at),
                    exit_code=run.exit_code,
                    status=run.status,
                )
                for run in runs
            ]
            state = WatchedAgent(name=row.workspace.name, agent=described, timings=timings, path=self._path(agent))
            return state, {agent_topic(agent), workspace_topic(row.workspace.id)}

        def found() -> None:
            self._events.publish(agent_topic(agent))

        measuring = asyncio.create_task(
            measure(self._network, agent, lambda: connected, found, self._clock), name=f"path to agent {agent}"
        )
        try:
            return await self._serve(call, look)
        finally:
            measuring.cancel()
            await asyncio.gather(measuring, return_exceptions=True)

    def _path(self, agent: UUID) -> Path | None:
        found = self._network.path(agent)
        if found is None:
            return None
        latency = UNSET if found.latency is None else round(found.latency * 1000, 1)
        return Path(direct=found.direct, endpoint=found.endpoint, region=found.relay, latency_ms=latency)

    async def _serve(self, call: Call, look: Callable[[], Awaitable[tuple[Any, set[str]]]]) -> web.StreamResponse:
        async with event_stream(call, self._clock, self._long_lived) as stream:
            await self.tell(call, stream, look)
        return stream.response

    async def tell(
        self,
        call: Call,
        stream: EventStream | OneWaySocket,
        look: Callable[[], Awaitable[tuple[Any, set[str]]]],
        *,
        greet: bool = False,
    ) -> None:
        """Emit what `look` finds whenever that is another state; the topics that it gives tell when to look again.
        `greet` with a ping, as clients of the Coder API wait for one. Ends when there is nothing to look at any more.
        """
        try:
            if greet:
                await stream.emit("ping")
            await self._tell(stream, look)
        except ApiError as error:
            # It was there when the stream was opened.
            await stream.emit("error", error.body)
        except QueryError:
            # The page comes back by itself.
            log.exception("cannot read what somebody watches", path=call.request.path)

    async def _tell(
        self, stream: EventStream | OneWaySocket, look: Callable[[], Awaitable[tuple[Any, set[str]]]]
    ) -> None:
        topics: set[str] = set()
        told, told_at = b"", 0.0
        while True:
            with self._events.subscribe(*topics) as subscription:
                state, wanted = await look()
                if (body := encode(state)) != told:
                    await stream.emit("data", state)
                    told, told_at = body, self._clock.now()
                elif self._clock.now() - told_at >= HEARTBEAT:
                    await stream.emit("ping")
                    told_at = self._clock.now()
                if wanted != topics:
                    # Others have come: subscribe to them first, then look again, so that nothing falls between.
                    topics = wanted
                    continue
                await self._clock.sleep(PAUSE)
                await stream.wait(subscription, RECHECK - PAUSE)


async def measure(
    network: AgentNetwork, agent: UUID, connected: Callable[[], bool], found: Callable[[], None], clock: Clock
) -> None:
    """Ask the agent for its path for as long as somebody watches: otherwise nothing is known of it before the first
    terminal, and nothing new while that is idle. `found` is called when the first answer is there."""
    answered = False
    while True:
        await clock.sleep(MEASURE_FIRST)
        if not connected():
            continue
        # The path says itself that there is none.
        with suppress(AgentUnreachableError):
            await network.ping(agent, MEASURE_LIMIT)
            if not answered:
                found()
            answered = True
        await clock.sleep(MEASURE - MEASURE_FIRST)
