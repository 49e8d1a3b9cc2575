"""What people who help want to see of an agent; never a secret (terminal-ssh-http.md §4.4)."""

from __future__ import annotations

import html
from typing import Final

from aiohttp import web

from agent import metrics
from agent.workspace_api import logfiles, manifest, streaming
from agent.workspace_api.answers import to_json
from agent.workspace_api.deadline import LONG_LIMIT, deadline_of
from agent.workspace_api.views import Views

STATES: Final = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "FALSE", "false", "False"), False
)


def add_routes(router: web.UrlDispatcher, views: Views) -> None:
    """The routes under `/debug`."""
    pages = _Pages(views)
    for path, handler in (
        ("/debug/logs", pages.logs),
        ("/debug/magicsock", pages.node),
        ("/debug/magicsock/debug-logging/{state}", pages.node_logging),
        ("/debug/manifest", pages.manifest),
        ("/debug/prometheus", pages.prometheus),
    ):
        router.add_get(path, handler, allow_head=False)


class _Pages:
    def __init__(self, views: Views) -> None:
        self._views = views

    async def logs(self, request: web.Request) -> web.StreamResponse:
        after = request.query.get("after", "").strip()
        if after:
            try:
                since = logfiles.from_rfc3339(after)
            except ValueError as error:
                return web.Response(text=f"after must be an RFC3339 timestamp: {error}\n", status=400)
            chunks = logfiles.read_since(self._views.log_dir, since)
            deadline_of(request).restart(LONG_LIMIT)
        else:
            chunks = logfiles.read_active(self._views.log_dir)
        try:
            try:
                await streaming.in_thread(lambda: next(chunks))
            except OSError as error:
                return web.Response(text=f"could not open log file: {error}", status=500)
            response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
            return await streaming.send(request, response, chunks)
        finally:
            chunks.close()

    async def node(self, request: web.Request) -> web.Response:
        rows = self._views.node()
        if rows is None:
            return web.Response(text="network is not ready yet", status=500)
        cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>\n" for name, text in rows)
        page = (
            f"<!DOCTYPE html>\n<html><head><title>magicsock</title></head><body>\n<h1>magicsock</h1>\n<table>\n{cells}"
        )
        return web.Response(text=f"{page}</table>\n</body></html>\n", content_type="text/html", charset="utf-8")

    async def node_logging(self, request: web.Request) -> web.Response:
        text = request.match_info["state"]
        state = STATES.get(text)
        if state is None:
            return web.Response(text=f'invalid state "{text}", must be a boolean', status=400)
        self._views.set_network_debug(state)
        return web.Response(text=f"updated magicsock debug logging to {str(state).lower()}")

    async def manifest(self, request: web.Request) -> web.Response:
        known = self._views.manifest()
        if known is None:
            return web.Response(text="no manifest in-memory", status=500)
        body = to_json(manifest.shown(known, self._views.redact))
        return web.Response(body=body, headers={"Content-Type": "application/json; charset=utf-8"})

    async def prometheus(self, request: web.Request) -> web.Response:
        body = metrics.render(await self._views.metrics()).encode()
        return web.Response(body=body, headers={"Content-Type": "text/plain"})
