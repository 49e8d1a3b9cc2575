"""The engine, transactions, and migrations at start."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

from sqlalchemy import Connection, event, func, make_url, select
from sqlalchemy.engine import URL
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
    TimeoutError,
)
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from agent.server.store import migrations

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
BUSY_TIMEOUT = 30.0  # seconds that a SQLite writer waits for another one
MIGRATION_LOCK, EXCLUSIVE_LOCK = 0x776F726B, 0x776F726C  # PostgreSQL's advisory locks are numbers; any of our own do


class DatabaseError(Exception):
    """The database cannot be used; the text says which one and why, without the password."""


def reason(error: BaseException) -> str:
    """What the database itself said, without the statement."""
    return str(getattr(error, "orig", None) or error.__class__.__name__)


def is_outage(error: BaseException | None) -> bool:
    """Whether the database could not do its work (it is away, locked or full), as opposed to a mistake in ours."""
    ours = isinstance(error, IntegrityError | ProgrammingError | DataError | NotSupportedError)
    return isinstance(error, DBAPIError | TimeoutError) and not ours


class Database:
    """One database, open. Use `open_database`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._read = async_sessionmaker(engine, expire_on_commit=False)
        self._write = async_sessionmaker(engine.execution_options(write=True), expire_on_commit=False)
        self._one_writer = asyncio.Lock() if self.dialect == "sqlite" else None

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.engine.dialect.name

    @asynccontextmanager
    async def transaction(self, *, exclusive: bool = False) -> AsyncIterator[AsyncSession]:
        """A session whose work is committed at the end of the body, or rolled back when the body raises. Of `exclusive`
        ones there is one at a time, for what may happen only once in all replicas. Who is cancelled during the commit
        has committed all the same.

        SQLite has one writer at a time. They wait here in the order they came, because its own waiting is polling, and
        they take its lock at once, because a transaction that began by reading may be refused the lock later.
        """
        async with self._one_writer or nullcontext(), self._write() as session:
            await _begin(session)
            if exclusive and self.dialect == "postgresql":
                await session.execute(select(func.pg_advisory_xact_lock(EXCLUSIVE_LOCK)))
            yield session
            await _completed(session.commit())

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A session that only reads: it sees one state of the database and never waits for a writer."""
        async with self._read() as session:
            await _begin(session)
            yield session

    def connect_arguments(self) -> dict[str, Any]:
        """What the driver's own `connect` wants, for a connection outside the pool."""
        _, arguments = self.engine.dialect.create_connect_args(self.engine.url)
        return dict(arguments)

    async def aclose(self) -> None:
        await self.engine.dispose()


async def _begin(session: AsyncSession) -> None:
    """Raises `SQLAlchemyError`, also in place of what asyncpg raises when it cannot connect."""
    try:
        await _completed(session.connection())
    except OSError as error:
        raise OperationalError(None, None, error) from error


async def _completed(step: Coroutine[Any, Any, object]) -> None:
    """The step runs to its end, and a caller that is cancelled meanwhile waits for that."""
    task = asyncio.create_task(step)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):  # once more
                await asyncio.wait({task})
        raise


def parse_url(text: str) -> URL:
    """The database's address with our drivers filled in. Raises `DatabaseError`."""
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise DatabaseError(
            "the database must be given like sqlite:///path/to/file or postgresql://user:password@host/name"
        ) from error
    driver = DRIVERS.get(url.drivername, url.drivername)
    if driver not in DRIVERS.values():
        raise DatabaseError(f"database {url.drivername!r} is not supported: use sqlite or postgresql")
    return url.set(drivername=driver)


def make_engine(url: URL) -> AsyncEngine:
    """An engine with the settings that this program relies on. Values, which may be secrets, are in no error's text."""
    if url.get_backend_name() == "postgresql":
        return create_async_engine(
            url, hide_parameters=True, pool_size=10, max_overflow=10, pool_timeout=30, pool_pre_ping=True
        )
    if url.database and url.database != ":memory:":
        with suppress(OSError):  # SQLite will say what is wrong
            # Only for us: SSH keys and secrets are in it. SQLite gives its other files the same mode.
            os.close(os.open(url.database, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    connect = {"timeout": BUSY_TIMEOUT}
    engine = create_async_engine(url, hide_parameters=True, connect_args=connect, pool_size=5, max_overflow=5)

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late; ours is below
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "invalidate")
    def roll_back(connection: Any, _record: Any, _error: BaseException | None) -> None:
        """A task was cancelled while a statement ran, and its connection will be closed. That alone does not end the
        transaction, and so keeps everybody from writing, for as long as some traceback still refers to a cursor."""
        with suppress(sqlite3.Error, asyncio.CancelledError):  # in any case it is closed, and the task is cancelled
            connection.rollback()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("write") else "BEGIN")

    return engine


async def open_database(text: str) -> Database:
    """The database at this address, with its tables as this version wants them.

    Raises `DatabaseError` when it cannot be reached, or belongs to a newer version of this program.
    """
    from alembic.util import CommandError

    url = parse_url(text)
    shown = url.render_as_string(hide_password=True)
    # Both look at files.
    scripts = await asyncio.to_thread(migrations.load)
    engine = await asyncio.to_thread(make_engine, url)
    try:
        async with engine.execution_options(write=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                await connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            await connection.run_sync(migrations.upgrade, scripts)
    except BaseException as error:
        await engine.dispose()
        if isinstance(error, CommandError):
            raise DatabaseError(f"{shown} was made by another version of this program: {error}") from error
        if isinstance(error, OSError | SQLAlchemyError):
            raise DatabaseError(f"cannot open the database {shown}: {getattr(error, 'orig', error)}") from error
        raise
    return Database(engine)
