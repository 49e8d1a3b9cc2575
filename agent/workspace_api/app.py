"""The routes, and what holds for all of them (terminal-ssh-http.md §4)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final

from aiohttp import web

from agent.clock import Clock, wait_for
from agent.workspace_api import debug, files
from agent.workspace_api.answers import ApiError, to_json
from agent.workspace_api.deadline import deadline_of
from agent.workspace_api.interfaces import InterfacesError, netcheck
from agent.workspace_api.views import Port, PortScanError, Views

logger = logging.getLogger("agent.workspace_api")

VIEWS: Final = web.AppKey("views", Views)
CLOCK: Final = web.AppKey("clock", Clock)
HEARTBEAT: Final = 10.0
"""Seconds after which a stream of changes without any sends an empty line: a client that is gone is noticed by it."""
MAX_JSON: Final = 1024 * 1024
CONTAINERS_OFF: Final = ApiError(
    403,
    "Dev Container feature not enabled.",
    "To enable this feature, set CODER_AGENT_DEVCONTAINERS_ENABLE=true in your template.",
)
CONTAINERS_IN_CONTAINER: Final = ApiError(
    403,
    "Dev Container feature not supported.",
    "Dev Container integration inside other Dev Containers is explicitly not supported.",
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_runner(views: Views, clock: Clock) -> web.AppRunner:
    """The application, ready for `setup`; its `server()` makes the protocol of one connection."""
    app = web.Application(middlewares=[_in_time, _in_words], client_max_size=MAX_JSON)
    app[VIEWS], app[CLOCK] = views, clock
    router = app.router
    # Routes of features that this agent does not have are 404, as with an agent that is older than they are.
    for path, handler in (
        ("/", _greeting),
        ("/api/v0/listening-ports", _listening_ports),
        ("/api/v0/listening-ports/watch", _watch_ports),
        ("/api/v0/netcheck", _netcheck),
        ("/api/v0/resolve-path", files.resolve_path),
        ("/api/v0/read-file", files.read_file),
        ("/api/v0/desktop/vnc", _no_desktop),
    ):
        router.add_get(path, handler, allow_head=False)
    router.add_post("/api/v0/list-directory", _list_directory)
    router.add_post("/api/v0/write-file", files.write_file)
    router.add_post("/api/v0/desktop/action", _no_desktop)
    router.add_route("*", "/api/v0/containers", _containers)
    debug.add_routes(router, views)
    return web.AppRunner(app, handle_signals=False, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)


def answer(value: object, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(body=to_json(value), status=status, headers={"Content-Type": "application/json; charset=utf-8"})


# ---- what holds for all


@web.middleware
async def _in_time(request: web.Request, handler: Handler) -> web.StreamResponse:
    deadline = deadline_of(request)
    deadline.restart()
    deadline.answering = True
    try:
        return await handler(request)
    finally:
        deadline.answering = False
        deadline.restart()


@web.middleware
async def _in_words(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return answer(error.body(), error.status)
    except web.HTTPNotFound:
        return web.Response(text="404 page not found\n", status=404, headers={"X-Content-Type-Options": "nosniff"})
    except web.HTTPMethodNotAllowed as error:
        return web.Response(status=405, headers={"Allow": ", ".join(sorted(error.allowed_methods))})
    except web.HTTPException as error:
        return answer({"message": error.reason}, error.status)
    except ConnectionError:
        raise  # the client is gone; there is nobody to answer
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        return answer({"message": "An internal server error occurred."}, 500)


# ---- small handlers


async def _greeting(request: web.Request) -> web.Response:
    return answer({"message": "Hello from the agent!"})


async def _listening_ports(request: web.Request) -> web.Response:
    try:
        return answer(_port_list(await request.app[VIEWS].ports()))
    except PortScanError as error:
        raise _scan_failed(error) from error


async def _watch_ports(request: web.Request) -> web.StreamResponse:
    """An addition to the specification: lines of what `listening-ports` answers, one now and one at each change."""
    clock, deadline = request.app[CLOCK], deadline_of(request)
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    async with aclosing(request.app[VIEWS].watch_ports()) as changes:
        pending = asyncio.ensure_future(anext(changes))
        try:
            line = to_json(_port_list(await pending))
            pending = asyncio.ensure_future(anext(changes))
            await response.prepare(request)
            while True:
                await response.write(line)
                deadline.restart()
                try:
                    line = to_json(_port_list(await wait_for(clock, asyncio.shield(pending), HEARTBEAT)))
                    pending = asyncio.ensure_future(anext(changes))
                except TimeoutError:
                    line = b"\n"
        except PortScanError as error:
            if response.prepared:
                logger.warning("watching the listening ports ended: %s", error)
                return response
            raise _scan_failed(error) from error
        finally:
            pending.cancel()
            await asyncio.wait({pending})


def _port_list(ports: Sequence[Port]) -> dict[str, Any]:
    return {"ports": [{"process_name": item.process, "network": "tcp", "port": item.port} for item in ports]}


def _scan_failed(error: PortScanError) -> ApiError:
    return ApiError(500, "Could not scan for listening ports.", f"scan listening ports: {error}")


async def _netcheck(request: web.Request) -> web.Response:
    try:
        return answer(await asyncio.to_thread(netcheck, request.app[VIEWS].net_info()))
    except InterfacesError as error:
        raise ApiError(500, "Failed to run interfaces report", str(error)) from error


async def _list_directory(request: web.Request) -> web.Response:
    return answer(await files.list_directory(request, request.app[VIEWS].home))


async def _containers(request: web.Request) -> web.Response:
    manifest = request.app[VIEWS].manifest()
    raise CONTAINERS_IN_CONTAINER if manifest is not None and manifest.parent_id is not None else CONTAINERS_OFF


async def _no_desktop(request: web.Request) -> web.Response:
    raise ApiError(500, "Failed to start desktop session.", "this agent has no virtual desktop")
