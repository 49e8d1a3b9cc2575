"""Providers of git tokens, and the tokens of users (agent-api.md §2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select

from agent.server.external_auth import Provider
from agent.server.store.database import Database
from agent.server.store.dialect import insert
from agent.server.store.schema import ExternalAuthLink, ExternalAuthProvider


async def providers(database: Database) -> list[Provider]:
    """In the order in which they were first configured."""
    query = select(ExternalAuthProvider).order_by(ExternalAuthProvider.position)
    async with database.reading() as session:
        return [
            Provider(id=row.id, type=row.type, regex=row.regex, display_name=row.display_name)
            for row in await session.scalars(query)
        ]


async def put_provider(database: Database, provider: Provider, now: int) -> None:
    """A provider that exists is changed and keeps its place."""
    changes = {"type": provider.type, "regex": provider.regex, "display_name": provider.display_name}
    last = select(func.coalesce(func.max(ExternalAuthProvider.position), 0)).scalar_subquery()
    new = insert(database.dialect, ExternalAuthProvider).values(
        id=provider.id, position=last + 1, created_at=now, **changes
    )
    async with database.transaction() as session:
        await session.execute(new.on_conflict_do_update(index_elements=["id"], set_=changes))


async def delete_provider(database: Database, provider_id: str) -> bool:
    """With all tokens for it; whether there was one."""
    statement = delete(ExternalAuthProvider).where(ExternalAuthProvider.id == provider_id)
    async with database.transaction() as session:
        return (await session.execute(statement.returning(ExternalAuthProvider.id))).first() is not None


async def links(database: Database, user: UUID) -> Sequence[ExternalAuthLink]:
    """The user's tokens."""
    query = select(ExternalAuthLink).where(ExternalAuthLink.user_id == user).order_by(ExternalAuthLink.provider_id)
    async with database.reading() as session:
        return (await session.scalars(query)).all()


async def usable_link(database: Database, user: UUID, provider_id: str, now: int) -> ExternalAuthLink | None:
    """The user's token at this provider, unless it expired."""
    async with database.reading() as session:
        link = await session.get(ExternalAuthLink, (user, provider_id))
    return link if link is not None and (link.expires_at is None or link.expires_at > now) else None


async def put_link(
    database: Database,
    user: UUID,
    provider_id: str,
    token: str,
    extra: dict[str, Any] | None,
    expires: int | None,
    now: int,
) -> None:
    """Raises `LookupError` when there is no such provider."""
    changes = {"access_token": token, "token_extra": extra, "expires_at": expires, "updated_at": now}
    new = insert(database.dialect, ExternalAuthLink).values(
        user_id=user, provider_id=provider_id, created_at=now, **changes
    )
    async with database.transaction() as session:
        if await session.get(ExternalAuthProvider, provider_id) is None:
            raise LookupError(provider_id)
        await session.execute(new.on_conflict_do_update(index_elements=["user_id", "provider_id"], set_=changes))


async def delete_link(database: Database, user: UUID, provider_id: str) -> bool:
    """Whether there was one."""
    key = (ExternalAuthLink.user_id == user) & (ExternalAuthLink.provider_id == provider_id)
    async with database.transaction() as session:
        found = await session.execute(delete(ExternalAuthLink).where(key).returning(ExternalAuthLink.provider_id))
        return found.first() is not None
