"""The git SSH key of each user (agent-api.md §2.5)."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select

from agent.server.git_keys import SshKeyPair, generate
from agent.server.store.database import Database
from agent.server.store.dialect import insert_or_ignore
from agent.server.store.schema import GitSshKey


async def get_or_create(database: Database, user: UUID, now: int) -> SshKeyPair:
    """The user's key; of two that ask first at the same time, both get the same one."""
    return await _get(database, user) or await _create(database, user, now)


async def _get(database: Database, user: UUID) -> SshKeyPair | None:
    async with database.reading() as session:
        row = await session.get(GitSshKey, user)
    return None if row is None else SshKeyPair(row.public_key, row.private_key)


async def _create(database: Database, user: UUID, now: int) -> SshKeyPair:
    pair = generate()
    values = {"user_id": user, "public_key": pair.public, "private_key": pair.private, "created_at": now}
    async with database.transaction() as session:
        await session.execute(insert_or_ignore(database.dialect, GitSshKey).values(values))
        query = select(GitSshKey.public_key, GitSshKey.private_key).where(GitSshKey.user_id == user)
        public, private = (await session.execute(query)).one()
    return SshKeyPair(public, private)
