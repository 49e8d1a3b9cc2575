"""Banners that the owner shows to everybody (agent-api.md §8.2, §11.10)."""

from __future__ import annotations

import re

from aiohttp import web

from agent.server.errors import Validation, invalid
from agent.server.http import Call, reply
from agent.server.routes import Auth, Route
from agent.server.store import Database, banners
from agent.server.store.banners import KEY, Banner
from agent.server.wire import Body

MAX_BANNERS = 20
MAX_MESSAGE = 4096


class AppearanceConfig(Body):
    """What GET answers and PUT takes."""

    announcement_banners: list[Banner] | None = None


class Appearance:
    """Anybody may read; only owners may change."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def routes(self) -> list[Route]:
        path = "/api/v2/appearance"
        return [
            Route(
                method="GET",
                path=path,
                handler=self.get,
                summary="The banners",
                auth=Auth.NONE,
                responses={200: AppearanceConfig},
            ),
            Route(
                method="PUT",
                path=path,
                handler=self.put,
                summary="Replace the banners",
                owner_only=True,
                request=AppearanceConfig,
                responses={200: AppearanceConfig},
            ),
        ]

    async def get(self, _: Call) -> web.StreamResponse:
        return reply(AppearanceConfig(announcement_banners=await banners.read(self._database)))

    async def put(self, call: Call) -> web.StreamResponse:
        given = (await call.body(AppearanceConfig)).announcement_banners or []
        mistakes = [] if len(given) <= MAX_BANNERS else [Validation(KEY, f"more than {MAX_BANNERS}")]
        for index, banner in enumerate(given[:MAX_BANNERS]):
            if len(banner.message) > MAX_MESSAGE:
                mistakes.append(Validation(f"{KEY}[{index}].message", f"longer than {MAX_MESSAGE} characters"))
            if re.fullmatch(r"(#[0-9a-fA-F]{6})?", banner.background_color) is None:
                mistakes.append(Validation(f"{KEY}[{index}].background_color", "must be like #ff0000, or empty"))
        if mistakes:
            raise invalid(*mistakes)
        await banners.replace(self._database, given)
        return reply(AppearanceConfig(announcement_banners=given))
