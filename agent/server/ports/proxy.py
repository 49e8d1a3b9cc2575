"""One request to a port of a workspace: may it, and then bytes both ways as they come.

HTTP is carried by aiohttp on both sides, with back-pressure from end to end; what is upgraded to a WebSocket becomes a
`Tunnel`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from uuid import UUID

import aiohttp
import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from yarl import URL

from agent.clock import Clock
from agent.server.http import AS_IS
from agent.server.longlived import LongLived
from agent.server.network import AgentNetwork, AgentUnreachableError, PortRefusedError
from agent.server.ports import headers as rules
from agent.server.ports.access import PASS_LIFETIME, TICKET, PortAccess
from agent.server.ports.origins import Origin, WildcardOrigins
from agent.server.ports.pages import page
from agent.server.ports.tunnel import Tunnel
from agent.server.store import QueryError, reason
from agent.tailnet.connector import TailnetConnector
from agent.tailnet.streams import TailnetStream

DIAL_LIMIT: Final = 10.0
"""Seconds; a browser that waits sees nothing, and the page that it gets then looks again by itself."""
RECHECK: Final = 30.0
"""Seconds after which it is asked again whether somebody may still have what goes on."""
LOOK: Final = 1.0
"""Seconds after which it is noticed that a browser went away which waits for a workspace."""
MAX_OPEN: Final = 512
"""Requests and WebSockets at the same time to one agent."""
MAX_HEAD: Final = 64 * 1024
MAX_HEADERS: Final = 512
_WITHOUT_OWN: Final = (hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.USER_AGENT, hdrs.CONTENT_TYPE)
"""Headers that aiohttp would make up where a browser sent none."""
_REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

log = structlog.get_logger("agent.server.ports")


class _RefusedError(Exception):
    """The browser gets a page instead of an answer."""

    def __init__(self, status: int, title: str, text: str, *, link: bool = False, retry: bool = False) -> None:
        super().__init__(text)
        self.status, self.title, self.text, self.link, self.retry = status, title, text, link, retry


class PortProxy:
    """Serves origins. `access_url` is where people find the control plane, without a slash at the end."""

    def __init__(
        self, access: PortAccess, network: AgentNetwork, long_lived: LongLived, clock: Clock, access_url: str
    ) -> None:
        self._access, self._network, self._long_lived, self._clock = access, network, long_lived, clock
        self._access_url = access_url
        self._open: Counter[UUID] = Counter()
        # A kept connection may end just when a request goes out on it. Only what may be repeated takes that risk.
        self._kept, self._single = self._session(keep=True), self._session(keep=False)

    async def aclose(self) -> None:
        """Close the connections to workspaces."""
        await self._kept.close()
        await self._single.close()

    async def serve(self, origin: Origin, request: web.Request) -> web.StreamResponse:
        """The answer to a request whose `Host` is the origin's."""
        try:
            return await self._serve(origin, request)
        except _RefusedError as refused:
            link = f"{self._access_url}/agents/{origin.agent}" if refused.link else ""
            return page(request, refused.status, refused.title, refused.text, link=link, retry=refused.retry)
        except ConnectionError:
            raise  # the browser is gone
        except QueryError as error:
            log.warning("cannot check who may open a port", error=reason(error))
            text = "The server cannot read its database. This page looks again by itself."
            return page(request, 503, "Not now", text, retry=True)
        except Exception:
            log.exception("a request to a port failed", agent=str(origin.agent), port=origin.port)
            return page(request, 500, "Something went wrong", "The server's log says what.")

    async def _serve(self, origin: Origin, request: web.Request) -> web.StreamResponse:
        target = request.raw_path
        if request.method in ("CONNECT", "TRACE") or not target.startswith("/"):
            raise _RefusedError(405, "Not possible here", f"{request.method} with this address is not passed on.")
        key = self._key(origin, request)
        visit = await self._access.visit(key, origin.agent) if key is not None else None
        clean, ticket = _split_ticket(target)
        if ticket is not None:
            if request.method != "GET":
                raise _RefusedError(405, "Not possible here", "Links to ports are opened with GET.")
            return await self._enter(origin, clean, ticket, admitted=visit is not None)
        if key is None or visit is None:
            text = f"Port {origin.port} of a workspace opens from the page of its agent."
            raise _RefusedError(401, "Open this from the agent's page", text, link=True)
        if rules.is_foreign(request.headers, request.method, origin):
            raise _RefusedError(403, "Refused", f"The request comes from another page, not from {origin.url}.")
        if not origin.lasting and request.headers.get("Service-Worker") == "script":
            text = "Service workers need an address that stays: the server has to be started with --workspace-url."
            raise _RefusedError(403, "No service workers here", text)
        if visit.status != "connected":
            raise _away(f'The agent\'s state is "{visit.status}".')
        with self._counted(origin.agent):
            return await self._while_allowed(origin, request, key, self._exchange(origin, request, target))

    # ---- who it is

    def _key(self, origin: Origin, request: web.Request) -> str | None:
        """The key of the first pass that is one: others of that name come from pages on the same host."""
        for header in request.headers.getall(hdrs.COOKIE, ()):
            for part in header.split(";"):
                name, _, value = part.strip().partition("=")
                if name == origin.cookie and (key := self._access.key_of(value, origin)) is not None:
                    return key
        return None

    async def _enter(self, origin: Origin, clean: str, ticket: str, *, admitted: bool) -> web.Response:
        """To the same address without the ticket, which is used up. Who is in already may have used it before."""
        response = web.Response(status=303)
        response.headers[hdrs.LOCATION] = origin.url + clean
        response.headers[hdrs.CACHE_CONTROL] = "no-store"
        response.headers["Referrer-Policy"] = "no-referrer"
        made = await self._access.redeem(ticket, origin)
        if made is None and not admitted:
            text = "Links to ports are good once, for a minute. The agent's page has a new one."
            raise _RefusedError(403, "This link was used before or has expired", text, link=True)
        if not origin.lasting and not admitted:
            response.headers["Clear-Site-Data"] = '"cache", "storage"'
        if made is not None:
            response.set_cookie(
                origin.cookie,
                made.value,
                max_age=PASS_LIFETIME,
                path="/",
                httponly=True,
                samesite="Lax",
                secure=origin.secure,
            )
        return response

    @contextmanager
    def _counted(self, agent: UUID) -> Iterator[None]:
        if self._open[agent] >= MAX_OPEN:
            text = f"{MAX_OPEN} requests to ports of this workspace are going on. One of them has to end first."
            raise _RefusedError(503, "Too much at once", text, retry=True)
        self._open[agent] += 1
        try:
            yield
        finally:
            self._open[agent] -= 1
            if not self._open[agent]:
                del self._open[agent]

    async def _while_allowed(
        self, origin: Origin, request: web.Request, key: str, work: Coroutine[Any, Any, web.StreamResponse]
    ) -> web.StreamResponse:
        """The outcome of `work`, which ends with the browser's connection, with its permission and with the server."""
        task = asyncio.create_task(work, name="port: exchange")
        watch = asyncio.create_task(self._until_over(origin, request, key), name="port: permission")

        async def stop() -> None:
            watch.cancel()

        try:
            with self._long_lived.track(stop):
                await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the browser went away, or may not have this any more")
        finally:
            for one in (task, watch):
                one.cancel()
            await asyncio.gather(task, watch, return_exceptions=True)

    async def _until_over(self, origin: Origin, request: web.Request, key: str) -> None:
        """aiohttp does not tell a handler that its browser is gone."""
        checked = self._clock.now()
        while request.transport is not None:
            await self._clock.sleep(LOOK)
            if self._clock.now() - checked >= RECHECK:
                checked = self._clock.now()
                try:
                    if await self._access.visit(key, origin.agent) is None:
                        return
                except QueryError as error:
                    # What somebody works with does not end because the database is away for a moment.
                    log.warning("cannot check who may have a port open", error=reason(error))

    # ---- the workspace

    def _session(self, *, keep: bool) -> aiohttp.ClientSession:
        async def dial(host: str, port: int) -> TailnetStream:
            return await self._network.dial(UUID(host), port, DIAL_LIMIT)

        connector = TailnetConnector(
            dial, self._clock, unreachable=(AgentUnreachableError,), limit=0, force_close=not keep
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_WITHOUT_OWN,
            # How long a program may take for its answer is its own business; the browser ends what nobody waits for.
            timeout=aiohttp.ClientTimeout(),
            max_line_size=MAX_HEAD,
            max_field_size=MAX_HEAD,
            max_headers=MAX_HEADERS,
        )

    async def _exchange(self, origin: Origin, request: web.Request, target: str) -> web.StreamResponse:
        websocket = rules.wants_websocket(request.headers, request.method)
        sent = rules.to_workspace(request.raw_headers, origin, request.remote or "", websocket=websocket)
        async with self._answer(origin, request, target, sent, websocket=websocket) as answer:
            headers = rules.to_browser(answer.raw_headers, origin)
            request[AS_IS] = frozenset(name.lower() for name in headers)
            response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
            if answer.status == 101:
                if not websocket:
                    raise _RefusedError(502, "No answer", f"Port {origin.port} changed to another protocol unasked.")
                response.headers.update({hdrs.CONNECTION: "Upgrade", hdrs.UPGRADE: "websocket"})
                await response.prepare(request)
                await self._join(request, answer)
                return response
            try:
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
            except ConnectionError:
                raise  # the browser is gone
            except Exception as error:
                # The browser must not take for whole what is not, and there is no place for a page any more.
                log.info("an answer of a port broke off", agent=str(origin.agent), port=origin.port, error=str(error))
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError("the workspace's answer broke off") from error
            return response

    @asynccontextmanager
    async def _answer(
        self, origin: Origin, request: web.Request, target: str, sent: Any, *, websocket: bool
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The head of the workspace's answer. Raises `_RefusedError` where there is none."""
        repeatable = request.method in _REPEATABLE and not request.body_exists and not websocket
        session = self._kept if repeatable else self._single
        # All of the target as an encoded path: in this way yarl changes nothing, not even an empty query.
        url = URL.build(scheme="http", host=str(origin.agent), port=origin.port, path=target, encoded=True)
        body = request.content.iter_any() if request.body_exists else None
        try:
            answer = await session.request(request.method, url, headers=sent, data=body, allow_redirects=False)
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.__cause__, PortRefusedError):
                text = f"In the workspace nothing answers on port {origin.port} yet. This page looks again by itself."
                raise _RefusedError(502, f"Nothing listens on port {origin.port}", text, retry=True) from error
            raise _away(f"{error.os_error}.") from error
        except aiohttp.ClientError as error:
            text = f"What listens on port {origin.port} of the workspace does not answer with HTTP: {error}."
            raise _RefusedError(502, "No answer", text) from error
        async with answer:
            yield answer

    async def _join(self, request: web.Request, answer: aiohttp.ClientResponse) -> None:
        tunnel = Tunnel(request, answer)
        try:
            await tunnel.wait_closed()
        finally:
            tunnel.abort()


def by_host(origins: WildcardOrigins, proxy: PortProxy) -> Middleware:
    """A middleware: requests to the hosts of ports do not get any further."""

    @web.middleware
    async def choose(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not origins.covers(request.host):
            return await handler(request)
        origin = origins.find(request.host)
        if origin is None:
            return page(request, 404, "No port has this address", f"{request.host} belongs to no port of a workspace.")
        return await proxy.serve(origin, request)

    return choose


async def leave_as_is(request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: takes out what aiohttp adds to an answer of a workspace."""
    names = request.get(AS_IS)
    if names is not None:
        for added in (hdrs.SERVER, hdrs.CONTENT_TYPE):
            if added.lower() not in names:
                response.headers.pop(added, None)


def _away(reason: str) -> _RefusedError:
    text = f"{reason} This page looks again by itself."
    return _RefusedError(503, "The agent is away", text, link=True, retry=True)


def _split_ticket(target: str) -> tuple[str, str | None]:
    """What is asked for, and the ticket that it came with, if any."""
    path, _, query = target.partition("?")
    items = [(item, *item.partition("=")[::2]) for item in query.split("&")]
    tickets = [value for _, name, value in items if name == TICKET]
    if not tickets:
        return target, None
    rest = "&".join(item for item, name, _ in items if name != TICKET)
    return f"{path}?{rest}" if rest else path, tickets[0]
