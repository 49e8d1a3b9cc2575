"""Ports for the page: what listens as it changes, and a way to open it. Our own endpoints under `/api/v2/agents`."""

from __future__ import annotations

from contextlib import aclosing

import msgspec
import structlog
from aiohttp import web

from agent.clock import Clock
from agent.server.agent_ports import AgentPorts, ListeningPort, PortList, port_of
from agent.server.api.agents import find_agent
from agent.server.api.models import status_of
from agent.server.errors import ApiError
from agent.server.events import Events, agent_topic
from agent.server.http import Call, reply
from agent.server.longlived import HEARTBEAT, EventStream, LongLived, event_stream
from agent.server.ports.access import PortAccess
from agent.server.ports.origins import HIGHEST_PORT, LOWEST_PORT, OriginsUnavailableError, PortOrigins
from agent.server.routes import Route, Text
from agent.server.store import Database, QueryError, agents
from agent.server.store.agents import AgentRow

PAUSE = 2.0
"""Seconds before an agent is asked again that did not answer well."""

log = structlog.get_logger("agent.server.ports")


class WatchedPorts(msgspec.Struct):
    """`trouble` says why the ports are not known, empty if they are."""

    ports: list[ListeningPort]
    trouble: str = ""


class OpenedPort(msgspec.Struct):
    """Opens the port in a browser, once and within a minute."""

    url: str


class Ports:
    """Handlers; a member sees own agents only, an owner all."""

    def __init__(
        self,
        database: Database,
        events: Events,
        long_lived: LongLived,
        agent_ports: AgentPorts,
        access: PortAccess,
        origins: PortOrigins,
        clock: Clock,
    ) -> None:
        self._database, self._events, self._long_lived, self._clock = database, events, long_lived, clock
        self._ports, self._access, self._origins = agent_ports, access, origins

    def routes(self) -> list[Route]:
        base = "/api/v2/agents/{agent}/ports"
        return [
            Route(
                method="GET",
                path=f"{base}/watch",
                handler=self.watch,
                summary="TCP ports on which programs in the workspace listen whenever they change, "
                "as server-sent events",
                responses={200: Text("text/event-stream")},
            ),
            Route(
                method="POST",
                path=f"{base}/{{port}}/tickets",
                handler=self.open,
                summary="A link that opens a port of the workspace once, on an origin of its own",
                responses={201: OpenedPort},
            ),
        ]

    async def open(self, call: Call) -> web.Response:
        text = call.path("port")
        port = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0
        if not LOWEST_PORT <= port <= HIGHEST_PORT:
            raise ApiError(400, f'"{text}" is no port to open: it must be from {LOWEST_PORT} to {HIGHEST_PORT}.')
        row = await self._find(call)
        try:
            origin = await self._origins.open(row.agent.id, port, call.request.host)
        except OriginsUnavailableError as error:
            raise ApiError(409, "Ports cannot be opened in the browser.", f"{error}.") from error
        return reply(OpenedPort(await self._access.issue(origin, call.user)), 201)

    async def watch(self, call: Call) -> web.StreamResponse:
        await self._find(call)
        async with event_stream(call, self._clock, self._long_lived) as stream:
            try:
                while True:
                    await self._tell(call, stream)
            except (QueryError, ApiError):
                # The agent is there no more, or the database; the page comes back and is told.
                log.info("what somebody watches cannot be read any more", path=call.request.path)
        return stream.response

    async def _tell(self, call: Call, stream: EventStream) -> None:
        """Of one connection of the agent, or that there is none. Raises `ApiError` 404 once it is not to be seen."""
        row = await self._find(call)
        with self._events.subscribe(agent_topic(row.agent.id)) as subscription:
            row = await self._find(call)
            status = status_of(row, self._clock.wall() // 1000)
            if status != "connected":
                await stream.emit("data", WatchedPorts([], f'Agent state is "{status}".'))
                while status == status_of(await self._find(call), self._clock.wall() // 1000):
                    await stream.emit("ping")
                    await stream.wait(subscription, HEARTBEAT)
                return
            async with self._database.reading() as session:
                apps = {port_of(app.url) for app in await agents.apps(session, row.agent.id)}
            try:
                async with aclosing(self._ports.changes(row.agent.id)) as changes:
                    told: PortList | None = None
                    async for found in changes:
                        shown = found.shown(apps) if found is not None else told
                        if shown is None or shown == told:
                            await stream.emit("ping")
                            await self._find(call)
                        else:
                            await stream.emit("data", WatchedPorts(shown.ports))
                            told = shown
            except ApiError as error:
                if error.status != 500:
                    raise
                await stream.emit("data", WatchedPorts([], f"{error.body.message} {error.body.detail}".strip()))
                await stream.wait(subscription, PAUSE)

    async def _find(self, call: Call) -> AgentRow:
        async with self._database.reading() as session:
            return await find_agent(session, call)
