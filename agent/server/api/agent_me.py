"""What programs inside a workspace ask for with the agent's token (agent-api.md §2)."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec
from aiohttp import web

from agent.clock import Clock
from agent.server import log_lines
from agent.server.errors import ApiError
from agent.server.events import Events, logs_topic
from agent.server.http import Call, reply
from agent.server.reports import quote
from agent.server.routes import Auth, Route
from agent.server.store import Database, QueryError, git_keys, logs, reason
from agent.server.store.logs import LimitReachedError
from agent.server.wire import Body, Time, parse_uuid, rfc3339

MAX_LOGS_BODY = 8 * 1024 * 1024
"""Bytes; far above what may be stored at once, so that the answer is about the limit of logs, not of bodies."""


class LogIn(msgspec.Struct):
    """One line of PATCH me/logs. The time is checked and then not used: the server's own counts (§2.2)."""

    created_at: datetime | None = None
    output: str = ""
    level: str = ""


class PatchLogs(Body):
    """Body of PATCH me/logs."""

    log_source_id: str | None = None
    logs: list[LogIn] | None = None


class PostLogSource(Body):
    """Body of POST me/log-source. No field is required."""

    id: str | None = None
    display_name: str = ""
    icon: str = ""


class LogSource(msgspec.Struct):
    """Where lines come from (§2.3)."""

    workspace_agent_id: UUID
    id: UUID
    created_at: Time
    display_name: str
    icon: str


class GitSshKey(msgspec.Struct):
    """Both halves of the owner's key, in OpenSSH's formats (§2.5)."""

    public_key: str
    private_key: str


class AgentMe:
    """The plain requests; `agent_rpc` and `external_auth` have the others. `log_limit` is in bytes per agent."""

    def __init__(self, database: Database, events: Events, clock: Clock, log_limit: int) -> None:
        self._database, self._events, self._clock, self._log_limit = database, events, clock, log_limit

    def routes(self) -> list[Route]:
        base = "/api/v2/workspaceagents/me/"
        return [
            Route(
                method="PATCH",
                path=base + "logs",
                handler=self.patch_logs,
                summary="Store log lines",
                auth=Auth.AGENT,
                request=PatchLogs,
                body_limit=MAX_LOGS_BODY,
            ),
            Route(
                method="POST",
                path=base + "log-source",
                handler=self.post_log_source,
                summary="Name a source of log lines",
                auth=Auth.AGENT,
                request=PostLogSource,
                responses={201: LogSource},
            ),
            Route(
                method="GET",
                path=base + "gitsshkey",
                handler=self.get_git_ssh_key,
                summary="The SSH key of the workspace's owner",
                auth=Auth.AGENT,
                responses={200: GitSshKey},
            ),
            Route(
                method="GET",
                path=base + "reinit",
                handler=self.get_reinit,
                summary="Refused: there are no prebuilt workspaces here",
                auth=Auth.AGENT,
                responses={},
            ),
        ]

    async def patch_logs(self, call: Call) -> web.StreamResponse:
        """§2.2."""
        body = await call.body(PatchLogs, nul=True)
        if not body.logs:
            raise ApiError(400, "No logs provided.")
        lines = [log_lines.line(_level(one.level), one.output) for one in body.logs]
        agent, now, source = call.agent.id, self._now(), _uuid(body.log_source_id)
        if source.int == 0:
            try:
                source = await logs.add_external_source(self._database, agent, now)
            except QueryError as error:
                raise ApiError(500, "Failed to create external log source.", reason(error)) from error
        try:
            await logs.append(self._database, agent, source, lines, limit=self._log_limit, now=now)
        except LimitReachedError as error:
            self._events.publish(logs_topic(agent))
            detail = "The agent's logs were over the limit before." if error.marked else ""
            raise ApiError(413, "Logs limit exceeded", detail) from error
        except (QueryError, LookupError) as error:
            raise ApiError(500, "Failed to upload logs", reason(error)) from error
        self._events.publish(logs_topic(agent))
        return reply()

    async def post_log_source(self, call: Call) -> web.StreamResponse:
        """§2.3: what exists already stays, and the answer is as if it were new."""
        body = await call.body(PostLogSource)
        agent, source, now = call.agent.id, _uuid(body.id), self._now()
        await logs.add_source(self._database, agent, source, body.display_name, body.icon, now)
        answer = LogSource(agent, source, rfc3339(now), body.display_name, body.icon)
        return reply(answer, 201)

    async def get_git_ssh_key(self, call: Call) -> web.StreamResponse:
        """§2.5. The key is made when it is first asked for."""
        try:
            key = await git_keys.get_or_create(self._database, call.agent.owner_id, self._now())
        except QueryError as error:
            raise ApiError(500, "Internal error fetching git SSH key.", reason(error)) from error
        return reply(GitSshKey(key.public, key.private))

    async def get_reinit(self, _: Call) -> web.StreamResponse:
        """§2.7, §12.3: 409 ends the asking of Go agents for good."""
        raise ApiError(
            409,
            "Workspace is not a prebuilt workspace waiting to be claimed.",
            "This endpoint is only for agents running in prebuilt workspaces.",
        )

    def _now(self) -> int:
        return self._clock.wall() // 1000


def _level(name: str) -> int:
    level = log_lines.LEVELS.get(name or "info")
    if level is None:
        raise ApiError(400, "Invalid log level provided.", f"invalid log level: {quote(name)}")
    return level


def _uuid(text: str | None) -> UUID:
    """Nil when it is left out (§1.4)."""
    if text is None:
        return UUID(int=0)
    try:
        return parse_uuid(text)
    except ValueError as error:
        raise ApiError(400, "Request body must be valid JSON.", str(error)) from error
