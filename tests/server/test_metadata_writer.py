"""Metadata on its way to the database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID, uuid4

import pytest

from agent.server.metadata_writer import PERIOD, MetadataWriter
from agent.server.reports import MetadataValue
from agent.server.store import Database, QueryError, metadata
from agent.server.store.metadata import MetadataRow
from agent.server.store.schema import Metadata
from agent.testing import ManualClock, settle
from tests.server.store.fixtures import add_agent


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[list[MetadataRow]]:
    batches: list[list[MetadataRow]] = []

    async def write(_: object, rows: Sequence[MetadataRow]) -> None:
        batches.append(list(rows))

    monkeypatch.setattr(metadata, "write", write)
    return batches


async def test_the_newest_values_of_all_agents_in_one_batch(
    clock: ManualClock, written: list[list[MetadataRow]]
) -> None:
    told: list[UUID] = []
    writer = MetadataWriter(None, clock, told.append)  # type: ignore[arg-type]
    running = asyncio.create_task(writer.run())
    agents = [uuid4() for _ in range(3)]
    for value in ("old", "new"):
        for agent in agents:
            writer.put(agent, [MetadataValue("cpu", value, "")])
    await clock.advance(PERIOD)
    [batch] = written
    assert [(row.agent, row.value) for row in batch] == [(agent, "new") for agent in agents]
    assert sorted(told) == sorted(agents)
    await clock.advance(10)
    assert len(written) == 1
    writer.put(agents[0], [MetadataValue("cpu", "last", "")])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [row.value for row in written[1]] == ["last"]


async def test_a_database_that_is_away_gets_the_newest_later(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[dict[str, str]] = []
    away = True

    async def write(_: object, rows: Sequence[MetadataRow]) -> None:
        if away:
            raise QueryError("away")
        batches.append({row.key: row.value for row in rows})

    monkeypatch.setattr(metadata, "write", write)
    writer, agent = MetadataWriter(None, clock, lambda _: None), uuid4()  # type: ignore[arg-type]
    running = asyncio.create_task(writer.run())
    writer.put(agent, [MetadataValue("a", "1", ""), MetadataValue("b", "1", "")])
    await clock.advance(5)
    writer.put(agent, [MetadataValue("a", "2", "")])
    await settle()
    away = False
    await clock.advance(15)
    assert batches == [{"a": "2", "b": "1"}]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_what_a_cancelled_transaction_held_is_written_at_the_end(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[str]] = []

    async def write(_: object, rows: Sequence[MetadataRow]) -> None:
        batches.append([row.value for row in rows])
        if len(batches) == 1:
            await asyncio.Event().wait()

    monkeypatch.setattr(metadata, "write", write)
    writer = MetadataWriter(None, clock, lambda _: None)  # type: ignore[arg-type]
    running = asyncio.create_task(writer.run())
    writer.put(uuid4(), [MetadataValue("a", "1", "")])
    await clock.advance(PERIOD)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert batches == [["1"], ["1"]]


async def test_rows_of_several_agents(database: Database) -> None:
    agents = [await add_agent(database) for _ in range(2)]
    async with database.transaction() as session:
        for agent in agents:
            session.add(
                Metadata(agent_id=agent, key="cpu", position=0, display_name="", script="x", interval=1, timeout=1)
            )
    await metadata.write(
        database,
        [MetadataRow(agent, key, str(number), "", 7) for number, agent in enumerate(agents) for key in ("cpu", "nope")],
    )
    async with database.reading() as session:
        for number, agent in enumerate(agents):
            row = await session.get(Metadata, (agent, "cpu"))
            assert row is not None
            assert (row.value, row.collected_at) == (str(number), 7)
