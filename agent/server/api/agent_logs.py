"""GET workspaceagents/{id}/logs: what was stored, or that and all that comes (agent-api.md §3.6)."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator

from aiohttp import web

from agent.clock import Clock, deadline
from agent.server.api.access import visible_agent
from agent.server.errors import ApiError, Validation
from agent.server.events import Events, logs_topic, workspace_topic
from agent.server.http import Call
from agent.server.log_frames import LogOut, encode_rows, frames, text_lines
from agent.server.longlived import SEND_TIMEOUT, LongLived, OneWaySocket, one_way, upgrade_refusal
from agent.server.routes import Auth, Query, Route
from agent.server.store import Database, QueryError, logs
from agent.server.store.agents import AgentRow
from agent.server.store.logs import LogRow
from agent.server.wire import encode

PAGE = 1000
"""Rows that are read and encoded at once: some milliseconds of work."""
RECHECK = 60.0
"""Seconds after which a follower looks into the database although nobody told it to."""

INTERNAL_ERROR = 1011

logger = logging.getLogger("agent.server.logs")


class AgentLogs:
    """Handlers for people's side of the logs."""

    def __init__(self, database: Database, events: Events, clock: Clock, long_lived: LongLived) -> None:
        self._database, self._events, self._clock, self._long_lived = database, events, clock, long_lived

    def routes(self) -> list[Route]:
        return [
            Route(
                method="GET",
                path=f"/api/v2/workspaceagents/{{workspaceagent}}/{name}",
                handler=self.get,
                summary=summary,
                auth=Auth.USER_OR_PROXY,
                query=(
                    Query("after", "Only lines with a greater id", "integer"),
                    Query("before", "Ignored"),
                    Query("follow", "Answer with a WebSocket that goes on with new lines", "presence"),
                    Query("no_compression", "No compression on that WebSocket", "presence"),
                    Query("format", "`json` or `text`"),
                ),
                responses={200: list[LogOut]},
                websocket=True,
            )
            for name, summary in (("logs", "Log lines of an agent"), ("startup-logs", "The same under its old name"))
        ]

    async def get(self, call: Call) -> web.StreamResponse:
        """Checks the parameters in the order of the Go server."""
        agent = await visible_agent(self._database, call)
        after, follow = _after(call.query.get("after", "")), "follow" in call.query
        form = call.query.get("format", "") or "json"
        if form not in ("json", "text"):
            raise ApiError(400, "Invalid format parameter.", 'Allowed values are "json" and "text".')
        if not follow:
            return await self._all(call, agent, after, as_text=form == "text")
        if form == "text":
            raise ApiError(
                400,
                "Text format is not supported with follow mode.",
                "Use format=json or omit the follow parameter.",
            )
        return upgrade_refusal(call.request) or await self._follow(call, agent, after)

    async def _all(self, call: Call, agent: AgentRow, after: int, *, as_text: bool) -> web.StreamResponse:
        """Streamed page by page: an agent may have tens of megabytes."""
        response = web.StreamResponse()
        response.content_type = "text/plain" if as_text else "application/json"
        response.charset = "utf-8"
        sources = await logs.source_names(self._database, agent.agent.id) if as_text else {}
        await response.prepare(call.request)
        opening = b"" if as_text else b"["
        async for page in self._pages(agent, after):
            if as_text:
                data = "".join(text_lines(page, agent.agent.name, sources)).encode()
            else:
                data, opening = opening + b",".join(encode_rows(page)), b","
            async with deadline(self._clock, SEND_TIMEOUT):
                await response.write(data)
        if not as_text:
            await response.write(b"[]\n" if opening == b"[" else b"]\n")
        await response.write_eof()
        return response

    async def _follow(self, call: Call, agent: AgentRow, after: int) -> web.StreamResponse:
        compress = "no_compression" not in call.query
        async with one_way(
            call, self._clock, self._long_lived, compress=compress, reason="unexpected data message"
        ) as socket:
            try:
                await self._send_all(agent, after, socket)
            except QueryError:
                logger.exception("cannot read the logs of agent %s that somebody follows", agent.agent.id)
                await socket.close(INTERNAL_ERROR, "cannot read the logs")
        return socket.response

    async def _send_all(self, agent: AgentRow, after: int, socket: OneWaySocket) -> None:
        """Fed by position: a wake-up only says that it is worth to read, so nothing is missed or doubled."""
        topics = logs_topic(agent.agent.id), workspace_topic(agent.workspace.id)
        with self._events.subscribe(*topics) as subscription:
            silent = True
            while True:
                # Asked before the lines are read: those of the last moment are sent before the end.
                is_latest = await logs.is_of_latest_build(self._database, agent.agent.id)
                async for page in self._pages(agent, after):
                    for frame in frames(page):
                        await socket.send(frame)
                    after, silent = page[-1].id, False
                if silent:
                    await socket.send(encode([]).decode())
                    silent = False
                if not is_latest:
                    return
                await socket.wait(subscription, RECHECK)

    async def _pages(self, agent: AgentRow, after: int) -> AsyncIterator[list[LogRow]]:
        while page := await logs.read(self._database, agent.agent.id, after, PAGE):
            yield page
            if len(page) < PAGE:
                break
            after = page[-1].id


def _after(text: str) -> int:
    if not text:
        return 0
    if re.fullmatch(r"\+?[0-9]{1,19}", text, re.ASCII) and (after := int(text)) < 2**63:
        return after
    detail = "Must be an integer greater than or equal to zero"
    raise ApiError(
        400,
        'Query param "after" must be an integer greater than or equal to zero.',
        validations=[Validation("after", detail)],
    )
