"""Tickets for ports of workspaces: each opens one port, once."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy import exists as any_row
from sqlalchemy.ext.asyncio import AsyncSession

from agent.server.store.schema import PortTicket


class Redeemed(NamedTuple):
    """What a ticket was good for; `expires_at` is in microseconds since 1970."""

    key_id: str
    agent_id: UUID
    port: int
    expires_at: int


async def add(session: AsyncSession, ticket: PortTicket) -> None:
    session.add(ticket)
    await session.flush()


async def exists(session: AsyncSession, code_hash: bytes) -> bool:
    return bool(await session.scalar(select(any_row().where(PortTicket.code_hash == code_hash))))


async def redeem(session: AsyncSession, code_hash: bytes) -> Redeemed | None:
    """The ticket, whether or not it is still good. It is used up, also by a second caller at once."""
    query = (
        delete(PortTicket)
        .where(PortTicket.code_hash == code_hash)
        .returning(PortTicket.key_id, PortTicket.agent_id, PortTicket.port, PortTicket.expires_at)
    )
    row = (await session.execute(query)).one_or_none()
    return None if row is None else Redeemed(*row)


async def remove_expired(session: AsyncSession, now: int) -> None:
    await session.execute(delete(PortTicket).where(PortTicket.expires_at < now))
