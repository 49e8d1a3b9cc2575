"""Watching an agent's metadata, as an event stream or over a WebSocket (agent-api.md §3.8, §3.9)."""

from __future__ import annotations

import logging
from uuid import UUID

import msgspec
from aiohttp import web

from agent.clock import Clock
from agent.server.api.access import visible_agent
from agent.server.errors import ErrorBody
from agent.server.events import Events, metadata_topic
from agent.server.http import Call
from agent.server.longlived import (
    HEARTBEAT,
    EventStream,
    LongLived,
    OneWaySocket,
    event_stream,
    one_way,
    upgrade_refusal,
)
from agent.server.routes import EMPTY, Auth, Route, Text
from agent.server.store import Database, QueryError, agents
from agent.server.store.schema import Metadata
from agent.server.wire import ZERO_TIME, Time, rfc3339

MIN_PERIOD, MAX_PERIOD = 1.0, 5.0
"""Seconds between two events: at least the first, when something changed; at most the second, as ages grow."""
PROTOCOL_ERROR = 1002
CLIENT_MESSAGE = "Clients cannot send messages for one-way WebSockets"

logger = logging.getLogger("agent.server.metadata")


class Result(msgspec.Struct):
    """`age` is in whole seconds."""

    collected_at: Time
    age: int
    value: str
    error: str


class Description(msgspec.Struct):
    """`interval` and `timeout` are in whole seconds."""

    display_name: str
    key: str
    script: str
    interval: int
    timeout: int


class MetadataItem(msgspec.Struct):
    """One item with its last result."""

    result: Result
    description: Description


class AgentMetadata:
    """Handlers of both forms."""

    def __init__(self, database: Database, events: Events, clock: Clock, long_lived: LongLived) -> None:
        self._database, self._events, self._clock, self._long_lived = database, events, clock, long_lived

    def routes(self) -> list[Route]:
        base = "/api/v2/workspaceagents/{workspaceagent}/watch-metadata"
        return [
            Route(
                method="GET",
                path=base,
                handler=self.events,
                summary="Metadata of an agent as it changes, as server-sent events",
                auth=Auth.USER_OR_PROXY,
                responses={200: Text("text/event-stream")},
            ),
            Route(
                method="GET",
                path=base + "-ws",
                handler=self.socket,
                summary="The same over a WebSocket",
                auth=Auth.USER_OR_PROXY,
                responses={101: EMPTY},
                websocket=True,
            ),
        ]

    async def events(self, call: Call) -> web.StreamResponse:
        agent = await visible_agent(self._database, call)
        async with event_stream(call, self._clock, self._long_lived) as stream:
            await self._watch(agent.agent.id, stream)
        return stream.response

    async def socket(self, call: Call) -> web.StreamResponse:
        agent = await visible_agent(self._database, call)
        if (refusal := upgrade_refusal(call.request)) is not None:
            return refusal
        async with one_way(
            call, self._clock, self._long_lived, compress=False, code=PROTOCOL_ERROR, reason=CLIENT_MESSAGE
        ) as socket:
            await self._watch(agent.agent.id, socket)
        return socket.response

    async def _watch(self, agent: UUID, outlet: EventStream | OneWaySocket) -> None:
        """Until the watcher goes away, or the database fails."""
        last_ping = self._clock.now()
        with self._events.subscribe(metadata_topic(agent)) as subscription:
            while True:
                try:
                    async with self._database.reading() as session:
                        rows = await agents.metadata(session, agent)
                except QueryError:
                    logger.exception("cannot read the metadata of agent %s", agent)
                    await outlet.emit("error", ErrorBody("Internal error reading metadata."))
                    return
                now = self._clock.wall() // 1000
                await outlet.emit("data", [_item(row, now) for row in rows])
                if self._clock.now() - last_ping >= HEARTBEAT:
                    last_ping = self._clock.now()
                    await outlet.emit("ping")
                await self._clock.sleep(MIN_PERIOD)
                await outlet.wait(subscription, MAX_PERIOD - MIN_PERIOD)


def _item(row: Metadata, now: int) -> MetadataItem:
    at = row.collected_at
    return MetadataItem(
        Result(
            collected_at=ZERO_TIME if at is None else rfc3339(at),
            age=0 if at is None else max(now - at, 0) // 1_000_000,
            value=row.value,
            error=row.error,
        ),
        Description(row.display_name, row.key, row.script, row.interval, row.timeout),
    )
