"""Endpoints of people's clients: how to reach agents, and the Tailnet service (agent-api.md §3.2-3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import msgspec
from aiohttp import web

from agent.api.versions import ApiVersion
from agent.clock import Clock
from agent.rpc import MAX_MESSAGE, RpcServer, WebSocketTransport
from agent.server.api.access import negotiated, visible_agent
from agent.server.derp_map import CHECK_PERIOD, TOPIC, DerpMaps
from agent.server.errors import ApiError, Validation
from agent.server.events import Events
from agent.server.http import Call, reply
from agent.server.longlived import GOING_AWAY, HEARTBEAT, LongLived, one_way, upgrade_refusal
from agent.server.routes import EMPTY, Auth, Query, Route
from agent.server.store import Database, agents
from agent.server.tailnet_rpc.policies import AgentClientPolicy, Policy, UserPolicy
from agent.server.tailnet_rpc.resume import ResumeError, ResumeTokens
from agent.server.tailnet_rpc.service import Client, TailnetService
from agent.server.wire import encode
from agent.tailnet.derp_map import to_json

CLIENT_MESSAGE = 32 * 1024
"""Bytes of a WebSocket message to a client: those of 2024 take no larger ones (tailnet.md §3.2)."""
MAX_FOLLOWERS = 1024
"""Open sockets of `derp-map`: anybody may ask for one."""
COORDINATE_DEFAULT = "1.0"
"""Clients that tell no version are older than the only protocol there is."""


class ConnectionInfo(msgspec.Struct, kw_only=True):
    """`derp_map` has the struct names of tailnet.md §5.8."""

    derp_map: dict[str, Any]
    derp_force_websockets: bool
    disable_direct_connections: bool


class Tailnet:
    """A client reaches the agents that its user may see."""

    def __init__(
        self,
        service: TailnetService,
        derp_maps: DerpMaps,
        tokens: ResumeTokens,
        database: Database,
        events: Events,
        long_lived: LongLived,
        clock: Clock,
        newest: ApiVersion,
    ) -> None:
        self._service, self._derp_maps, self._tokens = service, derp_maps, tokens
        self._database, self._events, self._long_lived = database, events, long_lived
        self._clock, self._newest = clock, newest
        self._followers = 0

    def routes(self) -> list[Route]:
        resume = Query("resume_token", "Of RefreshResumeToken: the client keeps its peer id")
        version = "Version of the Tailnet API that the client speaks"
        return [
            Route(
                method="GET",
                path="/api/v2/workspaceagents/connection",
                handler=self.connection,
                summary="Relays, and what connections may use, for any agent",
                responses={200: ConnectionInfo},
            ),
            Route(
                method="GET",
                path="/api/v2/workspaceagents/{workspaceagent}/connection",
                handler=self.agent_connection,
                summary="Relays, and what connections may use, for this agent",
                auth=Auth.USER_OR_PROXY,
                responses={200: ConnectionInfo},
            ),
            Route(
                method="GET",
                path="/api/v2/workspaceagents/{workspaceagent}/coordinate",
                handler=self.coordinate,
                summary="The Tailnet service for a client of one agent: a WebSocket that carries yamux and dRPC",
                auth=Auth.USER_OR_PROXY,
                query=(Query("version", f"{version}; without it the client is refused"), resume),
                responses={101: EMPTY},
                websocket=True,
            ),
            Route(
                method="GET",
                path="/api/v2/tailnet",
                handler=self.tailnet,
                summary="The Tailnet service for a client of all agents of its user",
                query=(Query("version", f"{version}; 2.0 when absent"), resume),
                responses={101: EMPTY},
                websocket=True,
            ),
            Route(
                method="GET",
                path="/api/v2/derp-map",
                handler=self.derp_map,
                summary="A WebSocket with the relays, now and whenever they change",
                auth=Auth.NONE,
                responses={101: EMPTY},
                websocket=True,
            ),
        ]

    async def connection(self, call: Call) -> web.Response:
        options = self._derp_maps.options
        return reply(
            ConnectionInfo(
                derp_map=to_json(self._derp_maps.current),
                derp_force_websockets=options.force_websockets,
                disable_direct_connections=options.disable_direct,
            )
        )

    async def agent_connection(self, call: Call) -> web.Response:
        await visible_agent(self._database, call)
        return await self.connection(call)

    async def coordinate(self, call: Call) -> web.StreamResponse:
        row = await visible_agent(self._database, call)
        negotiated(call, self._newest, COORDINATE_DEFAULT)
        policy = AgentClientPolicy(row.agent.id)
        return await self._serve(call, policy, str(row.agent.id), sees_workspaces=False)

    async def tailnet(self, call: Call) -> web.StreamResponse:
        negotiated(call, self._newest)

        async def may_reach(agent: UUID) -> bool:
            async with self._database.reading() as session:
                row = await agents.by_id(session, agent)
            return row is not None and (call.user.is_owner or row.owner.id == call.user.id)

        return await self._serve(call, UserPolicy(may_reach), "tailnet", sees_workspaces=True)

    async def _serve(self, call: Call, policy: Policy, purpose: str, *, sees_workspaces: bool) -> web.StreamResponse:
        audience = f"{call.user.id} {purpose}"
        peer = self._peer(call.query.get("resume_token", ""), audience)
        refusal = upgrade_refusal(call.request)
        if refusal is not None:
            return refusal
        socket = web.WebSocketResponse(heartbeat=HEARTBEAT, compress=False, max_msg_size=MAX_MESSAGE)
        await socket.prepare(call.request)
        client = Client(peer, policy, audience, call.user.id, call.user.is_owner, sees_workspaces)
        server = RpcServer(_SmallMessages(socket), self._service.client_handlers(client), self._clock)
        with self._long_lived.track(lambda: server.aclose(GOING_AWAY)):
            await server.serve()
        return socket

    def _peer(self, token: str, audience: str) -> UUID:
        if not token:
            return uuid4()
        try:
            return self._tokens.check(token, audience, self._clock.wall() // 10**9)
        except ResumeError as error:
            mistake = Validation("resume_token", str(error))
            raise ApiError(401, "Invalid resume token", validations=[mistake]) from error

    async def derp_map(self, call: Call) -> web.StreamResponse:
        refusal = upgrade_refusal(call.request)
        if refusal is not None:
            return refusal
        if self._followers >= MAX_FOLLOWERS:
            raise ApiError(503, "Too many clients follow the DERP map.")
        self._followers += 1
        try:
            return await self._follow(call)
        finally:
            self._followers -= 1

    async def _follow(self, call: Call) -> web.StreamResponse:
        sent = None
        opened = one_way(call, self._clock, self._long_lived, compress=False, reason="unexpected data message")
        async with opened as socket:
            with self._events.subscribe(TOPIC) as changes:
                while True:
                    if self._derp_maps.current is not sent:
                        sent = self._derp_maps.current
                        await socket.send_bytes(encode(to_json(sent)))
                    await socket.wait(changes, CHECK_PERIOD)
        return socket.response


class _SmallMessages(WebSocketTransport):
    async def send(self, chunks: Sequence[bytes]) -> None:
        data = b"".join(chunks)
        for at in range(0, len(data), CLIENT_MESSAGE):
            await super().send([data[at : at + CLIENT_MESSAGE]])
