"""Streams and terminals without a network and without processes."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog  # noqa: F401 - the room imports it when it logs; the daemon has done so long before

from agent.clock import Clock
from agent.protocol.tcp import ConnectionClosedTcpError
from agent.terminal.pty import Process, Pty, PtyClosedError
from agent.terminal.ring import Ring
from agent.terminal.session import Limits, Session


class MemoryStream:
    """A client's end and the agent's end of one connection. The client takes everything unless `stopped`."""

    peer = (bytes(15) + b"\x07", 5)

    def __init__(self) -> None:
        self.shown = bytearray()
        self.closed = False
        self.stopped = False
        self._requests: asyncio.Queue[bytes] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._aborted = False

    # ---- the client

    def say(self, data: bytes) -> None:
        self._requests.put_nowait(data)

    def leave(self) -> None:
        self._requests.put_nowait(b"")

    def stop(self) -> None:
        self.stopped = True

    def go_on(self) -> None:
        self.stopped = False
        self._changed.set()

    async def until(self, text: bytes) -> bytes:
        """Wait for `text`; everything that was shown."""
        await self.match(re.compile(re.escape(text)))
        return bytes(self.shown)

    async def match(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        """Wait for a match of `pattern`."""
        async with asyncio.timeout(20):
            while (found := pattern.search(self.shown)) is None:
                if self.closed:
                    raise AssertionError(f"closed before {pattern.pattern!r} was shown: {bytes(self.shown[-1000:])!r}")
                self._changed.clear()
                await self._changed.wait()
        return found

    # ---- the agent

    async def read(self, limit: int = 65536) -> bytes:
        data = await self._requests.get()
        if self._aborted:
            raise ConnectionClosedTcpError("aborted")
        return data

    async def write(self, data: bytes) -> None:
        while self.stopped and not self._aborted:
            self._changed.clear()
            await self._changed.wait()
        if self._aborted:
            raise ConnectionClosedTcpError("aborted")
        self.shown += data
        self._changed.set()
        await asyncio.sleep(0)

    async def sent(self, most: int) -> None:
        """What was written was taken."""

    def close(self) -> None:
        self.closed = True
        self._changed.set()

    def abort(self) -> None:
        self._aborted = True
        self._requests.put_nowait(b"")
        self.close()


class NoProcess(Process):
    def __init__(self) -> None:
        self.killed = False
        self.closed = False

    def kill(self) -> None:
        self.killed = True

    def close(self) -> None:
        self.closed = True


class MemoryPty(Pty):
    """A terminal whose program is the test: `print` and `typed` are its side. It holds `ROOM` bytes each way."""

    ROOM = 4096

    def __init__(self) -> None:
        self.window = (0, 0)
        self.open = True
        self._output = b""
        self._input = b""
        self._ended = False
        self._callback: Callable[[], None] | None = None
        self._room = asyncio.Event()

    # ---- the program

    def print(self, data: bytes) -> int:
        """As much as the terminal takes at the moment."""
        taken = data[: self.ROOM - len(self._output)]
        self._output += taken
        self._ready()
        return len(taken)

    def typed(self) -> bytes:
        data, self._input = self._input, b""
        self._room.set()
        return data

    def end(self) -> None:
        self._ended = True
        self._ready()

    def _ready(self) -> None:
        asyncio.get_running_loop().call_soon(self._call)

    def _call(self) -> None:
        if self._callback is not None and (self._output or self._ended):
            self._callback()
            self._ready()

    # ---- the session

    @property
    def reading(self) -> bool:
        return self._callback is not None

    def start_reading(self, readable: Callable[[], None]) -> None:
        self._callback = readable
        self._ready()

    def stop_reading(self) -> None:
        self._callback = None

    def read(self, limit: int) -> bytes | None:
        data, self._output = self._output[:limit], self._output[limit:]
        return None if self._ended and not data else data

    async def write(self, data: bytes) -> None:
        while data:
            if not self.open:
                raise PtyClosedError("the terminal is closed")
            count = self.ROOM - len(self._input)
            self._input += data[:count]
            data = data[count:]
            if data:
                self._room.clear()
                await self._room.wait()

    def resize(self, rows: int, columns: int) -> None:
        self.window = (rows, columns)

    def size(self) -> tuple[int, int]:
        return self.window

    def close(self) -> None:
        self.open = False
        self._callback = None
        self._room.set()


class Terminal:
    """A session, and what it is made of."""

    def __init__(self, clock: Clock, limits: Limits, *, adopted: bool, closing: Callable[[], None]) -> None:
        memory = Ring.allocate(limits.history)
        self.ring = Ring(memory)
        os.close(memory)
        self.pty = MemoryPty()
        self.process = NoProcess()
        self.session = Session(self.pty, self.ring, self.process, clock, limits, adopted=adopted, closing=closing)


@asynccontextmanager
async def terminal(
    clock: Clock, limits: Limits = Limits(), *, adopted: bool = False, closing: Callable[[], None] = lambda: None
) -> AsyncIterator[Terminal]:
    made = Terminal(clock, limits, adopted=adopted, closing=closing)
    try:
        yield made
    finally:
        made.session.close("the test is over")
        made.session.release()
