"""GET workspaceagents/{id}/containers (agent-api.md §3.10): clients ask for the containers of a workspace."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from agent.clock import Clock
from agent.server.api.access import visible_agent
from agent.server.api.models import status_of
from agent.server.errors import ApiError
from agent.server.http import Call, reply
from agent.server.routes import Auth, Query, Route
from agent.server.store import Database


class ContainerList(msgspec.Struct, kw_only=True):
    """Always null: nobody looks for containers here, and without one clients show none."""

    containers: list[Any] | None = None


class Containers:
    """The handler; a member asks about own agents only, an owner about all."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    def routes(self) -> list[Route]:
        return [
            Route(
                method="GET",
                path="/api/v2/workspaceagents/{workspaceagent}/containers",
                handler=self.list,
                summary="Containers in the workspace, which are not looked for",
                auth=Auth.USER_OR_PROXY,
                query=(Query("label", "KEY=VALUE; repeatable"),),
                responses={200: ContainerList},
            )
        ]

    async def list(self, call: Call) -> web.Response:
        row = await visible_agent(self._database, call)
        for label in call.request.query.getall("label", []):
            if label.count("=") != 1:
                raise ApiError(400, "Invalid label format")
        status = status_of(row, self._clock.wall() // 1000)
        if status != "connected":
            raise ApiError(400, f'Agent state is "{status}", it must be in the "connected" state.')
        return reply(ContainerList())
