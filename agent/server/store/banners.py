"""The banners that the owner shows to everybody."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from agent.server.store import settings
from agent.server.store.database import Database

KEY = "announcement_banners"


class Banner(msgspec.Struct):
    """One banner; `background_color` is like `#ff0000`, or empty."""

    enabled: bool = False
    message: str = ""
    background_color: str = ""


async def read(database: Database) -> list[Banner]:
    """As they were set last."""
    async with database.reading() as session:
        return msgspec.convert(await settings.get(session, KEY) or [], list[Banner])


async def replace(database: Database, banners: Sequence[Banner]) -> None:
    async with database.transaction() as session:
        await settings.put(session, KEY, msgspec.to_builtins(banners))
