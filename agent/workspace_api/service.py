"""The HTTP API on streams of the tailnet. Nothing of it is loaded before somebody connects."""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import logging
from typing import TYPE_CHECKING, Final, Protocol

from agent.clock import Clock
from agent.workspace_api.deadline import RequestDeadline
from agent.workspace_api.views import Views

if TYPE_CHECKING:
    from aiohttp import web

    from agent.tailnet.transport import ByteStream

    class Stream(ByteStream, Protocol):
        """A connection that knows its peer: `agent.tailnet.streams.TailnetStream`."""

        @property
        def peer(self) -> tuple[bytes, int]: ...


logger = logging.getLogger("agent.workspace_api")

PORT: Final = 4
MAX_CONNECTIONS: Final = 256


class WorkspaceApi:
    """`serve` is the handler of port 4 (terminal-ssh-http.md §4). Whoever reaches it may ask: the tailnet decides who
    that is."""

    def __init__(self, views: Views, clock: Clock) -> None:
        self._views = views
        self._clock = clock
        self._starting: asyncio.Task[web.AppRunner] | None = None
        self._connections = 0

    async def serve(self, stream: Stream) -> None:
        """Answer the requests of one connection until it ends."""
        if self._connections >= MAX_CONNECTIONS:
            logger.warning("the HTTP API has %d connections: one more was refused", MAX_CONNECTIONS)
            stream.abort()
            return
        self._connections += 1
        try:
            if self._starting is None:
                self._starting = asyncio.create_task(self._start(), name="workspace API")
            runner = await asyncio.shield(self._starting)
            await self._converse(runner, stream)
        finally:
            self._connections -= 1

    async def aclose(self) -> None:
        """Stop, once no `serve` is at work any more."""
        if self._starting is not None:
            runner = await self._starting
            await runner.cleanup()

    async def _start(self) -> web.AppRunner:
        # In a thread: the first import of aiohttp's server half takes tens of milliseconds.
        await asyncio.to_thread(importlib.import_module, "agent.workspace_api.app")
        from agent.workspace_api.app import make_runner

        runner = make_runner(self._views, self._clock)
        await runner.setup()
        return runner

    async def _converse(self, runner: web.AppRunner, stream: Stream) -> None:
        from agent.tailnet.transport import StreamTransport

        assert runner.server is not None
        address, port = stream.peer
        deadline = RequestDeadline(self._clock)
        extra = {"peername": (str(ipaddress.IPv6Address(address)), port), "deadline": deadline}
        transport = StreamTransport(stream, runner.server(), self._clock, extra)
        ended = asyncio.create_task(transport.wait_closed())
        expired = asyncio.create_task(deadline.expired())
        try:
            await asyncio.wait({ended, expired}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() and not deadline.answering and not transport.get_write_buffer_size():
                transport.close()  # a client that keeps a connection without using it deserves a FIN
            elif not ended.done():
                transport.abort()
            await ended
        finally:
            transport.abort()
            expired.cancel()
            ended.cancel()
