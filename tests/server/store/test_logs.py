"""Lines are stored once, in order, and within the agent's limit (agent-api.md §10.4)."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select

from agent.api.proto import agent_pb2 as pb
from agent.server import log_lines
from agent.server.log_lines import LogLine
from agent.server.store import Database, logs
from agent.server.store.logs import LimitReachedError, SpoolPosition
from agent.server.store.schema import Agent, LogSource
from tests.server.store.fixtures import add_agent

SOURCE, SPOOL = uuid4(), uuid4()
LIMIT = 3_000_000


def lines(*texts: str) -> list[LogLine]:
    return [log_lines.line(pb.Log.INFO, text) for text in texts]


def numbered(first: int, count: int) -> list[LogLine]:
    return lines(*(str(number) for number in range(first, first + count)))


async def outputs(database: Database, agent: UUID) -> list[str]:
    return [row.output for row in await logs.read(database, agent, 0, 1_000_000)]


async def length(database: Database, agent: UUID) -> tuple[int, bool]:
    async with database.reading() as session:
        row = await session.execute(select(Agent.logs_length, Agent.logs_overflowed).where(Agent.id == agent))
        return row.one()


async def test_stored_in_order_with_one_time(database: Database) -> None:
    agent, other = await add_agent(database), await add_agent(database)
    texts = ["b", "a", "", "ünï", "x" * 2000, "a\0b"]
    assert await logs.append(database, agent, SOURCE, lines(*texts), limit=LIMIT, now=77) == 6
    await logs.append(database, other, SOURCE, lines("other"), limit=LIMIT, now=78)
    rows = await logs.read(database, agent, 0, 100)
    assert [row.output for row in rows] == ["b", "a", "", "ünï", "x" * 1024, "a❌b"]
    assert {(row.created_at, row.level, row.source_id) for row in rows} == {(77, pb.Log.INFO, SOURCE)}
    assert rows == sorted(rows)
    assert await logs.read(database, agent, rows[3].id, 1) == [rows[4]]
    assert await length(database, agent) == (1 + 1 + 1 + 5 + 2000 + 5, False)  # an empty line counts, too


@pytest.mark.parametrize("first", [0, 1])
async def test_a_spool_sent_again_is_stored_once(database: Database, first: int) -> None:
    agent = await add_agent(database)

    async def send(start: int, count: int, spool: UUID = SPOOL, source: UUID = SOURCE) -> int:
        position = SpoolPosition(spool, start)
        return await logs.append(database, agent, source, numbered(start, count), limit=LIMIT, now=1, spool=position)

    assert await send(first, 10) == 10
    assert await send(first, 10) == 0
    assert await send(first + 5, 10) == 5
    assert await send(first, 3) == 0
    assert await send(first + 20, 2) == 2  # the agent dropped five lines
    expected = [*range(first, first + 15), first + 20, first + 21]
    assert await outputs(database, agent) == [str(number) for number in expected]
    assert (await length(database, agent))[0] == sum(len(str(number)) for number in expected)
    assert await send(first, 1, spool=uuid4()) == 1
    assert await send(first, 1, source=uuid4()) == 1


async def test_batches_sent_at_the_same_time(database: Database) -> None:
    """Two connections of one agent send the same spool: each line comes once, ids ascend."""
    agent = await add_agent(database)
    await asyncio.gather(
        *(
            logs.append(database, agent, SOURCE, numbered(1, 50), limit=LIMIT, now=1, spool=SpoolPosition(SPOOL, 1))
            for _ in range(6)
        )
    )
    assert await outputs(database, agent) == [str(number) for number in range(1, 51)]


async def test_too_large_a_request_marks_the_agent_and_stores_nothing(database: Database) -> None:
    agent = await add_agent(database)
    await logs.append(database, agent, SOURCE, lines("first"), limit=LIMIT, now=1)
    with pytest.raises(LimitReachedError) as reached:
        await logs.append(database, agent, SOURCE, lines("y", "x" * 1048576), limit=LIMIT, now=1)
    assert not reached.value.marked
    assert await outputs(database, agent) == ["first"]
    assert await length(database, agent) == (5, True)
    assert await logs.append(database, agent, SOURCE, lines("rest"), limit=LIMIT, now=1) == 1
    with pytest.raises(LimitReachedError) as reached:
        await logs.append(database, agent, SOURCE, lines("rpc"), limit=LIMIT, now=1, refuse_marked=True)
    assert reached.value.marked
    assert await outputs(database, agent) == ["first", "rest"]


async def test_limit_of_all_lines(database: Database) -> None:
    agent, position = await add_agent(database), SpoolPosition(SPOOL, 1)
    await logs.append(database, agent, SOURCE, lines("x" * 60), limit=100, now=1)
    await logs.append(database, agent, SOURCE, lines("x" * 40), limit=100, now=1)
    with pytest.raises(LimitReachedError):
        await logs.append(database, agent, SOURCE, lines("x"), limit=100, now=1, spool=position)
    assert await logs.append(database, agent, SOURCE, lines("x"), limit=200, now=1, spool=position) == 1


async def test_unknown_agent(database: Database) -> None:
    with pytest.raises(LookupError, match=r"^there is no agent "):
        await logs.append(database, uuid4(), SOURCE, lines("x"), limit=LIMIT, now=1)


async def test_a_cancelled_append_stores_all_or_nothing(database: Database) -> None:
    agent = await add_agent(database)
    for delay in range(12):
        position = SpoolPosition(SPOOL, 1)
        task = asyncio.create_task(
            logs.append(database, agent, SOURCE, numbered(1, 200), limit=LIMIT, now=1, spool=position)
        )
        for _ in range(delay * 3):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert len(await outputs(database, agent)) in (0, 200)
    await logs.append(database, agent, SOURCE, numbered(1, 200), limit=LIMIT, now=1, spool=SpoolPosition(SPOOL, 1))
    assert len(await outputs(database, agent)) == 200


async def test_sources(database: Database) -> None:
    agent = await add_agent(database)
    await logs.add_source(database, agent, SOURCE, "n" * 200, "/icon", 1)
    await logs.add_source(database, agent, SOURCE, "other", "/other", 2)
    assert await logs.add_external_source(database, agent, 3) == log_lines.EXTERNAL_SOURCE
    assert await logs.add_external_source(database, agent, 3) == log_lines.EXTERNAL_SOURCE
    assert await logs.source_names(database, agent) == {SOURCE: "n" * 127, log_lines.EXTERNAL_SOURCE: "External"}
    async with database.reading() as session:
        icons = set(await session.scalars(select(LogSource.icon).where(LogSource.agent_id == agent)))
    assert icons == {"/icon", "/emojis/1f310.png"}
