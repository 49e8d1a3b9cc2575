"""Statements that SQLite and PostgreSQL spell alike, but SQLAlchemy keeps per database."""

from __future__ import annotations

from sqlalchemy.dialects import postgresql, sqlite

from agent.server.store.schema import Base


def insert(dialect: str, table: type[Base]) -> sqlite.Insert | postgresql.Insert:
    """An INSERT with the `on_conflict_…` methods of the given database."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def insert_or_ignore(dialect: str, table: type[Base]) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that leaves rows whose key exists as they are."""
    return insert(dialect, table).on_conflict_do_nothing()
