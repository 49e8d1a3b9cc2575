"""Serving calls: one task per call, each on its own yamux stream (agent-api.md §6.4, §12 rule 10)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from agent.clock import Clock, wait_for
from agent.protocol.drpc import (
    CallEnded,
    DrpcError,
    ErrorCode,
    Invoked,
    MessageReceived,
    SendingEnded,
    ServerCall,
    ServerTransport,
)
from agent.protocol.yamux import Role
from agent.rpc.connection import MuxConnection, MuxStream
from agent.rpc.errors import CallError, RpcError, StreamBrokenError
from agent.rpc.transport import NORMAL, Transport

logger = logging.getLogger("agent.rpc")

MAX_WAITING = 262_144
"""Bytes of messages of one call that its handler has not taken; then the stream is not read, and its window closes."""
LARGE_PACKET = 262_144
MAX_LARGE_PACKETS = 16
"""How many packets of a connection may be put together beyond `LARGE_PACKET` bytes at once; others wait, unread."""
HANDLER_GRACE = 10.0
"""Seconds that handlers get to end after they were cancelled with their connection."""


class ServerStream:
    """One call as its handler sees it. One task receives, one task sends."""

    def __init__(self, stream: MuxStream, call: ServerCall) -> None:
        self._stream = stream
        self._call = call
        self._inbox: deque[bytes] = deque()
        self._waiting = 0
        self._complete = False
        self._over = False
        self._changed = asyncio.Event()

    @property
    def path(self) -> str:
        """What was called."""
        return self._call.path

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the client sent before the call, for example a trace context."""
        return self._call.metadata

    async def receive(self) -> bytes | None:
        """The next message of the client, or None when it sends no more."""
        while not self._inbox:
            if self._complete:
                return None
            self._changed.clear()
            await self._changed.wait()
        message = self._inbox.popleft()
        self._waiting -= len(message)
        self._changed.set()
        return message

    async def send(self, data: bytes) -> None:
        """Send one message, waiting for the client's window. Raises `StreamBrokenError`, `ConnectionLostError`."""
        self._check()
        await self._stream.write(self._call.message(data))

    # ---- called by the server

    def deliver(self, message: bytes) -> None:
        """A message of the client; nobody takes it once the handler has ended."""
        if not self._over:
            self._inbox.append(message)
            self._waiting += len(message)
            self._changed.set()

    def deliver_end(self) -> None:
        """The client sends no more messages."""
        self._complete = True
        self._changed.set()

    async def wait_for_room(self) -> None:
        """Wait until the handler has taken enough, has ended, or the client went away."""
        while self._waiting >= MAX_WAITING and not self._over and not self._stream.ended:
            self._changed.clear()
            await self._changed.wait()

    def wake(self) -> None:
        """The byte stream ended."""
        self._changed.set()

    async def finish(self, reply: bytes | None = None) -> None:
        """The handler is done: send its last message, if any, and the end of the call in one write."""
        self._check()
        packet = b"" if reply is None else self._call.message(reply)
        await self._stream.write(packet + self._call.close_send())

    async def fail(self, code: int, text: str) -> None:
        """Answer with an error, unless the call is over already, so that nobody waits for an answer."""
        if not self._call.ended:
            with contextlib.suppress(CallError):  # then nobody is left to answer to
                await self._stream.write(self._call.error(code, text))

    def discard(self) -> None:
        """The handler has ended: drop what it did not take."""
        self._over = True
        self._inbox.clear()
        self._waiting = 0
        self._changed.set()

    def _check(self) -> None:
        if self._call.ended:
            raise StreamBrokenError(f"the call of {self._call.path} is over")


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
        self._clock = clock
        self._large = asyncio.Semaphore(MAX_LARGE_PACKETS)
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
        """Close the connection, which cancels the handlers, and wait up to 10 s for them. Idempotent.

        Each handler is cancelled once: a second time would hit what it does to end in order.
        """
        await self._connection.aclose(code, reason)
        tasks = set(self._tasks)
        if not tasks:
            return
        try:
            await wait_for(self._clock, asyncio.wait(tasks), HANDLER_GRACE)
        except TimeoutError:
            names = ", ".join(sorted(task.get_name() for task in tasks if not task.done()))
            logger.error("these did not end within %g s of being cancelled: %s", HANDLER_GRACE, names)

    def _accept(self, stream: MuxStream) -> None:
        self._spawn(self._serve_stream(stream), f"rpc stream {stream.id}")

    def _spawn(self, body: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(body, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve_stream(self, stream: MuxStream) -> None:
        transport = ServerTransport()
        call: ServerStream | None = None
        running: asyncio.Task[None] | None = None
        large = False
        try:
            while data := await stream.read():
                for event in transport.receive(data):
                    if isinstance(event, Invoked):
                        await _cancel(running)
                        call = ServerStream(stream, event.call)
                        stream.on_end = call.wake
                        running = self._spawn(self._run(call), f"rpc {call.path}")
                        continue
                    assert call is not None  # the protocol reports nothing before Invoked
                    match event:
                        case MessageReceived(message):
                            call.deliver(message)
                        case SendingEnded():
                            call.deliver_end()
                        case CallEnded():
                            await _cancel(running)
                if call is not None:
                    await call.wait_for_room()
                if (transport.buffered > LARGE_PACKET) != large:
                    if large:
                        self._large.release()
                    else:
                        await self._large.acquire()
                    large = not large
        except DrpcError as error:
            logger.warning("a client broke a rule of dRPC: %s", error)
            stream.reset()
        except CallError:
            pass  # the stream or the connection is gone; whoever owns the connection learns the cause
        finally:
            if large:
                self._large.release()
            try:
                # The end of the stream is how a Go client cancels a call.
                await _cancel(running)
            finally:
                stream.close(discard=True)

    async def _run(self, call: ServerStream) -> None:
        handler = self._handlers.get(call.path)
        try:
            if handler is None:
                raise RpcError(f'protocol error: unknown rpc: "{call.path}"')
            if isinstance(handler, Unary):
                request = await call.receive()
                if request is None:
                    raise RpcError("the request has no message")
                await call.finish(await handler.handler(request))
            else:
                await handler.handler(call)
                await call.finish()
        except RpcError as error:
            await call.fail(error.code, error.text)
        except CallError:
            pass  # nobody is left to answer to
        except DrpcError as error:
            await call.fail(ErrorCode.UNSPECIFIED, str(error))
        except Exception:
            # One call's defect must not end the others of its connection; it is logged with its trace.
            logger.exception("the handler of %s failed", call.path)
            await call.fail(ErrorCode.UNSPECIFIED, "internal error")
        finally:
            call.discard()


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task})
