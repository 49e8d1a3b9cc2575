"""The database: the one room that knows SQLAlchemy. One module of functions per subject, each taking the session.

async with database.transaction() as session:
    await users.create(session, ...)
"""

from __future__ import annotations

from sqlalchemy.exc import SQLAlchemyError as QueryError
from sqlalchemy.ext.asyncio import AsyncSession as Session

from agent.server.store.database import Database, DatabaseError, is_outage, open_database, reason

__all__ = ["Database", "DatabaseError", "QueryError", "Session", "is_outage", "open_database", "reason"]
