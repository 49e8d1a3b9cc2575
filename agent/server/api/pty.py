"""GET workspaceagents/{id}/pty: a terminal over a WebSocket (terminal-ssh-http.md §1.10, agent-api.md §3.7)."""

from __future__ import annotations

import re
import socket as sockets
from contextlib import suppress
from html import escape
from uuid import UUID

from aiohttp import web

from agent.clock import Clock, wait_for
from agent.protocol.pty import Init, PtyProtocolError
from agent.protocol.tcp import TcpError
from agent.server.api import models
from agent.server.errors import ApiError, Validation
from agent.server.http import Call
from agent.server.longlived import CLOSE_TIMEOUT, HEARTBEAT, LongLived, upgrade_refusal
from agent.server.network import AgentNetwork, AgentUnreachableError
from agent.server.pty_bridge import ALLOWED, AWAY, BROKEN, Bridge, Close
from agent.server.routes import EMPTY, Auth, Query, Route
from agent.server.store import Database, agents
from agent.server.wire import parse_uuid

PORT = 2
MAX_MESSAGE = 4 * 1024 * 1024
"""Bytes of one message of a client; it is held in memory as a whole."""
MAX_REASON = 123
"""Bytes of a close frame's reason (RFC 6455 §5.5)."""
UNSENT = 4 * 1024
"""Bytes that the kernel keeps of what it cannot send yet, and as many that asyncio does: what waits there, Ctrl-C waits
for."""


class Pty:
    """Handlers; a member reaches own agents only, an owner all."""

    def __init__(self, database: Database, network: AgentNetwork, long_lived: LongLived, clock: Clock) -> None:
        self._database, self._network, self._long_lived, self._clock = database, network, long_lived, clock

    def routes(self) -> list[Route]:
        return [
            Route(
                method="GET",
                path="/api/v2/workspaceagents/{workspaceagent}/pty",
                handler=self.open,
                summary="A terminal in the workspace, over a WebSocket",
                auth=Auth.TERMINAL,
                query=(
                    Query("reconnect", "Id of the terminal: a known one goes on, another one begins", "uuid"),
                    Query("height", "Rows", "integer"),
                    Query("width", "Columns", "integer"),
                    Query("command", "Run this instead of the login shell"),
                    Query("container", "Run in this container"),
                    Query("container_user", "as this user"),
                    Query("backend_type", "`screen` or `buffered`"),
                    Query("acknowledge", "1: text messages tell what was taken and drawn"),
                ),
                responses={101: EMPTY},
                websocket=True,
            )
        ]

    async def open(self, call: Call) -> web.StreamResponse:
        init = read_query(call)
        agent = await self._connected_agent(call)
        if isinstance(agent, web.Response):
            return agent
        if (refusal := upgrade_refusal(call.request)) is not None:
            return refusal
        # The writer waits after each message until the socket takes more.
        socket = web.WebSocketResponse(heartbeat=HEARTBEAT, compress=False, max_msg_size=MAX_MESSAGE, writer_limit=0)
        await socket.prepare(call.request)
        _keep_little_unsent(call.request)

        async def close(code: int = AWAY, reason: str = "") -> None:
            await socket.close(code=code, message=reason.encode()[:MAX_REASON].decode(errors="ignore").encode())

        with self._long_lived.track(close):
            code, reason = await self._join(agent, init, socket, acknowledge=call.query.get("acknowledge") == "1")
            with suppress(TimeoutError):
                await wait_for(self._clock, close(code, reason), CLOSE_TIMEOUT)
        return socket

    async def _connected_agent(self, call: Call) -> UUID | web.Response:
        agent_id = call.uuid("workspaceagent")
        async with self._database.reading() as session:
            row = await agents.by_id(session, agent_id)
        if row is None or not (call.user.is_owner or row.owner.id == call.user.id):
            return _error_page("Application Not Found", "There is no such agent, or you may not use it.")
        status = models.status_of(row, self._clock.wall() // 1000)
        if status != "connected":
            return _error_page("Application Unavailable", f'Agent state is "{status}", not "connected"')
        return agent_id

    async def _join(self, agent: UUID, init: bytes, socket: web.WebSocketResponse, *, acknowledge: bool) -> Close:
        try:
            stream = await self._network.dial(agent, PORT, allowed=ALLOWED)
        except AgentUnreachableError as error:
            return Close(BROKEN, str(error))
        try:
            await stream.write(init)
            return await Bridge(socket, stream, self._clock, acknowledge=acknowledge).run()
        except TcpError as error:
            return Close(BROKEN, f"dial: {error}")
        finally:
            # What was typed still goes out; the terminal lives on.
            stream.close()


def read_query(call: Call) -> bytes:
    """The init that the query asks for. Raises `ApiError` 400 that names all mistakes."""
    mistakes: list[Validation] = []
    terminal = UUID(int=0)
    if not (text := call.query.get("reconnect", "")):
        mistakes.append(Validation("reconnect", 'Query param "reconnect" is required and cannot be empty'))
    else:
        try:
            terminal = parse_uuid(text)
        except ValueError:
            mistakes.append(Validation("reconnect", 'Query param "reconnect" must be a valid uuid'))
    sizes = []
    for name in ("height", "width"):
        text = call.query.get(name, "") or "80"
        number = int(text) if re.fullmatch(r"[0-9]{1,20}", text, re.ASCII) else 1 << 64
        if number >= 1 << 64:
            mistakes.append(Validation(name, f'Query param "{name}" must be a valid positive integer'))
        sizes.append(number & 0xFFFF)
    backend = call.query.get("backend_type", "")
    if backend not in ("", "screen", "buffered"):
        mistakes.append(Validation("backend_type", 'Query param "backend_type" must be "screen" or "buffered"'))
    command, container, user = (call.query.get(name, "") for name in ("command", "container", "container_user"))
    init = b""
    if not mistakes:
        try:
            init = Init(terminal, sizes[0], sizes[1], command, container, user, backend).encode()
        except PtyProtocolError as error:
            mistakes.append(Validation("command", str(error)))
    if mistakes:
        raise ApiError(400, "Invalid query parameters.", validations=mistakes)
    return init


def _keep_little_unsent(request: web.Request) -> None:
    if request.transport is None:
        return
    request.transport.set_write_buffer_limits(UNSENT)
    connection = request.transport.get_extra_info("socket")
    if connection is not None and hasattr(sockets, "TCP_NOTSENT_LOWAT"):
        with suppress(OSError):  # a Unix socket
            connection.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NOTSENT_LOWAT, UNSENT)


def _error_page(title: str, text: str) -> web.Response:
    content = f"<!doctype html><title>{escape(title)}</title><h1>404 - {escape(title)}</h1><p>{escape(text)}</p>\n"
    return web.Response(status=404, text=content, content_type="text/html")
