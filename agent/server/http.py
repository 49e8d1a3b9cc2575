"""What every request goes through: who is it, how often, is it well-formed, and how the answer is written."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import structlog
from aiohttp import hdrs, web

from agent.clock import Clock, deadline
from agent.server.auth import AgentPrincipal, Authenticator, UserPrincipal
from agent.server.errors import ApiError, ErrorBody, forbidden
from agent.server.limits import RateLimiter
from agent.server.routes import Route
from agent.server.wire import B, decode, encode, parse_uuid

BODY_TIMEOUT = 60.0
JSON_TYPE = "application/json; charset=utf-8"
API = "/api/v2/"
BYPASS = "X-Coder-Bypass-Ratelimit"
REQUEST_ID = web.RequestKey("request_id", str)
RATE_LIMIT_HEADERS = web.RequestKey("rate_limit_headers", dict[str, str])
AS_IS = web.RequestKey("as_is", frozenset[str])
"""Set where the answer is a workspace's own, to the names of its headers: nothing is added to it."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

log = structlog.get_logger("agent.server.http")


class Call:
    """One request, authenticated, on its way to a handler."""

    def __init__(self, request: web.Request, route: Route, clock: Clock, principal: object) -> None:
        self.request, self.route, self._clock, self._principal = request, route, clock, principal

    @property
    def user(self) -> UserPrincipal:
        """Who asks, on a route for users."""
        assert isinstance(self._principal, UserPrincipal)
        return self._principal

    @property
    def agent(self) -> AgentPrincipal:
        """Which agent asks, on a route for agents."""
        assert isinstance(self._principal, AgentPrincipal)
        return self._principal

    def path(self, name: str) -> str:
        """A segment of the path, decoded."""
        return self.request.match_info[name]

    def uuid(self, name: str) -> UUID:
        """A segment of the path that is a UUID. Raises `ApiError` 400."""
        text = self.path(name)
        try:
            return parse_uuid(text)
        except ValueError as error:
            raise ApiError(400, f'Invalid UUID "{text}".', str(error)) from error

    @property
    def query(self) -> Mapping[str, str]:
        """The query; of a parameter given twice, the first value."""
        return self.request.query

    async def read(self) -> bytes:
        """The raw body. Raises `ApiError` 413 above the route's limit, 408 when it does not arrive in time."""
        limit = self.route.body_limit
        too_large = ApiError(413, "Request body too large.", f"The limit of this endpoint is {limit} bytes.")
        if (self.request.content_length or 0) > limit:
            raise too_large
        body = bytearray()
        try:
            async with deadline(self._clock, BODY_TIMEOUT):
                async for chunk in self.request.content.iter_any():
                    body += chunk
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise ApiError(408, "The request body did not arrive in time.") from None
        return bytes(body)

    async def body(self, kind: type[B], *, nul: bool = False) -> B:
        """The JSON body. `nul`: strings may contain NUL, which the database does not store. Raises `ApiError`."""
        assert self.route.request is kind, "what the route declares is what it decodes"
        data = await self.read()
        if not nul and rb"\u0000" in data:
            raise ApiError(400, "Request body must not contain NUL characters.")
        return decode(data, kind)


def reply(value: Any = None, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer; without a value, `null`."""
    response = web.Response(body=encode(value), status=status, headers=headers)
    response.headers[hdrs.CONTENT_TYPE] = JSON_TYPE
    return response


def no_content() -> web.Response:
    return web.Response(status=204)


class Front:
    """Puts routes into an aiohttp application, with everything that all of them share."""

    def __init__(
        self, auth: Authenticator, clock: Clock, *, build_version: str, access_url: str, rate_limit: int
    ) -> None:
        self._auth, self._clock = auth, clock
        self._access_host = urlsplit(access_url).netloc.lower()
        self._build_version, self._rate_limit = build_version, rate_limit
        self._limiter = RateLimiter()

    def install(self, app: web.Application, routes: Iterable[Route]) -> None:
        app.middlewares.append(self._guard)
        app.on_response_prepare.append(self._add_headers)
        for route in routes:
            # `me` is no agent's id (agent-api.md §2): what is not served there is not found, or has the wrong method.
            path = route.path.replace("{workspaceagent}", "{workspaceagent:(?!me/)[^/]+}")
            app.router.add_route(route.method, path, partial(self._serve, route))

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        if AS_IS in request:
            return
        response.headers[hdrs.SERVER] = "workspace-agent"
        response.headers["X-Coder-Build-Version"] = self._build_version
        response.headers["X-Coder-Request-Id"] = request_id(request)
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        for name, value in request.get(RATE_LIMIT_HEADERS, {}).items():
            response.headers[name] = value

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Whatever goes wrong below becomes an answer in the form of §1.5."""
        try:
            try:
                return await handler(request)
            except web.HTTPException as error:
                # Only the router raises these. Unknown paths are counted too.
                if request.path.startswith(API):
                    self._limit(request, request.remote, None)
                return _unrouted(error)
        except ApiError as error:
            return reply(error.body, error.status, error.headers)
        except Exception as error:
            if request.transport is None:
                raise ConnectionResetError("the client went away") from error
            log.exception("request failed", method=request.method, path=request.path, request_id=request_id(request))
            body = ErrorBody("An internal server error occurred.", f"The log has it as {request_id(request)}.")
            return reply(body, 500)

    async def _serve(self, route: Route, request: web.Request) -> web.StreamResponse:
        if "\0" in request.path or "\0" in request.query_string:
            raise ApiError(400, "The address must not contain NUL characters.")
        try:
            principal = await self._auth.authenticate(route.auth, request)
        except ApiError:
            self._limit(request, request.remote, route)
            raise
        self._limit(request, principal or request.remote, route)
        if route.owner_only and not (isinstance(principal, UserPrincipal) and principal.is_owner):
            raise forbidden()
        self._check_origin(route, request)
        return await route.handler(Call(request, route, self._clock, principal))

    def _limit(self, request: web.Request, caller: object, route: Route | None) -> None:
        """Counts per caller and path. Agents count each on their own, not all behind one address together. Who is
        nobody counts per route: as many paths as they like to make up must not displace what others are counted by."""
        limit = route.rate_limit if route and route.rate_limit is not None else self._rate_limit
        if limit <= 0 or not request.path.startswith((API, "/login")):
            return
        if request.headers.get(BYPASS) == "true":
            if isinstance(caller, UserPrincipal) and caller.is_owner:
                return
            raise ApiError(428, f'"{BYPASS}" was given, but you are no owner.')
        key = caller, route.path if route else ""
        if isinstance(caller, UserPrincipal | AgentPrincipal):
            key = caller.id, request.path
        verdict = self._limiter.check(key, limit, self._clock.now())
        request[RATE_LIMIT_HEADERS] = verdict.headers(self._clock.wall() // 1_000_000_000)
        if not verdict.allowed:
            raise ApiError(429, f"You've been rate limited for sending more than {limit} requests in 1m0s.")

    def _check_origin(self, route: Route, request: web.Request) -> None:
        """A browser tells where a request comes from; programs send no Origin. Foreign pages may neither open our
        WebSockets nor change anything: not by the cookie, nor, on a server that is still without users, without."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None:
            return
        guarded = route.websocket or request.method not in SAFE_METHODS
        if guarded and _host_of(origin) not in (request.host.lower(), self._access_host):
            raise ApiError(403, "Forbidden.", f'The request origin "{origin}" is not the host "{request.host}".')


def _host_of(origin: str) -> str:
    """Host and port; empty, which is no host of ours, for what is no origin."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def request_id(request: web.Request) -> str:
    """The random id of a request, made when it is first asked for."""
    if REQUEST_ID not in request:
        request[REQUEST_ID] = str(uuid.uuid4())
    return request[REQUEST_ID]


def _unrouted(error: web.HTTPException) -> web.Response:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return web.Response(status=405, headers={"Allow": allowed})
    if error.status == 404:
        return reply(ErrorBody("Route not found."), 404)
    return reply(ErrorBody(error.reason), error.status)
