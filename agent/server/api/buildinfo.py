"""`GET /api/v2/buildinfo`: what this server is."""

from __future__ import annotations

from uuid import UUID

import msgspec
from aiohttp import web

from agent.api.versions import ApiVersion
from agent.server.http import Call, reply
from agent.server.routes import Auth, Route


class BuildInfoAnswer(msgspec.Struct, kw_only=True):
    external_url: str
    version: str
    dashboard_url: str
    telemetry: bool = False
    workspace_proxy: bool = False
    agent_api_version: str
    provisioner_api_version: str = ""
    upgrade_message: str = ""
    deployment_id: UUID


class BuildInfo:
    """Known when the server has started, and the same ever after."""

    def __init__(self, *, version: str, access_url: str, api_version: ApiVersion, deployment_id: UUID) -> None:
        self._answer = BuildInfoAnswer(
            external_url=access_url,
            version=version,
            dashboard_url=access_url,
            agent_api_version=str(api_version),
            deployment_id=deployment_id,
        )

    def routes(self) -> list[Route]:
        return [
            Route(
                method="GET",
                path="/api/v2/buildinfo",
                handler=self.show,
                summary="Version of the server",
                auth=Auth.NONE,
                responses={200: BuildInfoAnswer},
            )
        ]

    async def show(self, _call: Call) -> web.Response:
        return reply(self._answer)
