"""Log lines and their sources (agent-api.md §10.4, §10.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from agent.server.log_lines import EXTERNAL_ICON, EXTERNAL_NAME, EXTERNAL_SOURCE, MAX_REQUEST, LogLine
from agent.server.store.agents import is_latest_build
from agent.server.store.database import Database
from agent.server.store.dialect import insert, insert_or_ignore
from agent.server.store.schema import Agent, Build, Log, LogSource, LogSpool, Workspace

MAX_SOURCE_NAME, MAX_ICON = 127, 4096  # characters that are stored


@dataclass(frozen=True, slots=True)
class SpoolPosition:
    """Where a batch lies in the sender's spool: `first` is the number of its first line (agent.proto, extension)."""

    spool: UUID
    first: int


class LogRow(NamedTuple):
    """One stored line; `level` is a number of `pb.Log.Level`, `created_at` is in microseconds."""

    id: int
    created_at: int
    level: int
    source_id: UUID
    output: str


class LimitReachedError(Exception):
    """Nothing was stored: the agent may store no more. `marked` tells that it was marked before this request."""

    def __init__(self, *, marked: bool) -> None:
        super().__init__("the agent's log limit is reached")
        self.marked = marked


async def append(
    database: Database,
    agent: UUID,
    source: UUID,
    lines: Sequence[LogLine],
    *,
    limit: int,
    now: int,
    spool: SpoolPosition | None = None,
    refuse_marked: bool = False,
) -> int:
    """Store the lines that are not stored yet, in their order, all at time `now`; how many those were.

    `limit` is in bytes of output per agent. An agent that once reached it may go on with what fits, unless
    `refuse_marked` (§10.4: over RPC it may not, over REST it may).
    Raises `LimitReachedError`, and `LookupError` for an unknown agent.
    """
    async with database.transaction() as session:
        # The lock on the agent's row makes its ids visible in ascending order on PostgreSQL too: readers go on by id.
        columns = select(Agent.logs_length, Agent.logs_overflowed).where(Agent.id == agent).with_for_update()
        found = (await session.execute(columns)).one_or_none()
        if found is None:
            raise LookupError(f"there is no agent {agent}")
        length, marked = found
        if spool is not None:
            known = await _next_sequence(session, agent, source, spool.spool)
            lines = lines[max(known - spool.first, 0) :]
        size = sum(line.size for line in lines)
        fits = not (refuse_marked and marked) and size <= MAX_REQUEST and length + size <= limit
        if not fits:
            await session.execute(update(Agent).where(Agent.id == agent).values(logs_overflowed=True))
        elif lines:
            await session.execute(update(Agent).where(Agent.id == agent).values(logs_length=length + size))
            await _insert(session, agent, source, lines, now)
            if spool is not None:
                after = max(known, spool.first) + len(lines)
                await _note_spool(session, database.dialect, agent, source, spool.spool, after, now)
    if not fits:
        raise LimitReachedError(marked=marked)
    return len(lines)


async def _next_sequence(session: AsyncSession, agent: UUID, source: UUID, spool: UUID) -> int:
    key = (LogSpool.agent_id == agent) & (LogSpool.source_id == source) & (LogSpool.spool_id == spool)
    return await session.scalar(select(LogSpool.next_sequence).where(key)) or 0


async def _note_spool(
    session: AsyncSession, dialect: str, agent: UUID, source: UUID, spool: UUID, after: int, now: int
) -> None:
    new = insert(dialect, LogSpool).values(
        agent_id=agent, source_id=source, spool_id=spool, next_sequence=after, updated_at=now
    )
    changes = {"next_sequence": after, "updated_at": now}
    await session.execute(new.on_conflict_do_update(index_elements=["agent_id", "source_id", "spool_id"], set_=changes))


async def _insert(session: AsyncSession, agent: UUID, source: UUID, lines: Sequence[LogLine], now: int) -> None:
    """One prepared statement run over plain tuples: SQLAlchemy's own form costs more than the database does."""
    connection = await session.connection()
    if connection.dialect.name == "postgresql":
        marks, ids = "$1, $2, $3, $4, $5", (agent, source)
    else:
        marks, ids = "?, ?, ?, ?, ?", (agent.bytes, source.bytes)  # type: ignore[assignment]
    await connection.exec_driver_sql(
        f"INSERT INTO {Log.__tablename__} (agent_id, source_id, created_at, level, output) VALUES ({marks})",  # noqa: S608
        [(*ids, now, line.level, line.output) for line in lines],
    )


async def read(database: Database, agent: UUID, after: int, count: int) -> list[LogRow]:
    """Up to `count` lines with an id above `after`, ascending."""
    columns = select(Log.id, Log.created_at, Log.level, Log.source_id, Log.output)
    query = columns.where(Log.agent_id == agent, Log.id > after).order_by(Log.id).limit(count)
    async with database.reading() as session:
        return [LogRow(*row) for row in await session.execute(query)]


async def is_of_latest_build(database: Database, agent: UUID) -> bool:
    """Whether there is no newer build of the agent's workspace, and the workspace still is."""
    query = (
        select(Agent.id)
        .join(Build, Build.id == Agent.build_id)
        .join(Workspace, Workspace.id == Build.workspace_id)
        .where(Agent.id == agent, ~Workspace.deleted, is_latest_build())
    )
    async with database.reading() as session:
        return await session.scalar(query) is not None


async def add_source(database: Database, agent: UUID, source: UUID, name: str, icon: str, now: int) -> None:
    """A source that exists already stays as it is."""
    row = {
        "agent_id": agent,
        "id": source,
        "created_at": now,
        "display_name": name[:MAX_SOURCE_NAME],
        "icon": icon[:MAX_ICON],
    }
    async with database.transaction() as session:
        await session.execute(insert_or_ignore(database.dialect, LogSource).values(row))


async def add_external_source(database: Database, agent: UUID, now: int) -> UUID:
    """The source of lines that name none."""
    await add_source(database, agent, EXTERNAL_SOURCE, EXTERNAL_NAME, EXTERNAL_ICON, now)
    return EXTERNAL_SOURCE


async def source_names(database: Database, agent: UUID) -> dict[UUID, str]:
    """Display names of the agent's sources."""
    async with database.reading() as session:
        rows = await session.execute(select(LogSource.id, LogSource.display_name).where(LogSource.agent_id == agent))
        return dict(rows.all())
