"""GET workspaceagents/{id}/listening-ports: what one may open in a workspace (agent-api.md §3.5,
terminal-ssh-http.md §4.2).
"""

from __future__ import annotations

from aiohttp import web

from agent.clock import Clock
from agent.server.agent_ports import AgentPorts, PortList, port_of
from agent.server.api.access import visible_agent
from agent.server.api.models import status_of
from agent.server.errors import ApiError
from agent.server.http import Call, reply
from agent.server.routes import Auth, Route
from agent.server.store import Database, agents


class ListeningPorts:
    """The handler; a member asks own agents only, an owner all."""

    def __init__(self, database: Database, agent_ports: AgentPorts, clock: Clock) -> None:
        self._database, self._ports, self._clock = database, agent_ports, clock

    def routes(self) -> list[Route]:
        return [
            Route(
                method="GET",
                path="/api/v2/workspaceagents/{workspaceagent}/listening-ports",
                handler=self.list,
                summary="TCP ports on which programs in the workspace listen",
                auth=Auth.USER_OR_PROXY,
                responses={200: PortList},
            )
        ]

    async def list(self, call: Call) -> web.Response:
        row = await visible_agent(self._database, call)
        status = status_of(row, self._clock.wall() // 1000)
        if status != "connected":
            raise ApiError(400, f'Agent state is "{status}", it must be in the "connected" state.')
        async with self._database.reading() as session:
            apps = {port_of(app.url) for app in await agents.apps(session, row.agent.id)}
        return reply((await self._ports.ask(row.agent.id)).shown(apps))
