"""GET /derp and /derp/latency-check: the relay over HTTP (tailnet.md §5.1, §5.2, §5.6)."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog
from aiohttp import WSMsgType, hdrs, web

from agent.clock import Clock, deadline
from agent.protocol.derp import MAX_CLIENT_FRAME, PROTOCOL_VERSION, DerpError
from agent.server.http import Call
from agent.server.longlived import GOING_AWAY, LongLived
from agent.server.relay import WRITE_TIMEOUT, Connection, Relay
from agent.server.routes import EMPTY, Auth, Route

SUBPROTOCOL = "derp"
MAX_MESSAGE = 32 * 1024
"""Bytes of a WebSocket message that we send: clients of 2024 take no larger ones."""
BATCH = 256 * 1024
"""Bytes of one write to a connection without messages."""
PROTOCOL_ERROR, UNSUPPORTED_DATA = 1002, 1003

log = structlog.get_logger("agent.server.derp")


class Derp:
    """The relay's two endpoints. Clients show no token: who has a node key and proves it may use the relay."""

    def __init__(self, relay: Relay, long_lived: LongLived, clock: Clock) -> None:
        self._relay, self._long_lived, self._clock = relay, long_lived, clock

    def routes(self) -> list[Route]:
        return [
            Route(
                method="GET",
                path="/derp",
                handler=self.connect,
                summary="The DERP relay: by `Upgrade: DERP`, or a WebSocket with the subprotocol `derp`",
                auth=Auth.NONE,
                responses={101: EMPTY},
            ),
            Route(
                method="GET",
                path="/derp/latency-check",
                handler=self.latency_check,
                summary="Answers at once, for clients that choose their nearest relay",
                auth=Auth.NONE,
                responses={200: EMPTY},
            ),
        ]

    async def latency_check(self, call: Call) -> web.StreamResponse:
        return web.Response()

    async def connect(self, call: Call) -> web.StreamResponse:
        """Until the connection ends."""
        request = call.request
        upgrade = request.headers.get(hdrs.UPGRADE, "").lower()
        if upgrade not in ("derp", "websocket"):
            headers = {hdrs.UPGRADE: "DERP", hdrs.CONNECTION: "Upgrade"}
            return web.Response(status=426, text="DERP requires connection upgrade\n", headers=headers)
        if upgrade == "websocket" and SUBPROTOCOL in request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, ""):
            return await self._websocket(request)
        return await self._upgraded(request)

    async def _upgraded(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client went away")
        link = _UpgradedLink(transport, request.protocol, self._clock)
        link.connection = self._relay.connect(link)
        headers = {
            hdrs.UPGRADE: "DERP",
            hdrs.CONNECTION: "Upgrade",
            "Derp-Version": str(PROTOCOL_VERSION),
            "Derp-Public-Key": self._relay.public_key.hex(),
        }
        response = web.StreamResponse(status=101, headers=headers)
        try:
            if request.headers.get("Derp-Fast-Start") != "1":
                await response.prepare(request)
            if request.transport is None:  # aiohttp heard of the end, which `link` never would
                raise ConnectionResetError("the client went away")
            link.start()
            with self._long_lived.track(link.aclose):
                await link.closed.wait()
        finally:
            link.abort()
        # aiohttp learns that the connection is gone, and writes nothing more.
        return response

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,), compress=False, max_msg_size=MAX_CLIENT_FRAME + 1, timeout=WRITE_TIMEOUT
        )
        link = _WebSocketLink(request, self._clock)
        connection = self._relay.connect(link)
        try:
            await socket.prepare(request)
            writer = asyncio.create_task(link.write_all(connection, socket), name="relay over WebSocket")
            try:
                with self._long_lived.track(lambda: socket.close(code=GOING_AWAY)):
                    await self._read(connection, socket)
            finally:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)
        finally:
            connection.close()
        return socket

    async def _read(self, connection: Connection, socket: web.WebSocketResponse) -> None:
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                try:
                    connection.receive(bytes(message.data))
                except DerpError as error:
                    log.info("relay: closed a connection", reason=str(error))
                    await socket.close(code=PROTOCOL_ERROR, message=str(error).encode()[:120])
                    return
            elif message.type is WSMsgType.TEXT:
                await socket.close(code=UNSUPPORTED_DATA, message=b"expected a binary message")
                return


class _UpgradedLink(asyncio.Protocol):
    """Takes a connection over from aiohttp, by way of asyncio's `set_protocol`.

    What aiohttp has read already is lost, but no client has anything to say before it knows the relay's key, and its
    own protocol object is still told that the connection ended, so that it forgets it.
    """

    connection: Connection

    def __init__(self, transport: asyncio.Transport, http: asyncio.BaseProtocol, clock: Clock) -> None:
        self._transport, self._http, self._clock = transport, http, clock
        self._loop = asyncio.get_running_loop()
        self._started = self._paused = False
        self._resumed = 0
        self._watch: asyncio.Task[None] | None = None
        self.closed = asyncio.Event()

    def start(self) -> None:
        """From now on the bytes are DERP's."""
        self._transport.set_protocol(self)
        self._started = True
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            self.connection.receive(data)
        except DerpError as error:
            log.info("relay: closed a connection", reason=str(error))
            self.abort()

    def wake(self) -> None:
        if self._started and not self._paused:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        while not self._paused and not self._transport.is_closing() and (frames := self.connection.take(BATCH)):
            self._transport.write(b"".join(frames))

    def pause_writing(self) -> None:
        self._paused = True
        if self._watch is None:
            self._watch = asyncio.create_task(self._watch_progress(), name="relay write deadline")

    def resume_writing(self) -> None:
        self._paused = False
        self._resumed += 1
        self._flush()

    async def _watch_progress(self) -> None:
        while self._paused:
            before = self._progress()
            await self._clock.sleep(WRITE_TIMEOUT)
            if self._progress() == before:
                log.info("relay: cut off a client that does not read")
                self.abort()
                break
        self._watch = None

    def _progress(self) -> tuple[bool, int, int]:
        """While writing is paused nothing is added to the buffer: it changes when the client reads."""
        return self._paused, self._resumed, self._transport.get_write_buffer_size()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connection.close()
        if self._watch is not None:
            self._watch.cancel()
        self._http.connection_lost(exc)
        self.closed.set()

    def abort(self) -> None:
        self.connection.close()
        self._transport.abort()

    async def aclose(self) -> None:
        self._transport.close()
        await self.closed.wait()


class _WebSocketLink:
    """A WebSocket takes bytes by messages, and one after another."""

    def __init__(self, request: web.Request, clock: Clock) -> None:
        self._request, self._clock = request, clock
        self._pending = asyncio.Event()

    def wake(self) -> None:
        self._pending.set()

    def abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()

    async def write_all(self, connection: Connection, socket: web.WebSocketResponse) -> None:
        """Until cancelled, or the peer is gone or does not read."""
        with suppress(ConnectionError, RuntimeError):
            while True:
                await self._pending.wait()
                self._pending.clear()
                while frames := connection.take(MAX_MESSAGE):
                    await self._write(b"".join(frames), socket)

    async def _write(self, data: bytes, socket: web.WebSocketResponse) -> None:
        for at in range(0, len(data), MAX_MESSAGE):
            try:
                async with deadline(self._clock, WRITE_TIMEOUT):
                    await socket.send_bytes(data[at : at + MAX_MESSAGE])
            except TimeoutError:
                log.info("relay: cut off a client that does not read")
                self.abort()
                raise ConnectionResetError("the client does not read") from None
