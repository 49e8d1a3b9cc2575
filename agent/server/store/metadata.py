"""Results of metadata items (agent-api.md §11.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, update

from agent.server.store.database import Database
from agent.server.store.schema import Metadata


class MetadataRow(NamedTuple):
    """One result; `collected_at` is in microseconds."""

    agent: UUID
    key: str
    value: str
    error: str
    collected_at: int


async def write(database: Database, rows: Sequence[MetadataRow]) -> None:
    """Rows of items that do not exist change nothing. `rows` must not be empty."""
    statement = (
        update(Metadata.__table__)  # type: ignore[arg-type]
        .where(Metadata.agent_id == bindparam("of_agent"), Metadata.key == bindparam("of_key"))
        .values(value=bindparam("to_value"), error=bindparam("to_error"), collected_at=bindparam("at"))
    )
    parameters = [
        {"of_agent": row.agent, "of_key": row.key, "to_value": row.value, "to_error": row.error, "at": row.collected_at}
        for row in sorted(rows)  # in one order everywhere: replicas must not lock rows crosswise
    ]
    async with database.transaction() as session:
        await (await session.connection()).execute(statement, parameters)
