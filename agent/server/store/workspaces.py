"""Workspaces and their builds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import delete, exists, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from agent.server.store.agents import is_latest_build
from agent.server.store.schema import (
    Agent,
    AgentStats,
    App,
    Build,
    Connection,
    LogSource,
    Metadata,
    ResourceDatapoint,
    ResourceMonitor,
    Script,
    ScriptTiming,
    Workspace,
)
from agent.server.store.users import TakenError

GONE_STATES = ("off", "shutdown_timeout", "shutdown_error")


class NewAgent(NamedTuple):
    """What a start build makes: `definition` as plain values, and its rows without keys of their own."""

    token_hash: bytes
    name: str
    instance_id: str
    definition: dict[str, Any]
    scripts: Sequence[Mapping[str, Any]]
    apps: Sequence[Mapping[str, Any]]
    metadata: Sequence[Mapping[str, Any]]
    monitors: Sequence[Mapping[str, Any]]


async def by_id(session: AsyncSession, workspace_id: UUID) -> Workspace | None:
    """Also a deleted one."""
    return await session.get(Workspace, workspace_id)


async def create(session: AsyncSession, owner_id: UUID, name: str, now: int) -> Workspace:
    """Raises `TakenError` when the owner has a workspace of that name."""
    name = name.lower()
    taken = exists().where(Workspace.owner_id == owner_id, Workspace.name == name, ~Workspace.deleted)
    if await session.scalar(select(taken)):
        raise TakenError("name")
    workspace = Workspace(id=uuid4(), owner_id=owner_id, name=name, deleted=False, created_at=now, updated_at=now)
    session.add(workspace)
    try:
        await session.flush()
    except IntegrityError as error:  # somebody was faster
        raise TakenError("name") from error
    return workspace


async def mark_deleted(session: AsyncSession, workspace_id: UUID, now: int) -> None:
    await session.execute(update(Workspace).where(Workspace.id == workspace_id).values(deleted=True, updated_at=now))


async def note_use(session: AsyncSession, workspace_id: UUID, now: int) -> None:
    """Somebody uses the workspace; the time when it was last changed tells that as well."""
    await session.execute(update(Workspace).where(Workspace.id == workspace_id).values(updated_at=now))


async def last_sessions(session: AsyncSession, agent_ids: Sequence[UUID]) -> dict[UUID, int]:
    """When the last session of each agent began or ended; agents without any are missing."""
    began, ended = func.max(Connection.connected_at), func.max(Connection.disconnected_at)
    query = select(Connection.agent_id, began, ended).where(Connection.agent_id.in_(agent_ids))
    found = await session.execute(query.group_by(Connection.agent_id))
    return {agent: max(start or 0, end or 0) for agent, start, end in found}


# Builds


async def builds(session: AsyncSession, workspace_id: UUID) -> Sequence[Build]:
    """Newest first."""
    query = select(Build).where(Build.workspace_id == workspace_id).order_by(Build.number.desc())
    return (await session.scalars(query)).all()


async def latest_build(session: AsyncSession, workspace_id: UUID) -> Build:
    """The one that counts; every workspace has at least one."""
    query = select(Build).where(Build.workspace_id == workspace_id).order_by(Build.number.desc()).limit(1)
    return (await session.scalars(query)).one()


async def latest_builds(session: AsyncSession, workspace_ids: Sequence[UUID]) -> dict[UUID, Build]:
    """The same for many workspaces."""
    query = select(Build).where(Build.workspace_id.in_(workspace_ids), is_latest_build())
    return {build.workspace_id: build for build in await session.scalars(query)}


async def add_build(session: AsyncSession, workspace_id: UUID, transition: str, status: str, now: int) -> Build:
    """The next build. Raises `TakenError` when somebody else adds one at the same time."""
    number = await session.scalar(select(func.max(Build.number)).where(Build.workspace_id == workspace_id)) or 0
    build = Build(
        id=uuid4(),
        workspace_id=workspace_id,
        number=number + 1,
        transition=transition,
        status=status,
        created_at=now,
        updated_at=now,
        completed_at=now if status == "succeeded" else None,
    )
    session.add(build)
    try:
        await session.flush()
    except IntegrityError as error:
        raise TakenError("number") from error
    return build


async def finish_build(session: AsyncSession, build_id: UUID, status: str, error: str, now: int) -> bool:
    """Whether this call ended the build; a build ends once."""
    ended = await session.execute(
        update(Build)
        .where(Build.id == build_id, Build.status.in_(("pending", "running")))
        .values(status=status, error=error, updated_at=now, completed_at=now)
        .returning(Build.id)
    )
    return ended.first() is not None


async def add_agent(session: AsyncSession, build_id: UUID, new: NewAgent, now: int) -> Agent:
    """The agent of a start build with all that belongs to it."""
    agent = Agent(
        id=uuid4(),
        build_id=build_id,
        resource_id=uuid4(),
        name=new.name,
        token_hash=new.token_hash,
        instance_id=new.instance_id,
        definition=new.definition,
        created_at=now,
        updated_at=now,
    )
    session.add(agent)
    await session.flush()
    for position, values in enumerate(new.scripts):
        script = Script(id=uuid4(), agent_id=agent.id, log_source_id=uuid4(), position=position)
        source = LogSource(agent_id=agent.id, id=script.log_source_id, created_at=now)
        source.display_name, source.icon = values["display_name"], values["icon"]
        for name, value in values.items():
            if name != "icon":
                setattr(script, name, value)
        session.add_all((script, source))
    session.add_all(
        App(id=uuid4(), agent_id=agent.id, position=position, **values) for position, values in enumerate(new.apps)
    )
    session.add_all(
        Metadata(agent_id=agent.id, position=position, **values) for position, values in enumerate(new.metadata)
    )
    session.add_all(ResourceMonitor(agent_id=agent.id, **values) for values in new.monitors)
    await session.flush()
    return agent


async def replace_token(session: AsyncSession, agent_id: UUID, token_hash: bytes, now: int) -> None:
    """Both tokens that the agent may have are refused from now on; its instance gets another one."""
    values = {"token_hash": token_hash, "identity_token_hash": None, "updated_at": now}
    await session.execute(update(Agent).where(Agent.id == agent_id).values(**values))


async def stops_that_are_over(session: AsyncSession, started_before: int) -> Sequence[Build]:
    """Stop builds whose agent is gone: it reported so and disconnected, or never connected; or which began too long
    ago."""
    started = aliased(Build)
    still_there = exists().where(
        started.workspace_id == Build.workspace_id,
        started.number == Build.number - 1,
        Agent.build_id == started.id,
        Agent.first_connected_at.is_not(None),
        or_(
            Agent.lifecycle_state.not_in(GONE_STATES),
            Agent.disconnected_at.is_(None),
            Agent.disconnected_at < Agent.last_connected_at,
        ),
    )
    query = select(Build).where(
        Build.transition == "stop",
        Build.status.in_(("pending", "running")),
        or_(~still_there, Build.created_at < started_before),
    )
    return (await session.scalars(query)).all()


# Room


async def purge(session: AsyncSession, before: int) -> None:
    """Forget workspaces that were deleted, and measurements that were made, before that time."""
    await session.execute(delete(Workspace).where(Workspace.deleted, Workspace.updated_at < before))
    await session.execute(delete(AgentStats).where(AgentStats.created_at < before))
    await session.execute(delete(ResourceDatapoint).where(ResourceDatapoint.collected_at < before))
    await session.execute(delete(Connection).where(Connection.disconnected_at < before))
    newer = aliased(ScriptTiming)  # the last run of each script stays: it is shown
    is_old = exists().where(newer.script_id == ScriptTiming.script_id, newer.id > ScriptTiming.id)
    await session.execute(delete(ScriptTiming).where(ScriptTiming.ended_at < before, is_old))
