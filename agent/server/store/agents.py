"""Agents: who may connect, and what belongs to one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from agent.server.store.schema import (
    Agent,
    App,
    Build,
    ExternalAuthProvider,
    LogSource,
    Metadata,
    Script,
    ScriptTiming,
    User,
    Workspace,
)


@dataclass(frozen=True, slots=True)
class AgentRow:
    """An agent and what it hangs on."""

    agent: Agent
    build: Build
    workspace: Workspace
    owner: User


@cache  # making a condition takes longer than asking the database
def is_latest_build() -> ColumnElement[bool]:
    """Whether the `Build` of a query is its workspace's latest."""
    newer = aliased(Build)
    return ~exists().where(newer.workspace_id == Build.workspace_id, newer.number > Build.number)


@cache
def is_current() -> ColumnElement[bool]:
    """Whether the agent of a joined `Build` and `Workspace` may connect (agent-api.md §1.3).

    It may while its build is the latest; and while the next build, which is the latest, is a stop build that has not
    finished, so that stop scripts can still report.
    """
    latest = aliased(Build)
    stopping = exists().where(
        latest.workspace_id == Build.workspace_id,
        latest.number == Build.number + 1,
        latest.transition == "stop",
        latest.status.in_(("pending", "running")),
    )
    even_newer = aliased(Build)
    next_is_latest = ~exists().where(
        even_newer.workspace_id == Build.workspace_id, even_newer.number > Build.number + 1
    )
    started = and_(Build.transition == "start", Build.status == "succeeded")
    return and_(~Workspace.deleted, or_(is_latest_build(), and_(started, next_is_latest, stopping)))


@cache
def _rows() -> Select[Agent, Build, Workspace, User]:
    return (
        select(Agent, Build, Workspace, User)
        .join(Build, Build.id == Agent.build_id)
        .join(Workspace, Workspace.id == Build.workspace_id)
        .join(User, User.id == Workspace.owner_id)
    )


async def by_token(session: AsyncSession, token_hash: bytes) -> AgentRow | None:
    """The agent with this token, be it the one it was made with or the one its instance got, if it may connect."""
    has_token = or_(Agent.token_hash == token_hash, Agent.identity_token_hash == token_hash)
    row = (await session.execute(_rows().where(has_token, is_current()))).one_or_none()
    return None if row is None else AgentRow(row[0], row[1], row[2], row[3])


async def by_id(session: AsyncSession, agent_id: UUID) -> AgentRow | None:
    """Any agent of a workspace that is not deleted."""
    row = (await session.execute(_rows().where(Agent.id == agent_id, ~Workspace.deleted))).one_or_none()
    return None if row is None else AgentRow(row[0], row[1], row[2], row[3])


async def current_tokens(session: AsyncSession, hashes: Collection[bytes]) -> set[bytes]:
    """Those of the hashed tokens with which an agent may (still) be connected."""
    query = (
        select(Agent.token_hash, Agent.identity_token_hash)
        .join(Build, Build.id == Agent.build_id)
        .join(Workspace, Workspace.id == Build.workspace_id)
        .where(or_(Agent.token_hash.in_(hashes), Agent.identity_token_hash.in_(hashes)), is_current())
    )
    known = {token for row in await session.execute(query) for token in row}
    return known.intersection(hashes)


async def newest(session: AsyncSession, owner_id: UUID | None = None, name: str | None = None) -> Sequence[AgentRow]:
    """The agents of the last start build of each workspace, by owner and name: of all owners where none is given, and
    of workspaces of any name."""
    newer = aliased(Build)
    query = _rows().where(
        ~Workspace.deleted,
        ~exists().where(
            newer.workspace_id == Build.workspace_id, newer.transition == "start", newer.number > Build.number
        ),
    )
    if owner_id is not None:
        query = query.where(Workspace.owner_id == owner_id)
    if name is not None:
        query = query.where(Workspace.name == name.lower())
    rows = await session.execute(query.order_by(User.username, Workspace.name))
    return [AgentRow(row[0], row[1], row[2], row[3]) for row in rows]


async def of_workspace(session: AsyncSession, workspace_id: UUID) -> AgentRow | None:
    """The agent of the workspace's last start build; also of a deleted workspace."""
    query = _rows().where(Workspace.id == workspace_id).order_by(Build.number.desc()).limit(1)
    row = (await session.execute(query)).one_or_none()
    return None if row is None else AgentRow(row[0], row[1], row[2], row[3])


async def scripts(session: AsyncSession, agent_id: UUID) -> Sequence[Script]:
    return (await session.scalars(select(Script).where(Script.agent_id == agent_id).order_by(Script.position))).all()


async def apps(session: AsyncSession, agent_id: UUID) -> Sequence[App]:
    return (await session.scalars(select(App).where(App.agent_id == agent_id).order_by(App.position))).all()


async def metadata(session: AsyncSession, agent_id: UUID) -> Sequence[Metadata]:
    query = select(Metadata).where(Metadata.agent_id == agent_id)
    return (await session.scalars(query.order_by(Metadata.position))).all()


async def count_git_providers(session: AsyncSession) -> int:
    return await session.scalar(select(func.count()).select_from(ExternalAuthProvider)) or 0


async def log_sources(session: AsyncSession, agent_id: UUID) -> Sequence[LogSource]:
    query = select(LogSource).where(LogSource.agent_id == agent_id)
    return (await session.scalars(query.order_by(LogSource.created_at, LogSource.display_name))).all()


async def last_timings(session: AsyncSession, agent_id: UUID) -> dict[UUID, ScriptTiming]:
    """The newest finished run of each script."""
    newest_ids = (
        select(func.max(ScriptTiming.id))
        .join(Script, Script.id == ScriptTiming.script_id)
        .where(Script.agent_id == agent_id)
        .group_by(ScriptTiming.script_id)
    )
    found = await session.scalars(select(ScriptTiming).where(ScriptTiming.id.in_(newest_ids)))
    return {timing.script_id: timing for timing in found}


async def timings(session: AsyncSession, agent_id: UUID, limit: int) -> Sequence[ScriptTiming]:
    """The newest `limit` finished runs of all scripts, oldest first."""
    query = select(ScriptTiming).join(Script, Script.id == ScriptTiming.script_id).where(Script.agent_id == agent_id)
    return (await session.scalars(query.order_by(ScriptTiming.id.desc()).limit(limit))).all()[::-1]
