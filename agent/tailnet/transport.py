"""A stream of the tailnet as an asyncio transport, so that HTTP servers and clients run on it as on a socket.

The back-pressure goes all the way: a protocol that pauses reading closes the peer's window, and a peer that does not
read makes the transport call `pause_writing`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from agent.clock import Clock
from agent.protocol.tcp import TcpError

HIGH_WATER: Final = 64 * 1024
LOW_WATER: Final = 16 * 1024
PIECE: Final = 64 * 1024
"""Bytes that are handed to the stream at a time."""
CLOSE_LIMIT: Final = 30.0
"""Seconds that a closed transport goes on sending what was written; then the connection is reset."""


class ByteStream(Protocol):
    """What a transport needs of a connection: `TailnetStream`, or a pair in memory."""

    async def read(self, limit: int = ...) -> bytes: ...
    async def write(self, data: bytes | memoryview) -> None: ...
    def shutdown_write(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class StreamTransport(asyncio.Transport):
    """Reads and writes with one task each, which end before the protocol hears of `connection_lost`.

    `extra` is what `get_extra_info` answers. What breaks the stream (`TcpError`) reaches the protocol as a
    `ConnectionResetError`, as from a socket.
    """

    def __init__(
        self,
        stream: ByteStream,
        protocol: asyncio.BaseProtocol,
        clock: Clock,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(dict(extra or {}))
        self._stream = stream
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._buffer: deque[bytes] = deque()
        self._size = 0
        self._high, self._low = HIGH_WATER, LOW_WATER
        self._writing_paused = False
        self._closing = False
        self._eof_wanted = False
        self._error: Exception | None = None
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._wanted = asyncio.Event()
        self._closed = asyncio.Event()
        self._protocol = protocol
        self._reader = self._loop.create_task(self._read(), name="stream transport: reading")
        self._writer = self._loop.create_task(self._write(), name="stream transport: writing")
        self._limit: asyncio.Task[None] | None = None
        self._end = self._loop.create_task(self._finish(), name="stream transport: end")
        protocol.connection_made(self)

    async def wait_closed(self) -> None:
        """Wait until the protocol has been told that the connection is lost."""
        await self._closed.wait()

    # ---- protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    # ---- reading

    def is_reading(self) -> bool:
        return self._resumed.is_set() and not self._closing

    def pause_reading(self) -> None:
        self._resumed.clear()

    def resume_reading(self) -> None:
        self._resumed.set()

    async def _read(self) -> None:
        while True:
            await self._resumed.wait()
            data = await self._stream.read()
            await self._resumed.wait()  # the protocol may have paused meanwhile
            assert isinstance(self._protocol, asyncio.Protocol)
            if data:
                self._protocol.data_received(data)
            else:
                if not self._protocol.eof_received():
                    self.close()
                return

    # ---- writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._eof_wanted:
            raise RuntimeError("write after write_eof")
        if self._closing or not data:
            return  # as asyncio's own transports: the protocol hears of the loss by itself
        self._buffer.append(bytes(data))
        self._size += len(data)
        self._wanted.set()
        if self._size > self._high and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._eof_wanted = True
        self._wanted.set()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not 0 <= low <= high:
            raise ValueError(f"low water ({low}) must be between 0 and high water ({high})")
        self._high, self._low = high, low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return self._size

    async def _write(self) -> None:
        while True:
            while self._buffer:
                piece = self._next_piece()
                await self._stream.write(piece)
                self._size -= len(piece)
                if self._writing_paused and self._size <= self._low:
                    self._writing_paused = False
                    self._protocol.resume_writing()
            if self._closing:
                return
            if self._eof_wanted:
                self._stream.shutdown_write()
                # The reading side decides when it is over.
                return
            self._wanted.clear()
            await self._wanted.wait()

    def _next_piece(self) -> bytes:
        """Small writes are joined, large ones cut: the water marks are to mean something."""
        first = self._buffer.popleft()
        if len(first) > PIECE:
            self._buffer.appendleft(first[PIECE:])
            return first[:PIECE]
        pieces, size = [first], len(first)
        while self._buffer and size + len(self._buffer[0]) <= PIECE:
            pieces.append(self._buffer.popleft())
            size += len(pieces[-1])
        return b"".join(pieces) if len(pieces) > 1 else first

    # ---- the end

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Read no more, send what was written, then FIN; idempotent."""
        if self._closing:
            return
        self._closing = True
        self._reader.cancel()
        self._wanted.set()
        if self._size:
            self._limit = self._loop.create_task(self._expire(), name="stream transport: close limit")

    async def _expire(self) -> None:
        await self._clock.sleep(CLOSE_LIMIT)
        self._stream.abort()
        self._writer.cancel()

    def abort(self) -> None:
        """Reset the connection; what was written and not sent is lost."""
        self._closing = True
        self._stream.abort()
        self._reader.cancel()
        self._writer.cancel()

    async def _finish(self) -> None:
        """Wait for both tasks, or for the first one that fails, and say how it ended."""
        tasks = {self._reader, self._writer}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        failed = next((task for task in tasks if task.done() and not task.cancelled() and task.exception()), None)
        if failed is not None:
            self._closing = True
            self._error = self._explain(failed)
            self._stream.abort()
        for task in (self._reader, self._writer, self._limit):
            if task is not None:
                task.cancel()
        await asyncio.wait(tasks)
        self._stream.close()
        self._closing = True
        self._buffer.clear()
        self._size = 0
        try:
            self._protocol.connection_lost(self._error)
        finally:
            self._closed.set()

    def _explain(self, failed: asyncio.Task[None]) -> Exception:
        error = failed.exception()
        if isinstance(error, TcpError | OSError):
            broken = ConnectionResetError(str(error))
            broken.__cause__ = error
            return broken
        assert isinstance(error, Exception)
        # A defect of the protocol; asyncio's own transports tell the loop's handler, which logs it with its trace.
        self._loop.call_exception_handler(
            {"message": "a protocol failed", "exception": error, "transport": self, "protocol": self._protocol}
        )
        return error
