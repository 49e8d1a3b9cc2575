"""Serving calls: one task per call, each on its own yamux stream (agent-api.md §6.4, §12 rule 10)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from agent.clock import Clock
from agent.protocol.drpc import (
    CallEnded,
    DrpcError,
    ErrorCode,
    Invoked,
    MessageReceived,
    SendingEnded,
    ServerTransport,
)
from agent.protocol.yamux import Role
from agent.rpc.connection import MuxConnection, MuxStream
from agent.rpc.errors import CallError, RpcError
from agent.rpc.transport import NORMAL, Transport

logger = logging.getLogger("agent.rpc")

MAX_WAITING_MESSAGES = 16
"""Messages of one call that its handler has not taken; then the stream is not read, and its window closes."""


class ServerStream:
    """One call as its handler sees it."""

    def __init__(self, stream: MuxStream, transport: ServerTransport) -> None:
        self._stream = stream
        self._transport = transport
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_WAITING_MESSAGES)
        self._ended = False

    async def receive(self) -> bytes | None:
        """The next message of the client, or None when it sends no more."""
        if self._ended:
            return None
        message = await self.inbox.get()
        self._ended = message is None
        return message

    async def send(self, data: bytes) -> None:
        """Send one message, waiting for the client's window."""
        await self._stream.write(self._transport.message(data))


StreamHandler: TypeAlias = Callable[[ServerStream], Awaitable[None]]
"""Serves one call; returning ends it, raising `RpcError` fails it."""

UnaryHandler: TypeAlias = Callable[[bytes], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Unary:
    """A method with one request and one response."""

    handler: UnaryHandler


@dataclass(frozen=True, slots=True)
class Streaming:
    """A method whose handler sends and receives as it likes."""

    handler: StreamHandler


Handler: TypeAlias = Unary | Streaming


class RpcServer:
    """Serves the methods of one connection. `handlers` are by path, e.g. `/coder.agent.v2.Agent/GetManifest`."""

    def __init__(self, transport: Transport, handlers: Mapping[str, Handler], clock: Clock) -> None:
        self._handlers = handlers
        self._connection = MuxConnection(transport, Role.SERVER, clock, self._accept)
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> Exception | None:
        """Serve until the connection ends; the cause, or None for a plain close. Ends its handlers before returning."""
        self._connection.start()
        try:
            return await self._connection.wait_closed()
        finally:
            await self.aclose()

    async def ping(self, timeout: float) -> float:
        """Round trip of a yamux ping in seconds. Raises `ConnectionLostError` after `timeout` seconds."""
        return await self._connection.ping(timeout)

    async def aclose(self, code: int = NORMAL, reason: str = "") -> None:
        """Close the connection, and cancel the handlers and wait for them. Idempotent."""
        await self._connection.aclose(code, reason)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, stream: MuxStream) -> None:
        task = asyncio.create_task(self._serve_stream(stream), name=f"rpc stream {stream.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_stream(self, stream: MuxStream) -> None:
        transport = ServerTransport()
        call: ServerStream | None = None
        running: asyncio.Task[None] | None = None
        try:
            while data := await stream.read():
                for event in transport.receive(data):
                    match event:
                        case Invoked(path, _):
                            await _cancel(running)
                            call = ServerStream(stream, transport)
                            running = asyncio.create_task(self._run(path, call, stream, transport), name=f"rpc {path}")
                        case MessageReceived(message) if call is not None:
                            await _deliver(call, message, running)
                        case SendingEnded() if call is not None:
                            await _deliver(call, None, running)
                        case CallEnded():
                            await _cancel(running)
        except DrpcError as error:
            logger.warning("a client broke a rule of dRPC: %s", error)
            stream.reset()
        except CallError:
            pass  # the stream or the connection is gone; whoever owns the connection learns the cause
        finally:
            # The end of the stream is how a Go client cancels a call.
            await _cancel(running)
            stream.close(discard=True)

    async def _run(self, path: str, call: ServerStream, stream: MuxStream, transport: ServerTransport) -> None:
        handler = self._handlers.get(path)
        try:
            if handler is None:
                raise RpcError(f'protocol error: unknown rpc: "{path}"')
            if isinstance(handler, Unary):
                request = await call.receive()
                if request is None:
                    raise RpcError("the request has no message")
                reply = transport.message(await handler.handler(request))
            else:
                await handler.handler(call)
                reply = b""
            if not transport.ended:
                await stream.write(reply + transport.close_send())
        except RpcError as error:
            await self._answer_error(stream, transport, error.code, error.text)
        except CallError:
            pass  # no one is left to answer to
        except DrpcError as error:
            await self._answer_error(stream, transport, ErrorCode.UNSPECIFIED, str(error))
        except Exception:
            # One call's defect must not end the others of its connection; it is logged with its trace.
            logger.exception("the handler of %s failed", path)
            await self._answer_error(stream, transport, ErrorCode.UNSPECIFIED, "internal error")

    @staticmethod
    async def _answer_error(stream: MuxStream, transport: ServerTransport, code: int, text: str) -> None:
        if transport.ended:
            return
        with contextlib.suppress(CallError):  # then no one is left to answer to
            await stream.write(transport.error(code, text))


async def _deliver(call: ServerStream, message: bytes | None, running: asyncio.Task[None] | None) -> None:
    """Hand a message to the handler, unless that has ended: then nobody will take it."""
    if not call.inbox.full():
        call.inbox.put_nowait(message)
        return
    if running is None:
        return
    put = asyncio.ensure_future(call.inbox.put(message))
    try:
        await asyncio.wait({put, running}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        put.cancel()


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task})
