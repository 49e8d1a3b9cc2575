"""The local servers' routes (daemon.md §1.9). `/health`, `/ready`, `/status` and what steers are additions to the
specification.

The metrics server answers everything with the metrics. The debug server shows, and changes nothing but how much of
the network is logged. The control server, a Unix socket that only the agent's user and root may use, also drains.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web

from agent.metrics import CONTENT_TYPE, render
from agent.ops.views import LOG_LEVELS, Operations

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_OPERATIONS: Final = web.AppKey("operations", Operations)


def make_runner(app: web.Application, close_limit: float) -> web.AppRunner:
    """As `LocalServer` needs it."""
    return web.AppRunner(
        app, handle_signals=False, access_log=None, handler_cancellation=True, shutdown_timeout=close_limit
    )


def metrics_app(operations: Operations, *, by_name: bool) -> web.Application:
    """Every path and every method answers with the metrics.

    Here as below, `by_name` refuses requests for other names than this machine's own (`_under_own_name`).
    """
    app = _app(operations, *([_under_own_name] if by_name else []))
    app.router.add_route("*", "/{path:.*}", _metrics)
    return app


def debug_app(operations: Operations, *, by_name: bool) -> web.Application:
    """What people who help want to see."""
    app = _app(operations, *([_under_own_name] if by_name else []))
    _add_shown(app, operations)
    return app


def stacks_app(operations: Operations, *, by_name: bool) -> web.Application:
    """The profiling server: what every task and thread is doing."""
    app = _app(operations, *([_under_own_name] if by_name else []))
    app.router.add_get("/debug/pprof/", _stacks)
    app.router.add_get("/debug/pprof/goroutine", _stacks)
    return app


def control_app(operations: Operations) -> web.Application:
    """What `workspace-agent status`, `drain`, `log-level` and `bundle` talk to."""
    app = _app(operations, _own_user)
    _add_shown(app, operations)
    app.router.add_get("/status", _status)
    app.router.add_post("/drain", _drain)
    app.router.add_put("/log-level", _log_level)
    return app


def _app(operations: Operations, *middlewares: Any) -> web.Application:
    app = web.Application(middlewares=[_not_found, *middlewares], client_max_size=64 * 1024)
    app[_OPERATIONS] = operations
    return app


def _add_shown(app: web.Application, operations: Operations) -> None:
    app.router.add_get("/health", _health)
    app.router.add_get("/ready", _ready)
    app.router.add_get("/debug/stacks", _stacks)
    operations.debug_routes(app.router)


# ---- who may ask


@web.middleware
async def _not_found(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return web.Response(text="404 not found", status=404)


@web.middleware
async def _under_own_name(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A site whose name was made to mean 127.0.0.1 sends its own name: browsers let its scripts read the answer."""
    host = request.url.host or "" if "Host" in request.headers else "localhost"  # clients of HTTP/1.0 send none
    if host != "localhost":
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return web.Response(text=f'"{host}" is no name of this server; use its address', status=421)
    return await handler(request)


@web.middleware
async def _own_user(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The mode of the socket says it already; this holds where somebody changed that."""
    peer = request.transport.get_extra_info("socket") if request.transport is not None else None
    if peer is not None and peer.family == socket.AF_UNIX:
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", credentials)[1] not in (0, os.geteuid()):
            return web.Response(text="this socket is for the agent's own user", status=403)
    return await handler(request)


# ---- answers


async def _metrics(request: web.Request) -> web.Response:
    body = render(await request.app[_OPERATIONS].metrics()).encode()
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


async def _health(request: web.Request) -> web.Response:
    # That there is an answer says that the event loop turns.
    return web.Response(text="ok\n")


async def _ready(request: web.Request) -> web.Response:
    reason = request.app[_OPERATIONS].not_ready()
    return web.Response(text=f"{reason or 'ready'}\n", status=503 if reason else 200)


async def _stacks(request: web.Request) -> web.Response:
    return web.Response(text=request.app[_OPERATIONS].stacks())


async def _status(request: web.Request) -> web.Response:
    return _json(request.app[_OPERATIONS].status())


async def _drain(request: web.Request) -> web.Response:
    # Whoever asked may go away: the shutdown goes on.
    drained = await asyncio.shield(asyncio.ensure_future(request.app[_OPERATIONS].drain()))
    return _json({"unfinished": list(drained.unfinished), "unsent": dict(drained.unsent)})


async def _log_level(request: web.Request) -> web.Response:
    level = (await request.text()).strip()
    if level not in LOG_LEVELS:
        return web.Response(text=f"unknown log level; use one of {', '.join(LOG_LEVELS)}\n", status=400)
    request.app[_OPERATIONS].set_log_level(level)
    return web.Response(text=f"{level}\n")


def _json(value: Mapping[str, Any]) -> web.Response:
    return web.Response(text=json.dumps(value, indent=2) + "\n", content_type="application/json")
