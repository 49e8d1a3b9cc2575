"""Rows that tests of single tables need around them."""

from __future__ import annotations

from uuid import UUID, uuid4

from agent.server.store import Database
from agent.server.store.schema import Agent, Build, User, Workspace


async def add_agent(database: Database) -> UUID:
    """A user with a workspace with one successful build with one agent; the agent's id."""
    user, workspace, build, agent = (uuid4() for _ in range(4))
    times = {"created_at": 1, "updated_at": 1}
    async with database.transaction() as session:
        for row in (
            User(id=user, username=user.hex, email=user.hex, role="member", **times),
            Workspace(id=workspace, owner_id=user, name="w", **times),
            Build(id=build, workspace_id=workspace, number=1, transition="start", status="succeeded", **times),
            Agent(
                id=agent, build_id=build, resource_id=uuid4(), name="a", token_hash=agent.bytes, definition={}, **times
            ),
        ):
            session.add(row)
            await session.flush()
    return agent
