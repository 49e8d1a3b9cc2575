"""Which agents are bound to a cloud instance, and what its proof was good for (agent-api.md §5.6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from agent.server.store.agents import is_current
from agent.server.store.schema import Agent, Build, Workspace

MOST = 1000
"""Agents of one instance that are looked at, the newest ones."""


@dataclass(frozen=True, slots=True)
class Bound:
    """An agent of a workspace that is not deleted. `current`: it may connect (§1.3)."""

    agent: Agent
    workspace: Workspace
    current: bool


async def bound_to(session: AsyncSession, instance_id: str) -> Sequence[Bound]:
    """The agents with this instance id, newest first. No agent is bound to the empty id."""
    if not instance_id:
        return []
    query = (
        select(Agent, Workspace, is_current())
        .join(Build, Build.id == Agent.build_id)
        .join(Workspace, Workspace.id == Build.workspace_id)
        .where(Agent.instance_id == instance_id, ~Workspace.deleted)
        .order_by(Agent.created_at.desc())
        .limit(MOST)
    )
    return [Bound(agent, workspace, current) for agent, workspace, current in await session.execute(query)]


async def note(session: AsyncSession, agent: Agent, token_hash: bytes, cloud: str, now: int) -> None:
    """From now on the agent's instance may come with this token, unless the agent was given a new one in the meantime.
    `now` in microseconds."""
    values = {"identity_token_hash": token_hash, "identity_cloud": cloud, "identity_verified_at": now}
    unchanged = (Agent.id == agent.id, Agent.token_hash == agent.token_hash)
    await session.execute(update(Agent).where(*unchanged).values(**values))
