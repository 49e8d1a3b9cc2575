"""An application on a listening socket, with bounds for those who connect and then say or take nothing.

Everything behind the first head of a request has its own deadlines (`http`, `longlived`, `relay`). What is here holds
for whoever has not got that far, and for answers that nobody takes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog
from aiohttp import web

HEAD_TIMEOUT: Final = 75.0
"""Seconds for the head of a request, and between two requests of a connection: reverse proxies that keep connections
for a minute close theirs first."""
UNTAKEN_TIMEOUT: Final = 60.0
"""Seconds that a peer may leave bytes lying which were sent to it; also where it answers that its window is full."""
MAX_SILENT: Final = 4096
"""Connections without a first request. Of more than that, those that have said nothing for longest make way."""
FEW: Final = 64
MAX_HEAD: Final = 32 * 1024
SHUTDOWN_TIMEOUT: Final = 5.0
BACKLOG: Final = 1024

log = structlog.get_logger("agent.server")


def bind(address: str, port: int) -> socket.socket:
    """A bound socket; looks the address up, which may take its time. Raises `OSError`."""
    family, kind, protocol, _, target = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(target)
    except BaseException:
        bound.close()
        raise
    return bound


class FrontDoor:
    """Makes the protocols of accepted connections, and knows which of them have not yet made a request."""

    def __init__(self, make: Callable[[], web.RequestHandler], most: int) -> None:
        self._make, self._most = make, most
        self._silent: dict[web.RequestHandler, None] = {}
        self._crowd = FEW
        """At so many it is looked who of them is still there."""
        self.displaced = 0
        """Connections that made way for others before they made a request."""

    @property
    def silent(self) -> int:
        """Connections without a request; some of them may have gone already."""
        return len(self._silent)

    def __call__(self) -> web.RequestHandler:
        if len(self._silent) >= self._crowd:
            self._look_around()
        handler = self._make()
        self._silent[handler] = None
        return handler

    @web.middleware
    async def hear(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """The outermost middleware: whoever makes a request is silent no more."""
        self._silent.pop(request.protocol, None)
        return await handler(request)

    def _look_around(self) -> None:
        """Not for every connection: the price of looking at all is shared by as many new ones as an eighth of all."""
        self._silent = {handler: None for handler in self._silent if handler.transport is not None}
        excess = len(self._silent) - self._most * 7 // 8
        if excess > 0:
            for handler in list(self._silent)[:excess]:
                del self._silent[handler]
                handler.force_close()
            self.displaced += excess
            log.warning("too many connections without a request: the oldest of them were closed", closed=excess)
        self._crowd = min(max(2 * len(self._silent), FEW), self._most)


@asynccontextmanager
async def serving(
    app: web.Application,
    bound: socket.socket,
    *,
    head_timeout: float = HEAD_TIMEOUT,
    untaken_timeout: float = UNTAKEN_TIMEOUT,
    most_silent: int = MAX_SILENT,
) -> AsyncIterator[FrontDoor]:
    """Serve `app` on a bound socket for as long as the body runs; then what goes on gets `SHUTDOWN_TIMEOUT`."""
    # Inherited by what is accepted. Without it an answer that nobody reads would be kept for as long as its reader
    # lives: the kernel asks for ever whether there is room again.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(untaken_timeout * 1000))

    def accept() -> web.RequestHandler:
        assert runner.server is not None, "it is there from `setup` to `cleanup`"
        return runner.server()

    door = FrontDoor(accept, most_silent)
    app.middlewares.insert(0, door.hear)
    runner = web.AppRunner(
        app,
        access_log=None,
        shutdown_timeout=SHUTDOWN_TIMEOUT,
        keepalive_timeout=head_timeout,
        max_line_size=MAX_HEAD,
        max_field_size=MAX_HEAD,
        # What is sent to a workspace goes there as it is; nothing of ours takes compressed bodies.
        auto_decompress=False,
    )
    await runner.setup()
    try:
        listener = await asyncio.get_running_loop().create_server(door, sock=bound, backlog=BACKLOG)
        try:
            yield door
        finally:
            listener.close()
    finally:
        await runner.cleanup()
