"""Databases and servers for the tests of the control plane.

Tests here may open a loopback port, but only through aiohttp's test server; and only `postgres.py` starts a process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster

from agent.server.store import Database, open_database
from tests.server.postgres import Postgres, running


@pytest.fixture(autouse=True)
def libraries_may_look_at_files(no_blocking_calls: BlockBuster) -> None:
    """asyncpg looks for ~/.pgpass and certificates whenever it connects; a traceback in the log shows source lines."""
    for function in no_blocking_calls.functions.values():
        function.can_block_in("asyncpg/connect_utils.py", {"_parse_connect_dsn_and_args"})
        function.can_block_in("structlog/dev.py", {"__call__"})


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database: once on SQLite, once on PostgreSQL where that is installed."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/test.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The same, open, with all tables."""
    database = await open_database(database_url)
    yield database
    await database.aclose()
