"""The driver of a yamux session: one reader, one guarded writer, and streams with back-pressure (agent-api.md §6.2)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine

from agent.clock import Clock, wait_for
from agent.protocol import yamux
from agent.rpc.errors import ConnectionLostError, StreamBrokenError, TransportError
from agent.rpc.transport import NORMAL, Transport

WRITE_TIMEOUT = 10.0
"""Seconds that one write may take before the connection counts as dead."""
CLOSE_TIMEOUT = 5.0
"""Seconds for the closing handshake of the transport, and before that for what is still queued."""
BROKEN_CLOSE_TIMEOUT = 1.0
"""The same when the connection failed: a peer that is gone shakes no hands, and the next attempt waits for this one."""


READ_SLICE = 65_536
"""Bytes of a message that are looked at before others get their turn: it may hold very many tiny frames."""


class MuxStream:
    """One stream of a connection. One task reads, one task writes."""

    __slots__ = ("_buffer", "_connection", "_discard", "_error", "_readable", "_writable", "ended", "id", "on_end")

    def __init__(self, connection: MuxConnection, stream_id: int) -> None:
        self.id = stream_id
        self._connection = connection
        self._buffer = bytearray()
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._discard = False
        self._error: Exception | None = None
        self.ended = False
        """Whether the peer sends no more; some of what it sent may still be unread."""
        self.on_end: Callable[[], None] | None = None
        """Called when `ended` becomes true, for an owner that waits for something else than data."""

    async def read(self) -> bytes:
        """What has arrived; empty at the end. Raises `StreamBrokenError`, `ConnectionLostError`."""
        while not self._buffer:
            if self._error is not None:
                raise self._error
            if self.ended:
                return b""
            self._readable.clear()
            await self._readable.wait()
        data = bytes(self._buffer)
        self._buffer.clear()
        self._connection.consume(self.id, len(data))
        return data

    async def write(self, data: bytes) -> None:
        """Queue all of `data`, waiting for the peer's window. Raises `StreamBrokenError`, `ConnectionLostError`.

        In dRPC a side that ended its stream takes no more either, so that this does not wait for its window. A write
        that is cancelled half way resets the stream: what followed would be read as the rest of a packet.
        """
        view = memoryview(data)
        try:
            while view:
                if self._error is not None:
                    raise self._error
                if self.ended:
                    raise StreamBrokenError(f"the peer ended stream {self.id}")
                self._writable.clear()
                view = view[self._connection.send(self.id, view) :]
                if view:
                    await self._writable.wait()
        except asyncio.CancelledError:
            if len(view) < len(data):
                self.reset()
            raise

    def close(self, *, discard: bool = False) -> None:
        """Send FIN. With `discard`, what still arrives is dropped, and brings the peer no credit.

        A peer that goes on sending because it does not look at its end of the stream is so stopped by its window.
        """
        if discard:
            self._discard = True
            self._buffer.clear()
        self._connection.finish(self.id)

    def reset(self) -> None:
        """Drop the stream in both directions at once."""
        self._connection.abort(self.id)
        self.fail(StreamBrokenError(f"stream {self.id} was reset"))

    # ---- called by the connection

    def feed(self, data: bytes) -> None:
        """Bytes of the peer."""
        if not self._discard:
            self._buffer += data
            self._readable.set()

    def feed_eof(self) -> None:
        """The peer's FIN."""
        self._end()

    def wake_writer(self) -> None:
        """There is room again."""
        self._writable.set()

    def fail(self, error: Exception) -> None:
        """The stream is gone; the first cause stays."""
        if self._error is None:
            self._error = error
        self._end()

    def _end(self) -> None:
        self.ended = True
        self._readable.set()
        self._writable.set()
        if self.on_end is not None:
            self.on_end()


class MuxConnection:
    """A yamux session over a transport. `on_stream` is called for every stream that the peer opens."""

    def __init__(
        self,
        transport: Transport,
        role: yamux.Role,
        clock: Clock,
        on_stream: Callable[[MuxStream], None] | None = None,
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._on_stream = on_stream
        self._session = yamux.YamuxSession(role, clock.now())
        self._streams: dict[int, MuxStream] = {}
        self._output = asyncio.Event()
        self._slots = asyncio.Event()
        self._blocked: set[int] = set()
        """Streams whose writer waits for room in the outgoing buffer."""
        self._pings: dict[int, asyncio.Future[float]] = {}
        self._write_began: float | None = None
        self._closed: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._reader: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        """Writer and timer."""
        self._closer: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to read, write and keep alive; no effect on a connection that was closed already."""
        if self.closed:
            return
        self._reader = self._spawn("reader", self._read())
        self._tasks = [self._spawn("writer", self._write()), self._spawn("timer", self._keep_time())]

    def _spawn(self, name: str, body: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(body, name=f"yamux {name}")
        task.add_done_callback(self._task_ended)
        return task

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._closed.done()

    async def wait_closed(self) -> Exception | None:
        """Wait for the end; the cause, or None when it ended by a plain close."""
        return await asyncio.shield(self._closed)

    async def open_stream(self) -> MuxStream:
        """Open a stream, waiting while 256 opens are unacknowledged. Raises `ConnectionLostError`."""
        while True:
            self._check()
            try:
                stream_id = self._session.open_stream(self._clock.now())
                break
            except yamux.OpenLimitError:
                self._slots.clear()
                await self._slots.wait()
            except yamux.YamuxError as error:
                raise ConnectionLostError(str(error)) from error
        stream = self._streams[stream_id] = MuxStream(self, stream_id)
        self._output.set()
        return stream

    async def ping(self, timeout: float) -> float:
        """Round trip in seconds. Raises `ConnectionLostError` when no answer came within `timeout` seconds."""
        self._check()
        try:
            ping_id = self._session.ping(self._clock.now())
        except yamux.YamuxError as error:
            raise ConnectionLostError(str(error)) from error
        self._output.set()
        answer = self._pings[ping_id] = asyncio.get_running_loop().create_future()
        try:
            return await wait_for(self._clock, answer, timeout)
        except TimeoutError as error:
            raise ConnectionLostError(f"no answer to a ping within {timeout:g} s") from error
        finally:
            self._pings.pop(ping_id, None)
            self._session.forget_ping(ping_id)

    async def aclose(self, code: int = NORMAL, reason: str = "") -> None:
        """Write what is queued, close the transport and wait for the tasks; at most 10 s. The first call counts.

        Cancelling the caller does not interrupt the closing.
        """
        self._end(None)
        if self._closer is None:
            self._closer = asyncio.create_task(self._close(code, reason), name="yamux closer")
        await asyncio.shield(self._closer)

    async def _close(self, code: int, reason: str) -> None:
        limit = CLOSE_TIMEOUT if self._closed.result() is None else BROKEN_CLOSE_TIMEOUT
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Where one write is stuck, another would be too.
        if self._write_began is None and (chunks := self._session.data_to_send()):
            with contextlib.suppress(TimeoutError, TransportError):
                await wait_for(self._clock, self._transport.send(chunks), limit)
        with contextlib.suppress(TimeoutError, TransportError):
            await wait_for(self._clock, self._transport.aclose(code, reason), limit)
        # Not before: the transport's handshake may need what it receives.
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait({self._reader})

    # ---- called by streams

    def send(self, stream_id: int, data: memoryview) -> int:
        """Bytes taken; when there is no room, the stream's writer is woken later."""
        if not data:
            return 0
        try:
            accepted = self._session.send(stream_id, data)
        except yamux.StreamClosedError as error:
            raise StreamBrokenError(str(error)) from error
        except yamux.YamuxError as error:
            raise ConnectionLostError(str(error)) from error
        if accepted:
            self._output.set()
        # Without credit, `WindowOpened` wakes the writer.
        if accepted < len(data) and self._session.credit(stream_id):
            self._blocked.add(stream_id)
        return accepted

    def consume(self, stream_id: int, count: int) -> None:
        """The stream's reader took bytes."""
        self._session.consume(stream_id, count)
        if self._session.pending:
            self._output.set()

    def finish(self, stream_id: int) -> None:
        """The stream sends no more."""
        self._session.close(stream_id, self._clock.now())
        self._after_local_end(stream_id)

    def abort(self, stream_id: int) -> None:
        """The stream is dropped."""
        self._session.reset(stream_id)
        self._after_local_end(stream_id)

    def _after_local_end(self, stream_id: int) -> None:
        if not self._session.knows(stream_id):
            self._streams.pop(stream_id, None)
            self._slots.set()
        self._output.set()

    # ---- tasks

    async def _read(self) -> None:
        while data := await self._transport.receive():
            view = memoryview(data)
            for start in range(0, len(data), READ_SLICE):
                if start:
                    await asyncio.sleep(0)
                if self.closed:
                    break
                self._handle(self._session.receive_data(view[start : start + READ_SLICE], self._clock.now()))
                if self._session.pending:
                    self._output.set()
        self._end(None)

    async def _write(self) -> None:
        while self._session.error is None:
            await self._output.wait()
            self._output.clear()
            while chunks := self._session.data_to_send():
                self._write_began = self._clock.now()
                await self._transport.send(chunks)
                self._write_began = None
                blocked, self._blocked = self._blocked, set()
                for stream_id in blocked:
                    if stream := self._streams.get(stream_id):
                        stream.wake_writer()
        self._end(self._session.error)

    async def _keep_time(self) -> None:
        """Keep-alive, the limits of the session, and that of a write.

        A write that begins during a sleep is seen before its limit, because no sleep is longer than that.
        """
        while True:
            now = self._clock.now()
            if self._write_began is not None and now - self._write_began >= WRITE_TIMEOUT:
                raise ConnectionLostError(f"the peer did not take data for {WRITE_TIMEOUT:g} s")
            self._handle(self._session.handle_timeout(now))
            if self._session.pending:
                self._output.set()
            # A session that failed has no time of its own, but its last words may be stuck in the writer.
            due = (self._write_began if self._write_began is not None else now) + WRITE_TIMEOUT
            if (session_due := self._session.next_timeout()) is not None:
                due = min(due, session_due)
            await self._clock.sleep(max(due - now, 0.001))

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """None of the tasks can go on without the others; whatever one failed with is the cause of the end."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end(error if isinstance(error, Exception) else None)

    # ---- events

    def _handle(self, events: list[yamux.Event]) -> None:
        for event in events:
            match event:
                case yamux.DataReceived(stream_id, data):
                    if stream := self._streams.get(stream_id):
                        stream.feed(data)
                case yamux.WindowOpened(stream_id):
                    if stream := self._streams.get(stream_id):
                        stream.wake_writer()
                case yamux.StreamOpened(stream_id):
                    self._accept(stream_id)
                case yamux.StreamFinished(stream_id):
                    self._finished(stream_id)
                case yamux.StreamReset(stream_id):
                    if stream := self._streams.pop(stream_id, None):
                        stream.fail(StreamBrokenError(f"the peer reset stream {stream_id}"))
                    self._slots.set()
                case yamux.StreamAcknowledged():
                    self._slots.set()
                case yamux.PingAnswered(ping_id, rtt):
                    answer = self._pings.get(ping_id)
                    if answer is not None and not answer.done():
                        answer.set_result(rtt)
                case yamux.GoAwayReceived():
                    self._slots.set()
                case yamux.SessionFailed(error):
                    # The writer sends the GoAway that may be queued, then ends the connection.
                    self._fail_streams(error)
                    self._output.set()

    def _accept(self, stream_id: int) -> None:
        if self._on_stream is None:
            self._session.reset(stream_id)
            return
        self._session.accept(stream_id)
        stream = self._streams[stream_id] = MuxStream(self, stream_id)
        self._on_stream(stream)

    def _finished(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if not self._session.knows(stream_id):
            self._streams.pop(stream_id, None)
            self._slots.set()
        if stream is not None:
            stream.feed_eof()

    def _check(self) -> None:
        if self.closed:
            raise self._lost(self._closed.result())
        if self._session.error is not None:
            raise self._lost(self._session.error)

    def _end(self, cause: Exception | None) -> None:
        """Close once; the first cause is what every waiter gets."""
        if self._closed.done():
            return
        self._closed.set_result(cause)
        self._fail_streams(cause)
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    def _fail_streams(self, cause: Exception | None) -> None:
        for stream in self._streams.values():
            stream.fail(self._lost(cause))
        self._streams.clear()
        for answer in self._pings.values():
            if not answer.done():
                answer.set_exception(self._lost(cause))
        self._slots.set()

    @staticmethod
    def _lost(cause: Exception | None) -> ConnectionLostError:
        error = ConnectionLostError(f"the connection ended: {cause}" if cause else "the connection was closed")
        error.__cause__ = cause
        return error
