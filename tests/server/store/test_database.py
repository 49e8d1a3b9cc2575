"""Opening a database, its migrations, and transactions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError

from agent.server.store import Database, DatabaseError, QueryError, is_outage, open_database, reason
from agent.server.store.database import parse_url
from agent.server.store.schema import Base, Log, Setting, User
from tests.server.postgres import Postgres, running


async def test_models_and_migrations_agree(database: Database) -> None:
    async with database.engine.begin() as connection:
        difference = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), Base.metadata)
        )
    assert difference == []


async def test_it_opens_again(database_url: str) -> None:
    for _ in range(2):
        database = await open_database(database_url)
        async with database.reading() as session:
            assert (await session.scalars(select(User))).all() == []
        await database.aclose()


async def test_nobody_else_may_read_the_files(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    database = await open_database(f"sqlite:///{tmp_path}/s.db")
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == dict.fromkeys(
        ("s.db", "s.db-wal", "s.db-shm"), 0o600
    )
    await database.aclose()


async def test_replicas_may_start_together(database_url: str) -> None:
    databases = await asyncio.gather(*(open_database(database_url) for _ in range(3)))
    for database in databases:
        await database.aclose()


async def test_a_database_of_a_newer_version_is_refused(database: Database, database_url: str) -> None:
    async with database.transaction() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseError, match=r"made by another version.*9999"):
        await open_database(database_url)


async def test_no_error_tells_the_values(database: Database) -> None:
    async def write() -> None:
        async with database.transaction() as session:
            await session.execute(insert(Setting).values(key="a", value={"token": "hush"}))

    await write()
    with pytest.raises(IntegrityError) as caught:
        await write()
    assert "hush" not in str(caught.value)
    assert "INSERT" not in reason(caught.value)
    assert not is_outage(caught.value)


async def test_a_raising_body_is_rolled_back(database: Database) -> None:
    async def fail() -> None:
        async with database.transaction() as session:
            session.add(Setting(key="a", value={}))
            await session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with database.reading() as session:
        assert (await session.scalars(select(Setting))).all() == []


async def test_many_writers_and_readers_get_along(database: Database) -> None:
    async with database.transaction() as session:
        session.add(Setting(key="n", value={"n": 0}))

    async def add() -> None:
        async with database.transaction() as session:
            row = await session.get_one(Setting, "n", with_for_update=True)
            assert isinstance(row.value, dict)
            row.value = {"n": row.value["n"] + 1}  # type: ignore[operator] # JSON

    async def look() -> None:
        async with database.reading() as session:
            await session.get_one(Setting, "n")

    await asyncio.gather(*(work() for _ in range(20) for work in (add, look)))
    async with database.reading() as session:
        assert (await session.get_one(Setting, "n")).value == {"n": 20}


async def test_a_cancelled_transaction_frees_the_writer(database: Database) -> None:
    entered = asyncio.Event()

    async def hang() -> None:
        async with database.transaction() as session:
            session.add(Setting(key="a", value={}))
            await session.flush()
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hang())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.transaction() as session:
        assert await session.get(Setting, "a") is None


async def test_no_moment_of_a_cancellation_keeps_others_from_writing(database: Database) -> None:
    async def write(key: str) -> None:
        async with database.transaction() as session:
            await session.execute(insert(Setting).values(key=key, value={}))
            await session.execute(text("SELECT 1"))

    kept = []  # their tracebacks refer to what the statements used
    for steps in range(80):
        kept.append(task := asyncio.create_task(write(f"cancelled {steps}")))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        async with asyncio.timeout(5):
            await write(f"free {steps}")
    async with database.reading() as session:
        stored = set(await session.scalars(select(Setting.key)))
    assert {f"free {steps}" for steps in range(80)} <= stored
    for steps, task in enumerate(kept):
        assert task.cancelled() or f"cancelled {steps}" in stored


async def test_foreign_keys_hold(database: Database) -> None:
    row = {"agent_id": uuid4(), "source_id": uuid4(), "created_at": 0, "level": 3, "output": "x"}
    with pytest.raises(IntegrityError):
        async with database.transaction() as session:
            await session.execute(insert(Log), [row])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "must be given like sqlite:///"),
        ("mysql://root@localhost/x", "'mysql' is not supported"),
        ("sqlite:////nonexistent/folder/x.db", "unable to open database file"),
        (
            "postgresql://u:secret@127.0.0.1:1/x",
            r"cannot open the database postgresql\+asyncpg://u:\*\*\*@127.0.0.1:1/x",
        ),
    ],
)
async def test_an_address_that_does_not_work(url: str, message: str) -> None:
    with pytest.raises(DatabaseError, match=message) as caught:
        await open_database(url)
    assert "secret" not in str(caught.value)


def test_schemes_without_a_driver_get_ours(tmp_path: Path) -> None:
    assert parse_url("postgres://u@h/n").drivername == "postgresql+asyncpg"
    assert parse_url(f"sqlite:///{tmp_path}/x").drivername == "sqlite+aiosqlite"


async def test_a_postgresql_database_that_went_away() -> None:
    with running() as postgres:
        database = await open_database(postgres.new_database())
    try:
        for begin in (database.reading, database.transaction):
            with pytest.raises(QueryError, match="Connect call failed") as caught:
                async with begin():
                    pass
            assert is_outage(caught.value)
    finally:
        await database.aclose()


async def test_a_postgresql_database_that_is_not_there(postgres: Postgres) -> None:
    with pytest.raises(DatabaseError, match=r"cannot open the database .*: .*does not exist"):
        await open_database(postgres.new_database() + "x")
