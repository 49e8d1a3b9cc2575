"""Values that belong to the whole deployment, by name."""

from __future__ import annotations

from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from agent.server.store.schema import Json, Setting

DEPLOYMENT_ID = "deployment_id"


async def get(session: AsyncSession, key: str) -> Json | None:
    row = await session.get(Setting, key)
    return None if row is None else row.value


async def put(session: AsyncSession, key: str, value: Json) -> None:
    await session.merge(Setting(key=key, value=value))


async def deployment_id(session: AsyncSession) -> UUID:
    """Made when it is first asked for; the same ever after, on all replicas."""
    stored = await get(session, DEPLOYMENT_ID)
    if isinstance(stored, dict):
        return UUID(str(stored["id"]))
    made = uuid4()
    await put(session, DEPLOYMENT_ID, {"id": str(made)})
    return made
