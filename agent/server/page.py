"""What a browser gets: the page, built from `web/` (`scripts/build_page.py`), and the link that logs it in once."""

from __future__ import annotations

import asyncio
import mimetypes
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Final

from aiohttp import hdrs, web

from agent.server.api.users import LOGIN_RATE, Users
from agent.server.http import Call
from agent.server.routes import Auth, Route, Text

_HTML = Text("text/html")
_HEADERS: Final = {
    # xterm.js makes a style sheet of its own for each terminal.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin-allow-popups",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_PLAIN_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
_FOREVER: Final = "public, max-age=31536000, immutable"
_NOT_BUILT: Final = (
    "<h1>The page was not built</h1><p>This server runs from sources whose page is missing: "
    "<code>python scripts/build_page.py</code> builds it. The command line does all that it does.</p>"
)


@dataclass(frozen=True, slots=True)
class _File:
    type: str
    body: bytes


class Page:
    """The routes outside `/api/v2`."""

    def __init__(self, users: Users) -> None:
        self._users = users

    def routes(self) -> list[Route]:
        def route(path: str, handler: object, summary: str, kind: Text = _HTML) -> Route:
            return Route(
                method="GET",
                path=path,
                handler=handler,  # type: ignore[arg-type] # one of the methods below
                summary=summary,
                auth=Auth.NONE,
                responses={200: kind},
                rate_limit=LOGIN_RATE if path == "/login" else None,
            )

        return [
            route("/", self.index, "The page, for people"),
            route("/new", self.index, "The page, where an agent is created"),
            route("/agents/{agent}", self.index, "The page of an agent"),
            route("/login", self.redeem, "Log in by a one-time link"),
            route("/assets/{name}", self.asset, "What the page consists of", Text("application/octet-stream")),
        ]

    async def index(self, _call: Call) -> web.StreamResponse:
        """The same for every path of the page: it looks at its address itself."""
        found = (await self._files()).get("index.html")
        if found is None:
            return _plain(_NOT_BUILT, 501)
        return web.Response(body=found.body, content_type="text/html", charset="utf-8", headers=_HEADERS)

    async def asset(self, call: Call) -> web.StreamResponse:
        """Names contain a hash of the content, so browsers may keep what they have."""
        found = (await self._files()).get(call.path("name"))
        if found is None:
            return _plain("<h1>There is no such file</h1>", 404)
        response = web.Response(body=found.body, content_type=found.type, headers={hdrs.CACHE_CONTROL: _FOREVER})
        response.enable_compression()
        return response

    async def redeem(self, call: Call) -> web.StreamResponse:
        token = await self._users.redeem_link(call.query.get("code", ""))
        if token is None:
            return _plain("<h1>This link was used before or has expired</h1><p>Ask for a new one.</p>", 400)
        response = web.Response(status=303, headers={**_HEADERS, hdrs.LOCATION: "/"})
        self._users.set_cookie(response, token)
        return response

    async def _files(self) -> dict[str, _File]:
        return await asyncio.to_thread(lambda: self._loaded)

    @cached_property
    def _loaded(self) -> dict[str, _File]:
        """By name. They are few and small; a server that shows no page does not load them."""
        top = files("agent.server") / "web"
        found = [top / "index.html", *((top / "assets").iterdir() if (top / "assets").is_dir() else ())]
        return {
            path.name: _File(mimetypes.guess_type(path.name)[0] or "application/octet-stream", path.read_bytes())
            for path in found
            if path.is_file()
        }


def _plain(content: str, status: int) -> web.Response:
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>workspace-agent</title>'
        "<style>:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;"
        f'padding:0 1rem}}</style></head><body>{content}<p><a href="/">Go to the page</a></p></body></html>\n'
    )
    headers = {**_HEADERS, "Content-Security-Policy": _PLAIN_POLICY, hdrs.CACHE_CONTROL: "no-store"}
    return web.Response(text=text, status=status, content_type="text/html", headers=headers)
