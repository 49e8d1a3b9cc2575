"""WebSockets and event streams: answers that end when somebody goes away, or when the server does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, ClassVar, Literal

import msgspec
from aiohttp import WSMsgType, hdrs, web

from agent.clock import Clock, deadline, wait_for
from agent.server.events import Subscription
from agent.server.http import Call
from agent.server.wire import encode

SEND_TIMEOUT = 30.0
"""A peer that takes nothing for so long is cut off; it can come back and go on from where it was."""
CLOSE_TIMEOUT = 5.0
HEARTBEAT = 15.0
"""Between two WebSocket pings (§1.8)."""
MAX_CLIENT_MESSAGE = 4096
"""Clients of one-way sockets have nothing to say; this only bounds what is read before they are told."""
NORMAL, GOING_AWAY = 1000, 1001


class PeerGoneError(Exception):
    """The peer went away, or took nothing for too long."""


class LongLived:
    """What is open, so that a server that stops can close it."""

    def __init__(self) -> None:
        self._closers: set[Callable[[], Awaitable[object]]] = set()

    @contextmanager
    def track(self, close: Callable[[], Awaitable[object]]) -> Iterator[None]:
        """`close` is called if the server stops while the body runs; the body is then expected to end by itself."""
        self._closers.add(close)
        try:
            yield
        finally:
            self._closers.discard(close)

    @contextmanager
    def ending(self) -> Iterator[asyncio.Event]:
        """An event that is set if the server stops while the body runs."""
        stopping = asyncio.Event()

        async def stop() -> None:
            stopping.set()

        with self.track(stop):
            yield stopping

    async def aclose(self) -> None:
        """Close everything at once; returns after `CLOSE_TIMEOUT` seconds at the latest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.gather(*(close() for close in tuple(self._closers)), return_exceptions=True)


def upgrade_refusal(request: web.Request) -> web.Response | None:
    """426 in the words of the Go server, when the request does not ask for a WebSocket (§1.8)."""
    for name, wanted in ((hdrs.CONNECTION, "Upgrade"), (hdrs.UPGRADE, "websocket")):
        value = request.headers.get(name, "")
        if wanted.lower() not in {token.strip().lower() for token in value.split(",")}:
            return web.Response(
                status=426,
                text=f'WebSocket protocol violation: {name} header "{value}" does not contain {wanted}\n',
                headers={hdrs.CONNECTION: "Upgrade", hdrs.UPGRADE: "websocket"},
            )
    return None


class Event(msgspec.Struct):
    """A message that says of what kind it is (§3.9)."""

    type: Literal["data", "ping", "error"]
    data: Any = None


class _Outlet:
    """An open answer. `response` is what the handler returns."""

    def __init__(self, request: web.Request, clock: Clock) -> None:
        self._request, self._clock = request, clock
        self._gone = asyncio.Event()

    async def wait(self, subscription: Subscription, seconds: float) -> None:
        """Until something was published, or so long. Raises `PeerGoneError`."""
        waits = [asyncio.create_task(self._gone.wait()), asyncio.create_task(subscription.wait())]
        try:
            with suppress(TimeoutError):
                await wait_for(self._clock, asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED), seconds)
        finally:
            for wait in waits:
                wait.cancel()
        if self._gone.is_set():
            raise PeerGoneError("the peer went away")

    async def _finish(self, write: Awaitable[None]) -> None:
        """A peer that takes too long is cut off: what waits for it would grow without a bound."""
        try:
            async with deadline(self._clock, SEND_TIMEOUT):
                await write
        except TimeoutError as error:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise PeerGoneError("the peer takes nothing") from error
        except (ConnectionError, RuntimeError) as error:
            raise PeerGoneError("the peer went away") from error


class OneWaySocket(_Outlet):
    """A WebSocket on which only the server speaks."""

    def __init__(self, response: web.WebSocketResponse, request: web.Request, clock: Clock) -> None:
        super().__init__(request, clock)
        self.response = response

    async def send(self, text: str) -> None:
        """Raises `PeerGoneError`."""
        await self._finish(self.response.send_str(text))

    async def send_bytes(self, data: bytes) -> None:
        """As a binary message. Raises `PeerGoneError`."""
        await self._finish(self.response.send_bytes(data))

    async def emit(self, kind: Literal["data", "ping", "error"], data: Any = None) -> None:
        """Raises `PeerGoneError`."""
        await self.send(encode(Event(kind, data)).decode())

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        await self.response.close(code=code, message=reason.encode())

    async def read(self, code: int, reason: str) -> None:
        """Until the peer goes away, or says something: then the socket is closed with `code` and `reason`."""
        try:
            message = await self.response.receive()
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                await self.close(code, reason)
        finally:
            self._gone.set()


class EventStream(_Outlet):
    """Server-sent events."""

    HEADERS: ClassVar = {
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-cache",
        "Connection": "keep-alive",
        "X-Accel-Buffering": "no",
    }

    def __init__(self, request: web.Request, clock: Clock) -> None:
        super().__init__(request, clock)
        self.response = web.StreamResponse(headers=self.HEADERS)

    async def emit(self, kind: Literal["data", "ping", "error"], data: Any = None) -> None:
        """Raises `PeerGoneError`."""
        value = b"" if kind == "ping" else b"data: " + encode(data)
        await self._finish(self.response.write(b"event: " + kind.encode() + b"\n" + value + b"\n"))

    async def close(self) -> None:
        self._gone.set()


@asynccontextmanager
async def event_stream(call: Call, clock: Clock, long_lived: LongLived) -> AsyncIterator[EventStream]:
    """Open the stream; `PeerGoneError` ends the body quietly."""
    stream = EventStream(call.request, clock)
    await stream.response.prepare(call.request)
    with long_lived.track(stream.close), suppress(PeerGoneError):
        yield stream


@asynccontextmanager
async def one_way(
    call: Call, clock: Clock, long_lived: LongLived, *, compress: bool, code: int = 1008, reason: str
) -> AsyncIterator[OneWaySocket]:
    """Accept the upgrade, which must have been asked for, and watch the client; `PeerGoneError` ends the body quietly.

    The heartbeat is aiohttp's own: it keeps one timer for as long as the socket is idle.
    """
    response = web.WebSocketResponse(heartbeat=HEARTBEAT, compress=compress, max_msg_size=MAX_CLIENT_MESSAGE)
    await response.prepare(call.request)
    socket = OneWaySocket(response, call.request, clock)
    reader = asyncio.create_task(socket.read(code, reason), name="one-way socket")
    try:
        with long_lived.track(lambda: socket.close(GOING_AWAY)), suppress(PeerGoneError):
            yield socket
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        with suppress(TimeoutError):
            await wait_for(clock, socket.close(), CLOSE_TIMEOUT)
