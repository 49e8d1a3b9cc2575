"""What a browser gets: the agents with their states, and the ways to log in. No scripts."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from urllib.parse import parse_qs

from aiohttp import web

from agent.clock import Clock
from agent.server.api import models
from agent.server.api.users import LOGIN_RATE, Users
from agent.server.auth import Authenticator, UserPrincipal, find_token
from agent.server.errors import ApiError
from agent.server.http import Call
from agent.server.routes import Auth, Route, Text
from agent.server.store import Database, agents, workspaces

_HTML = Text("text/html")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 3rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .4rem .8rem .4rem 0 }
th { border-bottom: 1px solid } input { display: block; margin: .2rem 0 1rem; padding: .3rem } .bad { color: #b00020 }
"""
_LOGIN = """
<form method="post" action="/login">
<label>E-mail<input name="email" type="text" autocomplete="username" required></label>
<label>Password<input name="password" type="password" autocomplete="current-password" required></label>
<button>Log in</button>
</form>
"""


class Page:
    """The routes outside `/api/v2`."""

    def __init__(self, database: Database, auth: Authenticator, users: Users, clock: Clock) -> None:
        self._database, self._auth, self._users, self._clock = database, auth, users, clock

    def routes(self) -> list[Route]:
        def route(method: str, path: str, handler: object, summary: str) -> Route:
            return Route(
                method=method,
                path=path,
                handler=handler,  # type: ignore[arg-type] # one of the methods below
                summary=summary,
                auth=Auth.NONE,
                responses={200: _HTML},
                rate_limit=LOGIN_RATE if path == "/login" else None,
                body_limit=16 * 1024,
            )

        return [
            route("GET", "/", self.index, "The agents, for people"),
            route("GET", "/login", self.redeem, "Log in by a one-time link"),
            route("POST", "/login", self.log_in, "Log in by the form"),
        ]

    async def index(self, call: Call) -> web.StreamResponse:
        user = await self._auth.user(find_token(call.request))
        if user is None:
            return _page("Log in", _LOGIN)
        return _page("Agents", await self._agents(user), refresh=True)

    async def redeem(self, call: Call) -> web.StreamResponse:
        token = await self._users.redeem_link(call.query.get("code", ""))
        if token is None:
            return _refused("This link was used before or has expired. Ask for a new one.", 400)
        return self._logged_in(token)

    async def log_in(self, call: Call) -> web.StreamResponse:
        try:
            fields = parse_qs((await call.read()).decode(errors="replace"), max_num_fields=10)
        except ValueError:
            return _refused("This is not what the form sends.", 400)
        try:
            token = await self._users.log_in(*(fields.get(name, [""])[0] for name in ("email", "password")))
        except ApiError as error:
            return _refused(error.body.message, error.status)
        return self._logged_in(token)

    def _logged_in(self, token: str) -> web.StreamResponse:
        response = web.Response(status=303, headers={**_HEADERS, "Location": "/"})
        self._users.set_cookie(response, token)
        return response

    async def _agents(self, user: UserPrincipal) -> str:
        async with self._database.reading() as session:
            rows = await agents.newest(session, None if user.is_owner else user.id)
            latest = await workspaces.latest_builds(session, [row.workspace.id for row in rows])
        now = self._clock.wall() // 1000
        found = [models.summary(row, latest[row.workspace.id], now) for row in rows]
        if not found:
            return "<p>No agents yet: <code>workspace-agent agents create -f FILE</code> makes one.</p>"
        return (
            f"<table>{_row('th', ('Agent', 'Owner', 'Status', 'Lifecycle', 'Build', 'Version'))}{_rows(found)}</table>"
        )


def _rows(found: Iterable[models.AgentSummary]) -> str:
    return "".join(
        _row(
            "td",
            (
                agent.name,
                agent.owner_name,
                agent.status if agent.health.healthy else f"{agent.status} ({agent.health.reason})",
                agent.lifecycle_state,
                f"{agent.build.number} ({agent.build.transition}, {agent.build.status})",
                agent.version,
            ),
        )
        for agent in found
    )


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _refused(message: str, status: int) -> web.Response:
    return _page("Log in", f'<p class="bad">{escape(message)}</p>{_LOGIN}', status=status)


def _page(title: str, content: str, *, status: int = 200, refresh: bool = False) -> web.Response:
    again = '<meta http-equiv="refresh" content="5">' if refresh else ""
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title} · workspace-agent</title>{again}'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>{content}</body></html>\n"
    )
    return web.Response(text=text, status=status, content_type="text/html", headers=_HEADERS)
