"""Which of an agent's connections decides whether it is connected (agent-api.md §6.7)."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from agent.server.status import presence
from agent.server.store import Database
from agent.server.store.presence import PresenceStore
from agent.server.store.schema import Agent
from tests.server.store.fixtures import add_agent

SECOND = 1_000_000


class Rows:
    """A store whose clock the test sets, in seconds."""

    def __init__(self, database: Database) -> None:
        self.now = 1
        self.store = PresenceStore(database, lambda: self.now * SECOND, lambda _: None)
        self._database = database

    async def status(self, agent: UUID) -> str:
        async with self._database.reading() as session:
            row = await session.get_one(Agent, agent)
        return presence(
            created_at=0,
            first_connected_at=row.first_connected_at,
            last_connected_at=row.last_connected_at,
            disconnected_at=row.disconnected_at,
            connection_timeout=120,
            now=self.now * SECOND,
        ).status


@pytest.fixture
def rows(database: Database) -> Rows:
    return Rows(database)


async def test_an_older_connection_takes_over_when_the_newest_ended(rows: Rows, database: Database) -> None:
    agent, other, older, newest = await add_agent(database), await add_agent(database), uuid4(), uuid4()
    await rows.store.connected(agent, older)
    await rows.store.connected(agent, newest)
    rows.now = 5
    await rows.store.disconnected(agent, newest)
    assert await rows.status(agent) == "disconnected"
    rows.now = 15
    await rows.store.seen([(agent, older), (other, uuid4())])
    assert await rows.status(agent) == "connected"
    rows.now = 20
    await rows.store.disconnected(agent, older)
    assert await rows.status(agent) == "disconnected"


async def test_an_older_connection_does_not_speak_for_the_newest(rows: Rows, database: Database) -> None:
    agent, older, newest = await add_agent(database), uuid4(), uuid4()
    await rows.store.connected(agent, older)
    await rows.store.connected(agent, newest)
    rows.now = 5
    await rows.store.disconnected(agent, older)
    assert await rows.status(agent) == "connected"
    rows.now = 40
    await rows.store.seen([(agent, older)])
    assert await rows.status(agent) == "disconnected"
    await rows.store.seen([(agent, newest)])
    assert await rows.status(agent) == "connected"
