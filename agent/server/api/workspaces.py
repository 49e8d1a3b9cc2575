"""Workspaces for clients of the Coder API, the `coder` command line first of all: an agent is a workspace of one."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import msgspec
from aiohttp import web

from agent.clock import Clock
from agent.server.api import workspace_models as models
from agent.server.api.agents import Agents
from agent.server.api.users import find_user
from agent.server.api.watch import Watch
from agent.server.api.workspace_search import parse
from agent.server.errors import ApiError, Validation, hidden, invalid
from agent.server.events import Events, agent_topic, workspace_topic
from agent.server.http import Call, no_content, reply
from agent.server.longlived import LongLived, event_stream, one_way, upgrade_refusal
from agent.server.routes import EMPTY, Query, Route, Text
from agent.server.store import Database, Session, agents, workspaces
from agent.server.store.agents import AgentRow
from agent.server.store.schema import Build
from agent.server.wire import Body, parse_uuid

APPS = ("vscode", "jetbrains", "reconnecting-pty", "ssh")
NO_AGENT = "00000000-0000-0000-0000-000000000000"


class Usage(Body):
    """Both or none: who uses the workspace, by which of its agents."""

    agent_id: str = ""
    app_name: str = ""


class SshConfig(msgspec.Struct, kw_only=True):
    """How `coder config-ssh` names its hosts."""

    hostname_prefix: str = "coder."
    hostname_suffix: str = "coder"
    ssh_config_options: dict[str, str] = msgspec.field(default_factory=dict)


class Workspaces:
    """Handlers; a member sees own workspaces only, an owner all."""

    def __init__(
        self, database: Database, events: Events, long_lived: LongLived, agents: Agents, watch: Watch, clock: Clock
    ) -> None:
        self._database, self._events, self._long_lived, self._clock = database, events, long_lived, clock
        self._agents, self._watch = agents, watch

    def routes(self) -> list[Route]:
        path = "/api/v2/workspaces/{workspace}"
        deleted = Query("include_deleted", "true: also where it was deleted")
        return [
            Route(
                method="GET",
                path="/api/v2/workspaces",
                handler=self.list,
                summary="Workspaces that match, by owner and name",
                query=(
                    Query("q", "owner:NAME name:PART status:STATUS, or words"),
                    Query("limit", "0: all", "integer"),
                    Query("offset", "How many to skip", "integer"),
                ),
                responses={200: models.WorkspaceList},
            ),
            Route(
                method="GET",
                path="/api/v2/users/{user}/workspace/{workspace}",
                handler=self.by_name,
                summary="A user's workspace by its name",
                query=(deleted,),
                responses={200: models.Workspace},
            ),
            Route(
                method="GET",
                path=path,
                handler=self.show,
                summary="One workspace",
                query=(deleted,),
                responses={200: models.Workspace},
            ),
            Route(
                method="GET",
                path=path + "/watch",
                handler=self.watch,
                summary="The workspace whenever it changes, as server-sent events",
                responses={200: Text("text/event-stream")},
            ),
            Route(
                method="GET",
                path=path + "/watch-ws",
                handler=self.watch_socket,
                summary="The same as messages of a WebSocket",
                responses={101: EMPTY},
                websocket=True,
            ),
            Route(
                method="POST",
                path=path + "/usage",
                handler=self.use,
                summary="Note that the workspace is used",
                request=Usage,
                responses={204: EMPTY},
            ),
            Route(
                method="GET",
                path="/api/v2/templateversions/{version}",
                handler=self.template_version,
                summary="The version of the template of all workspaces",
                responses={200: models.TemplateVersion},
            ),
            Route(
                method="GET",
                path="/api/v2/deployment/ssh",
                handler=self.ssh_config,
                summary="What config-ssh of the coder command line writes",
                responses={200: SshConfig},
            ),
        ]

    async def list(self, call: Call) -> web.Response:
        search = parse(call.query.get("q", ""), call.user.username)
        limit, offset = _number(call, "limit"), _number(call, "offset")
        async with self._database.reading() as session:
            rows = await agents.newest(session, None if call.user.is_owner else call.user.id)
            latest = await workspaces.latest_builds(session, [row.workspace.id for row in rows])
            found = [
                row
                for row in rows
                if search.matches(row.owner.username, row.workspace.name, models.status_of(latest[row.workspace.id]))
            ]
            page = found[offset : offset + limit] if limit else found[offset:]
            described = await self._describe(session, page, latest)
        return reply(models.WorkspaceList(workspaces=[*described], count=len(found)))

    async def by_name(self, call: Call) -> web.Response:
        async with self._database.reading() as session:
            owner = await find_user(session, call)
            rows = await agents.newest(session, owner.id, call.path("workspace"))
            if not rows:
                raise hidden()
            return reply(await self._one(session, rows[0]))

    async def show(self, call: Call) -> web.Response:
        async with self._database.reading() as session:
            row = await _find(session, call, call.uuid("workspace"))
            if row.workspace.deleted and call.query.get("include_deleted") != "true":
                raise ApiError(
                    410,
                    f'Workspace "{row.workspace.id}" was deleted, you can view this workspace by specifying '
                    "'?include_deleted=true' and trying again.",
                )
            return reply(await self._one(session, row))

    async def watch(self, call: Call) -> web.StreamResponse:
        workspace = call.uuid("workspace")
        await self._look(call, workspace)
        async with event_stream(call, self._clock, self._long_lived) as stream:
            await self._watch.tell(call, stream, lambda: self._look(call, workspace), greet=True)
        return stream.response

    async def watch_socket(self, call: Call) -> web.StreamResponse:
        workspace = call.uuid("workspace")
        await self._look(call, workspace)
        refusal = upgrade_refusal(call.request)
        if refusal is not None:
            return refusal
        opened = one_way(call, self._clock, self._long_lived, compress=False, reason="unexpected data message")
        async with opened as socket:
            await self._watch.tell(call, socket, lambda: self._look(call, workspace), greet=True)
        return socket.response

    async def use(self, call: Call) -> web.Response:
        usage = await call.body(Usage) if call.request.can_read_body else Usage()
        agent = _used_agent(usage)
        async with self._database.transaction() as session:
            row = await _find(session, call, call.uuid("workspace"))
            if row.workspace.deleted:
                raise hidden()
            if agent is not None and agent != row.agent.id:
                raise invalid(Validation("agent_id", "is no agent of this workspace"))
            await workspaces.note_use(session, row.workspace.id, self._clock.wall() // 1000)
        self._events.publish(workspace_topic(row.workspace.id))
        return no_content()

    async def template_version(self, call: Call) -> web.Response:
        if call.uuid("version") != models.TEMPLATE_VERSION:
            raise hidden()
        return reply(models.template_version())

    async def ssh_config(self, _call: Call) -> web.Response:
        return reply(SshConfig())

    async def _look(self, call: Call, workspace: UUID) -> tuple[models.Workspace, set[str]]:
        """The state, and what tells of changes of it."""
        async with self._database.reading() as session:
            row = await _find(session, call, workspace)
            return await self._one(session, row), {workspace_topic(workspace), agent_topic(row.agent.id)}

    async def _one(self, session: Session, row: AgentRow) -> models.Workspace:
        latest = {row.workspace.id: await workspaces.latest_build(session, row.workspace.id)}
        return (await self._describe(session, [row], latest))[0]

    async def _describe(
        self, session: Session, rows: Sequence[AgentRow], latest: dict[UUID, Build]
    ) -> Sequence[models.Workspace]:
        used = await workspaces.last_sessions(session, [row.agent.id for row in rows])
        return [
            models.workspace(
                row,
                latest[row.workspace.id],
                await self._agents.describe(session, row),
                max(row.workspace.updated_at, used.get(row.agent.id, 0)),
            )
            for row in rows
        ]


async def _find(session: Session, call: Call, workspace: UUID) -> AgentRow:
    """By id, also a deleted one, with its last agent. Raises `ApiError` 404."""
    row = await agents.of_workspace(session, workspace)
    if row is None or not (call.user.is_owner or row.owner.id == call.user.id):
        raise hidden()
    return row


def _used_agent(usage: Usage) -> UUID | None:
    if usage.agent_id in ("", NO_AGENT) and not usage.app_name:
        return None
    if usage.app_name not in APPS:
        raise invalid(Validation("app_name", f"must be one of {', '.join(APPS)}"))
    try:
        return parse_uuid(usage.agent_id)
    except ValueError as error:
        raise invalid(Validation("agent_id", str(error))) from error


def _number(call: Call, name: str) -> int:
    text = call.query.get(name, "") or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ApiError(
            400, "Query parameters have invalid values.", validations=[Validation(name, "must be a whole number")]
        )
    return int(text)
