"""Managing agents: our own endpoints `/api/v2/agents`, and `workspaceagents/{id}` (agent-api.md §3.1)."""

from __future__ import annotations

import asyncio
from typing import Literal
from uuid import UUID, uuid4

import msgspec
from aiohttp import web

from agent.clock import Clock
from agent.server.api import models
from agent.server.auth import UserPrincipal, hash_agent_token
from agent.server.coordinator import Coordinator
from agent.server.definition import AgentDefinition, DefinitionError, read_definition, warnings
from agent.server.derp_map import DerpMaps
from agent.server.errors import ApiError, Validation, forbidden, hidden
from agent.server.events import Events, agent_topic, owner_topic, workspace_topic
from agent.server.http import Call, no_content, reply
from agent.server.manifest import definition_of, new_agent
from agent.server.routes import EMPTY, Auth, Query, Route, Text
from agent.server.store import Database, Session, agents, identities, users, workspaces
from agent.server.store.agents import AgentRow
from agent.server.store.schema import Build
from agent.server.store.users import TakenError
from agent.server.wire import Body, parse_uuid

DEFINITION_LIMIT = 2 * 1024 * 1024
UNUSABLE = "The definition cannot be used."
AGENT_HIDDEN = "Agent doesn't exist with that id, or you do not have access to it."


class NewBuild(Body):
    """The next build of a workspace. A start build takes the definition of the one before where none is given."""

    required = ("transition",)

    transition: Literal["", "start", "stop", "delete"] = ""
    definition: str = ""


class BuildChange(Body):
    """The end of a build that is still running."""

    required = ("status",)

    status: Literal["", "succeeded", "failed"] = ""
    error: str = ""


class Agents:
    """Handlers; a member sees own agents only, an owner all."""

    def __init__(
        self, database: Database, events: Events, clock: Clock, coordinator: Coordinator, derp_maps: DerpMaps
    ) -> None:
        self._database, self._events, self._clock = database, events, clock
        self._coordinator, self._derp_maps = coordinator, derp_maps

    def routes(self) -> list[Route]:
        path = "/api/v2/agents/{agent}"
        return [
            Route(
                method="GET",
                path="/api/v2/agents",
                handler=self.list,
                summary="Agents of the newest start build of every workspace",
                responses={200: models.AgentList},
            ),
            Route(
                method="POST",
                path="/api/v2/agents",
                handler=self.create,
                summary="Create a workspace with an agent from a definition in YAML or JSON",
                query=[Query("instance_id", "The cloud instance whose agent it is, in place of the definition's")],
                request=Text("application/yaml"),
                responses={201: models.NewAgentAnswer},
                body_limit=DEFINITION_LIMIT,
            ),
            Route(
                method="GET",
                path=path,
                handler=self.show,
                summary="One agent, by the name of its workspace or by id",
                responses={200: models.AgentSummary},
            ),
            Route(
                method="DELETE",
                path=path,
                handler=self.delete,
                summary="Delete the workspace; its agent is refused from now on",
                responses={204: EMPTY},
            ),
            Route(
                method="POST",
                path=path + "/token",
                handler=self.new_token,
                summary="Give the agent a new token; the old one is refused from now on",
                responses={201: models.NewToken},
            ),
            Route(
                method="GET",
                path=path + "/builds",
                handler=self.builds,
                summary="Builds of the agent's workspace, newest first",
                responses={200: models.BuildList},
            ),
            Route(
                method="POST",
                path=path + "/builds",
                handler=self.build,
                summary="Start, stop or delete the workspace; a start makes a new agent with a new token",
                request=NewBuild,
                responses={201: (models.NewAgentAnswer, models.BuildSummary)},
                body_limit=DEFINITION_LIMIT,
            ),
            Route(
                method="PATCH",
                path=path + "/builds/{number}",
                handler=self.finish_build,
                summary="End a build that is still running",
                request=BuildChange,
                responses={200: models.BuildSummary},
            ),
            Route(
                method="GET",
                path="/api/v2/workspaceagents/{workspaceagent}",
                handler=self.workspace_agent,
                summary="One agent with its scripts, apps and log sources",
                auth=Auth.USER_OR_PROXY,
                responses={200: models.WorkspaceAgent},
            ),
        ]

    async def list(self, call: Call) -> web.Response:
        async with self._database.reading() as session:
            rows = await agents.newest(session, None if call.user.is_owner else call.user.id)
            latest = await workspaces.latest_builds(session, [row.workspace.id for row in rows])
        now = self._now()
        return reply(models.AgentList(agents=[models.summary(row, latest[row.workspace.id], now) for row in rows]))

    async def create(self, call: Call) -> web.Response:
        definition, odd = await _read(await call.read())
        if instance_id := call.query.get("instance_id", ""):
            definition = _bind(definition, instance_id)
        token, now = uuid4(), self._now()
        async with self._database.transaction() as session:
            owner_id = await _owner(session, call.user, definition.owner)
            _may_bind(call.user, definition.instance_id, bound_to="")
            try:
                workspace = await workspaces.create(session, owner_id, definition.name, now)
            except TakenError as error:
                raise ApiError(
                    409,
                    f'There is an agent "{definition.name.lower()}" already.',
                    validations=[Validation("name", "This value is already in use and should be unique.")],
                ) from error
            row = await _start(session, workspace.id, definition, token, now)
        self._events.publish(workspace_topic(workspace.id))
        self._events.publish(owner_topic(owner_id))
        return reply(models.new_agent_answer(row, row.build, now, token, odd), 201)

    async def show(self, call: Call) -> web.Response:
        async with self._database.reading() as session:
            row = await find_agent(session, call)
            latest = await workspaces.latest_build(session, row.workspace.id)
        return reply(models.summary(row, latest, self._now()))

    async def delete(self, call: Call) -> web.Response:
        async with self._database.transaction(exclusive=True) as session:
            row = await find_agent(session, call)
            await self._delete(session, row)
        self._changed(row)
        return no_content()

    async def new_token(self, call: Call) -> web.Response:
        token = uuid4()
        async with self._database.transaction() as session:
            row = await find_agent(session, call)
            await workspaces.replace_token(session, row.agent.id, hash_agent_token(token), self._now())
        return reply(models.NewToken(token=str(token)), 201)

    async def builds(self, call: Call) -> web.Response:
        async with self._database.reading() as session:
            row = await find_agent(session, call)
            found = await workspaces.builds(session, row.workspace.id)
        return reply(models.BuildList(builds=[models.build_summary(build) for build in found]))

    async def build(self, call: Call) -> web.Response:
        asked = await call.body(NewBuild)
        given, odd = await _read(asked.definition.encode()) if asked.definition else (None, [])
        now = self._now()
        answer: models.NewAgentAnswer | models.BuildSummary
        async with self._database.transaction(exclusive=True) as session:  # builds are numbered one after another
            row = await find_agent(session, call)
            match asked.transition:
                case "start":
                    definition = given or definition_of(row.agent.definition)
                    if definition.name.lower() != row.workspace.name:
                        raise ApiError(400, f'The definition is of "{definition.name}", not of "{row.workspace.name}".')
                    _may_bind(call.user, definition.instance_id, bound_to=row.agent.instance_id)
                    token = uuid4()
                    latest = await workspaces.latest_build(session, row.workspace.id)
                    await workspaces.finish_build(session, latest.id, "failed", "superseded by a start build", now)
                    new = await _start(session, row.workspace.id, definition, token, now)
                    answer = models.new_agent_answer(new, new.build, now, token, odd)
                case "stop":
                    answer = models.build_summary(
                        await workspaces.add_build(session, row.workspace.id, "stop", "running", now)
                    )
                case _:
                    answer = models.build_summary(await self._delete(session, row))
        self._changed(row)
        return reply(answer, 201)

    async def finish_build(self, call: Call) -> web.Response:
        change = await call.body(BuildChange)
        number = call.path("number")
        async with self._database.transaction() as session:
            row = await find_agent(session, call)
            found = await workspaces.builds(session, row.workspace.id)
            build = next((build for build in found if str(build.number) == number), None)
            if build is None:
                raise hidden()
            if not await workspaces.finish_build(session, build.id, change.status, change.error, self._now()):
                raise ApiError(409, f"Build {number} has ended already: it {build.status}.")
            await session.refresh(build)
        self._changed(row)
        return reply(models.build_summary(build))

    async def workspace_agent(self, call: Call) -> web.Response:
        async with self._database.reading() as session:
            row = await visible_agent(session, call.user, call.uuid("workspaceagent"))
            return reply(await self.describe(session, row))

    async def describe(self, session: Session, row: AgentRow) -> models.WorkspaceAgent:
        """All that people may see of an agent."""
        agent_id = row.agent.id
        scripts = await agents.scripts(session, agent_id)
        timings = await agents.last_timings(session, agent_id)
        apps = await agents.apps(session, agent_id)
        sources = await agents.log_sources(session, agent_id)
        latency = models.latencies(self._coordinator.node(agent_id), self._derp_maps.current)
        return models.workspace_agent(row, scripts, timings, apps, sources, latency, self._now())

    async def _delete(self, session: Session, row: AgentRow) -> Build:
        now = self._now()
        build = await workspaces.add_build(session, row.workspace.id, "delete", "succeeded", now)
        await workspaces.mark_deleted(session, row.workspace.id, now)
        return build

    def _changed(self, row: AgentRow) -> None:
        self._events.publish(workspace_topic(row.workspace.id))
        self._events.publish(agent_topic(row.agent.id))

    def _now(self) -> int:
        return self._clock.wall() // 1000


async def visible_agent(session: Session, user: UserPrincipal, agent_id: UUID) -> AgentRow:
    """The agent, if the user may see it. Raises `ApiError` 404."""
    row = await agents.by_id(session, agent_id)
    if row is None or not (user.is_owner or row.owner.id == user.id):
        raise ApiError(404, AGENT_HIDDEN)
    return row


async def find_agent(session: Session, call: Call) -> AgentRow:
    """By id, or by the name of the workspace: own ones first, then, for an owner, another's if there is only one."""
    text = call.path("agent")
    try:
        agent_id = parse_uuid(text)
    except ValueError:
        named = await agents.newest(session, None if call.user.is_owner else call.user.id, text)
        own = [row for row in named if row.owner.id == call.user.id]
        if len(own or named) > 1:
            owners = ", ".join(row.owner.username for row in named)
            raise ApiError(
                409, f'Several users have an agent "{text}".', f"Name it by its id; it is one of: {owners}."
            ) from None
        if not named:
            raise ApiError(404, f'There is no agent "{text}", or you do not have access to it.') from None
        return (own or named)[0]
    return await visible_agent(session, call.user, agent_id)


async def _owner(session: Session, user: UserPrincipal, name: str) -> UUID:
    if not name or name.lower() == user.username:
        return user.id
    if not user.is_owner:
        raise forbidden()
    owner = await users.by_username(session, name)
    if owner is None:
        raise ApiError(400, UNUSABLE, validations=[Validation("owner", f'There is no user "{name}".')])
    return owner.id


async def _read(text: bytes) -> tuple[AgentDefinition, list[str]]:
    """The definition, and what is odd about it. Raises `ApiError` 400."""

    def read() -> tuple[AgentDefinition, list[str]]:
        definition = read_definition(text.decode())
        return definition, warnings(definition)

    try:
        return await asyncio.to_thread(read)
    except UnicodeDecodeError as error:
        raise ApiError(400, UNUSABLE, f"It is not UTF-8: {error}") from error
    except DefinitionError as error:
        mistakes = [
            Validation(mistake.path or "definition", f"line {mistake.line}: {mistake.text}")
            for mistake in error.mistakes
        ]
        raise ApiError(400, UNUSABLE, validations=mistakes) from error


def _bind(definition: AgentDefinition, instance_id: str) -> AgentDefinition:
    bound = msgspec.structs.replace(definition, instance_id=instance_id)
    for field, text in bound.mistakes():
        raise ApiError(400, UNUSABLE, validations=[Validation(field, text)])
    return bound


def _may_bind(user: UserPrincipal, instance_id: str, *, bound_to: str) -> None:
    """Who binds an agent to an instance decides what runs there when the instance comes: a member could take over
    somebody else's machine. Raises `ApiError` 403."""
    if instance_id not in ("", bound_to) and not user.is_owner:
        raise ApiError(403, "Forbidden.", "Only owners of the server may bind an agent to a cloud instance.")


async def _check_instance(session: Session, workspace_id: UUID, definition: AgentDefinition) -> None:
    """Two live agents of one instance must have different names, or neither could ever be told apart. Raises
    `ApiError` 409."""
    for other in await identities.bound_to(session, definition.instance_id):
        if other.current and other.workspace.id != workspace_id and other.agent.name == definition.agent_name:
            raise ApiError(
                409,
                f'The agent "{definition.agent_name}" of workspace "{other.workspace.name}" is bound to the instance '
                f'"{definition.instance_id}" already.',
                validations=[Validation("agent_name", "Agents of one instance need different names.")],
            )


async def _start(session: Session, workspace_id: UUID, definition: AgentDefinition, token: UUID, now: int) -> AgentRow:
    """A start build, which is done at once: there is nothing to provision here. Raises `ApiError` 409."""
    await _check_instance(session, workspace_id, definition)
    build = await workspaces.add_build(session, workspace_id, "start", "succeeded", now)
    made = await workspaces.add_agent(session, build.id, new_agent(definition, hash_agent_token(token)), now)
    row = await agents.by_id(session, made.id)
    assert row is not None
    return row
