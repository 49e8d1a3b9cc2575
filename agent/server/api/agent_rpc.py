"""GET me/rpc: the connection of an agent (agent-api.md §2.1, §6, §7.1)."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack

from aiohttp import web

from agent.api.versions import ApiVersion
from agent.clock import Clock
from agent.rpc import MAX_MESSAGE, RpcServer, WebSocketTransport
from agent.server.agent_rpc.service import AgentService, Surroundings
from agent.server.api.access import negotiated
from agent.server.http import Call
from agent.server.longlived import GOING_AWAY, LongLived, upgrade_refusal
from agent.server.monitor import ConnectionMonitor
from agent.server.routes import EMPTY, Auth, Query, Route
from agent.server.tailnet_rpc.service import TailnetService

INTERNAL_ERROR = 1011
SHOWN_ROLES = ("", "agent")

logger = logging.getLogger("agent.server.rpc")


class AgentRpc:
    """Serves the connections of agents; `newest` is the API version that is offered."""

    def __init__(
        self,
        around: Surroundings,
        tailnet: TailnetService,
        monitor: ConnectionMonitor,
        long_lived: LongLived,
        clock: Clock,
        newest: ApiVersion,
    ) -> None:
        self._around, self._tailnet, self._monitor, self._long_lived = around, tailnet, monitor, long_lived
        self._clock, self._newest = clock, newest

    def routes(self) -> list[Route]:
        return [
            Route(
                method="GET",
                path="/api/v2/workspaceagents/me/rpc",
                handler=self.connect,
                summary="The agent's RPC connection: a WebSocket that carries yamux and dRPC",
                auth=Auth.AGENT,
                query=(
                    Query("version", "Version of the agent API that the agent speaks; 2.0 when absent"),
                    Query("role", "With another role than `agent` the agent does not count as connected"),
                ),
                responses={101: EMPTY},
                websocket=True,
            )
        ]

    async def connect(self, call: Call) -> web.StreamResponse:
        """Until the connection ends."""
        version = negotiated(call, self._newest)
        refusal = upgrade_refusal(call.request)
        if refusal is not None:
            return refusal
        socket = web.WebSocketResponse(compress=False, max_msg_size=MAX_MESSAGE)
        await socket.prepare(call.request)
        handlers = AgentService(call.agent.id, version, self._around).handlers()
        handlers |= self._tailnet.agent_handlers(call.agent.id)
        server = RpcServer(WebSocketTransport(socket), handlers, self._clock)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(server.aclose)
            stack.enter_context(self._long_lived.track(lambda: server.aclose(GOING_AWAY)))
            shown = call.query.get("role", "") in SHOWN_ROLES
            try:
                watch = self._monitor.watch(call.agent.id, call.agent.token_hash, server, shown=shown)
                await stack.enter_async_context(watch)
            except Exception:
                logger.exception("agent %s: cannot write that it connected", call.agent.id)
                await server.aclose(INTERNAL_ERROR, "cannot write that the agent connected")
                return socket
            logger.info("agent %s: connected with API version %s", call.agent.id, version)
            cause = await server.serve()
            logger.info("agent %s: disconnected: %s", call.agent.id, cause or "closed")
        return socket
