"""Which agents are connected (agent-api.md §6.7); the database side of `monitor.Presence`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from uuid import UUID

from sqlalchemy import ColumnElement, func, or_, update

from agent.server.store import agents
from agent.server.store.database import Database
from agent.server.store.schema import Agent


class PresenceStore:
    """`now` gives microseconds since 1970; `changed` is called after an agent came or went."""

    def __init__(self, database: Database, now: Callable[[], int], changed: Callable[[UUID], None]) -> None:
        self._database = database
        self._now = now
        self._changed = changed

    async def connected(self, agent: UUID, connection: UUID) -> None:
        now = self._now()
        async with self._database.transaction() as session:
            await session.execute(
                update(Agent)
                .where(Agent.id == agent)
                .values(
                    connection_id=connection,
                    first_connected_at=func.coalesce(Agent.first_connected_at, now),
                    last_connected_at=now,
                    updated_at=now,
                )
            )
        self._changed(agent)

    async def seen(self, connections: Collection[tuple[UUID, UUID]]) -> None:
        if not connections:
            return
        now = self._now()
        async with self._database.transaction() as session:
            await session.execute(
                update(Agent)
                .where(
                    Agent.id.in_([agent for agent, _ in connections]),
                    _owned_by(*(connection for _, connection in connections)),
                )
                .values(last_connected_at=now, updated_at=now)
            )

    async def disconnected(self, agent: UUID, connection: UUID) -> None:
        now = self._now()
        async with self._database.transaction() as session:
            await session.execute(
                update(Agent)
                .where(Agent.id == agent, _owned_by(connection))
                .values(connection_id=None, disconnected_at=now, updated_at=now)
            )
        self._changed(agent)

    async def obsolete(self, tokens: Collection[bytes]) -> set[bytes]:
        if not tokens:
            return set()
        async with self._database.reading() as session:
            return set(tokens) - await agents.current_tokens(session, tokens)


def _owned_by(*connections: UUID) -> ColumnElement[bool]:
    """Once the newest connection of an agent has ended, older ones that are still there may write, too."""
    return or_(Agent.connection_id.in_(connections), Agent.connection_id.is_(None))
