"""GET workspaceagents/{id}/listening-ports: what one may open in a workspace (agent-api.md §3.5,
terminal-ssh-http.md §4.2).
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

import aiohttp
import msgspec
from aiohttp import web

from agent.clock import Clock, wait_for
from agent.server.api.access import visible_agent
from agent.server.api.models import status_of
from agent.server.errors import ApiError, ErrorBody
from agent.server.http import Call, reply
from agent.server.network import AgentNetwork, AgentUnreachableError
from agent.server.routes import Auth, Route
from agent.server.store import Database, agents
from agent.tailnet.connector import TailnetConnector
from agent.tailnet.streams import TailnetStream

PORT: Final = 4
LIMIT: Final = 30.0
"""Seconds for everything, the connection to the agent included."""
MAX_BODY: Final = 4 * 1024 * 1024
FETCH_FAILED: Final = "Internal error fetching listening ports."
LOWEST: Final = 9
_SYSTEM: Final = frozenset((20, 21, 22, 23, 25, 53, 110, 143, 179, 389, 465, 587, 636, 989, 990, 993, 995))
_DATABASES: Final = frozenset((3306, 3389, 5432, 27017, 27018, 27019, 28017))
HIDDEN: Final = _SYSTEM | _DATABASES
"""Mail, databases and the like: nothing to open in a browser."""


class ListeningPort(msgspec.Struct, kw_only=True):
    """`process_name` is empty where the agent may not know it."""

    process_name: str
    network: str
    port: int


class PortList(msgspec.Struct):
    """In the agent's order."""

    ports: list[ListeningPort]


class ListeningPorts:
    """The handler; a member asks own agents only, an owner all."""

    def __init__(self, database: Database, network: AgentNetwork, clock: Clock) -> None:
        self._database, self._network, self._clock = database, network, clock

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
        try:
            found = await wait_for(self._clock, self._ask(row.agent.id), LIMIT)
        except TimeoutError as error:
            raise ApiError(500, FETCH_FAILED, f"no answer within {LIMIT:g} s") from error
        return reply(PortList([item for item in found.ports if item.port >= LOWEST and item.port not in HIDDEN | apps]))

    async def _ask(self, agent: UUID) -> PortList:
        async def dial(host: str, port: int) -> TailnetStream:
            return await self._network.dial(agent, port, LIMIT)

        connector = TailnetConnector(dial, self._clock, unreachable=(AgentUnreachableError,))
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
            try:
                async with session.get(f"http://agent:{PORT}/api/v0/listening-ports", allow_redirects=False) as answer:
                    body = await _read(answer)
            except aiohttp.ClientConnectorError as error:
                raise ApiError(500, "Internal error dialing workspace agent.", str(error.os_error)) from error
            except aiohttp.ClientError as error:
                raise ApiError(500, FETCH_FAILED, str(error)) from error
        if answer.status != 200:
            raise ApiError(500, FETCH_FAILED, f"the agent answered {answer.status}: {_message(body)}")
        try:
            return msgspec.json.decode(body, type=PortList)
        except msgspec.DecodeError as error:
            raise ApiError(500, FETCH_FAILED, f"the agent's answer: {error}") from error


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    """The whole body. Raises `ApiError` when an agent says more than any list of ports can be."""
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY:
            raise ApiError(500, FETCH_FAILED, f"the agent's answer is larger than {MAX_BODY} bytes")
    return bytes(body)


def _message(body: bytes) -> str:
    """What an agent's error says."""
    try:
        error = msgspec.json.decode(body, type=ErrorBody)
    except msgspec.DecodeError:
        return repr(body[:100])
    return f"{error.message} {error.detail}".strip()


def port_of(url: str) -> int:
    """The port that an app's URL names, 0 if it names none."""
    try:
        return urlsplit(url).port or 0
    except ValueError:
        return 0
