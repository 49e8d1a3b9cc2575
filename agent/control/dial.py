"""The RPC connection of the agent: credentials, WebSocket, and the API version that both sides speak
(agent-api.md §6.1, §7.2).
"""

from __future__ import annotations

from typing import Protocol

import aiohttp

from agent.api.versions import CURRENT, OLDEST, ApiVersion, offered_version
from agent.clock import Clock, deadline
from agent.control.errors import RefusedError, VersionMismatchError
from agent.control.http import ControlHttp, reaching
from agent.rpc import MAX_MESSAGE, RpcAgentApi, RpcClient, WebSocketTransport

RPC_PATH = "/api/v2/workspaceagents/me/rpc"
DIAL_LIMIT = 30.0
"""Seconds for one connection attempt, upgrade and version negotiation included (daemon.md §9, Q4)."""


class Credentials(Protocol):
    """Where the token comes from (agent.identity)."""

    async def obtain(self) -> str:
        """The token for the next dial; it bounds its own waiting. Its errors reach the caller as they are."""


class ControlPlane:
    """Makes the connections of one agent, one after another.

    With another `role` than `agent` the server answers calls, but does not take the agent to be there.
    """

    def __init__(self, http: ControlHttp, credentials: Credentials, clock: Clock, role: str = "agent") -> None:
        self._http = http
        self._credentials = credentials
        self._clock = clock
        self._role = role

    @property
    def token(self) -> str:
        """The token of the latest attempt; empty before the first."""
        return self._http.token

    async def connect(self) -> RpcAgentApi:
        """A started connection; its `client` is the caller's to close.

        Every attempt asks for the newest version first, so that an upgraded server is noticed; an older one costs one
        refused request more. Raises `UnreachableError`, `RefusedError`, `RedirectError`, `VersionMismatchError`, and
        what the credentials raise.
        """
        self._http.token = await self._credentials.obtain()
        with reaching(self._http.url(RPC_PATH)):
            async with deadline(self._clock, DIAL_LIMIT):
                socket, version = await self._negotiate()
        client = RpcClient(WebSocketTransport(socket), self._clock)
        await client.start()
        return RpcAgentApi(client, version)

    async def _negotiate(self) -> tuple[aiohttp.ClientWebSocketResponse, ApiVersion]:
        version = CURRENT
        while True:
            try:
                return await self._dial(version), version
            except RefusedError as refusal:
                version = next_version(version, refusal)

    async def _dial(self, version: ApiVersion) -> aiohttp.ClientWebSocketResponse:
        url = self._http.url(RPC_PATH, role=self._role, version=str(version))
        try:
            return await self._http.session.ws_connect(url, max_msg_size=MAX_MESSAGE, proxy=self._http.proxy())
        except aiohttp.WSServerHandshakeError as error:
            raise RefusedError(
                f"GET {url.with_query(None)}",
                error.status,
                f"no WebSocket was opened ({error.message}); "
                "CODER_AGENT_URL may be wrong, or a proxy in between may strip the upgrade",
            ) from error


def next_version(asked: ApiVersion, refusal: RefusedError) -> ApiVersion:
    """The lower version to try after `refusal`: what the server says it has, else the one before `asked`.

    Raises `VersionMismatchError` when there is none, and `refusal` itself when it is not about the version.
    """
    details = [entry.detail for entry in refusal.validations if entry.field == "version"]
    if refusal.status != 400 or not details:
        raise refusal
    detail = details[0]
    offered = offered_version(detail)
    if offered is not None and offered.major < asked.major:
        raise VersionMismatchError(f"the server speaks agent API {offered}, this agent {asked}: upgrade the server")
    if detail.endswith("is no longer supported"):
        raise VersionMismatchError(f"the server says that {detail}: upgrade workspace-agent") from refusal
    if asked <= OLDEST:
        raise VersionMismatchError(f"the server accepts no agent API version from {OLDEST} to {CURRENT}") from refusal
    if offered is not None and offered.major == asked.major and offered < asked:
        return offered
    return ApiVersion(asked.major, asked.minor - 1)
