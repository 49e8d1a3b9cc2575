"""Without a wildcard host: a listening socket of its own for each port that somebody opened."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from agent.clock import Clock
from agent.server.listening import bind, serving
from agent.server.ports.origins import Origin, OriginsUnavailableError
from agent.server.ports.pages import page
from agent.server.ports.proxy import leave_as_is

IDLE: Final = 1800.0
"""Seconds without a request after which a socket is closed …"""
IDLE_CHECK: Final = 60.0
"""… and how often that is looked at."""
MAX_LISTENERS: Final = 256
MAX_OF_AGENT: Final = 32
"""Of more than that, those make way that were used least recently."""
_SILENT: Final = 256
"""Connections without a request that one socket bears."""

log = structlog.get_logger("agent.server.ports")

Serve = Callable[[Origin, web.Request], Awaitable[web.StreamResponse]]


class _Place(NamedTuple):
    agent: UUID
    port: int
    name: str
    """The host by which it is called."""


@dataclass(eq=False, slots=True)
class _Listener:
    origin: Origin
    used: float
    requests: int = 0
    """That are going on."""
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def value(self) -> tuple[bool, float]:
        """The least makes way first."""
        return self.requests > 0, self.used


class ListenerOrigins:
    """Listens on `address`, which is where the control plane listens on `port`; people find that at `access_url`.

    The origins have the control plane's host name and another port. On a machine's own addresses they have the other
    name of it (`localhost` beside 127.0.0.1), so that at least there no cookies are shared with the control plane.
    """

    def __init__(self, serve: Serve, clock: Clock, *, address: str, port: int, access_url: str) -> None:
        self._serve, self._clock, self._address = serve, clock, address
        parts = urlsplit(access_url)
        self._host = parts.hostname or ""
        self._direct = parts.scheme == "http" and (parts.port or 80) == port
        self._listeners: dict[_Place, _Listener] = {}
        self._lock = asyncio.Lock()
        self._expiry: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    async def open(self, agent: UUID, port: int, host: str) -> Origin:
        if not self._direct:
            raise OriginsUnavailableError(
                "this server is reached through a proxy or a changed port, where a port of the workspace gets no "
                "address of its own: start it with --workspace-url 'https://*.ws.example.com', a wildcard host whose "
                "requests come to it, too"
            )
        place = _Place(agent, port, self._name(host))
        async with self._lock:
            if self._closed:
                raise OriginsUnavailableError("the server stops")
            listener = self._listeners.get(place)
            if listener is None:
                self._make_room(agent)
                listener = self._listeners[place] = await self._listen(place)
            listener.used = self._clock.now()
            if self._expiry is None:
                self._expiry = asyncio.create_task(self._expire(), name="ports: idle sockets")
        return listener.origin

    async def aclose(self) -> None:
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
            await asyncio.gather(self._expiry, return_exceptions=True)
        for place in list(self._listeners):
            self._close(place)
        if self._closing:
            await asyncio.wait(self._closing)

    def _name(self, host: str) -> str:
        called = (urlsplit(f"//{host}").hostname or "").lower()
        if not _is_loopback(self._host):
            name = self._host
        elif called == "localhost":
            name = "::1" if ":" in self._address else "127.0.0.1"
        else:
            name = "localhost"
        return f"[{name}]" if ":" in name else name

    async def _listen(self, place: _Place) -> _Listener:
        try:
            bound = await asyncio.to_thread(bind, self._address, 0)
        except OSError as error:
            reason = os.strerror(error.errno).lower() if error.errno else str(error)
            raise OriginsUnavailableError(f"cannot listen on another port of {self._address}: {reason}") from error
        origin = Origin(place.agent, place.port, "http", f"{place.name}:{bound.getsockname()[1]}", lasting=False)
        listener = _Listener(origin, self._clock.now())
        listener.stack.callback(bound.close)

        @web.middleware
        async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.host.lower() != origin.netloc:
                return page(request, 421, "Wrong address", f"This is {origin.url}, and nothing else.")
            listener.requests += 1
            try:
                return await self._serve(origin, request)
            finally:
                listener.requests -= 1
                listener.used = self._clock.now()

        app = web.Application(middlewares=[answer])
        app.on_response_prepare.append(leave_as_is)
        try:
            await listener.stack.enter_async_context(serving(app, bound, most_silent=_SILENT))
        except BaseException:
            await listener.stack.aclose()
            raise
        return listener

    def _make_room(self, agent: UUID) -> None:
        own = [place for place in self._listeners if place.agent == agent]
        for places, most in ((own, MAX_OF_AGENT), (list(self._listeners), MAX_LISTENERS)):
            if len(places) >= most:
                self._close(min(places, key=lambda place: self._listeners[place].value))
                return

    def _close(self, place: _Place) -> None:
        """In the background: what goes on there gets a few seconds."""
        listener = self._listeners.pop(place)
        task = asyncio.create_task(listener.stack.aclose(), name="ports: closing")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _expire(self) -> None:
        while True:
            await self._clock.sleep(IDLE_CHECK)
            now = self._clock.now()
            for place, listener in list(self._listeners.items()):
                if not listener.requests and now - listener.used >= IDLE:
                    self._close(place)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
