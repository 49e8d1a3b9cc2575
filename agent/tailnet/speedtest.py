"""The speed test: the service on port 3 of an agent, and its client (tailnet.md §8.6, terminal-ssh-http.md §5)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from agent.clock import Clock, deadline
from agent.protocol import speedtest
from agent.protocol.speedtest import BLOCK, Direction, Line, Request, SpeedtestError

PORT: Final = 3
MAX_TIME: Final = 60.0
"""Seconds that a test may ask for. A test takes the whole link: nobody needs it for longer."""
MAX_TESTS: Final = 4
"""Tests at one time."""
GREETING_LIMIT: Final = 10.0
"""Seconds for the two first lines."""
SLACK: Final = 4
"""How many times the asked time a test may last: what is on its way must drain."""
MIN_LIMIT: Final = 4.0
PIECE: Final = 65_536
INTERVAL: Final = 1.0


class Stream(Protocol):
    """What a test runs on; `agent.tailnet.streams.TailnetStream`."""

    async def read(self, limit: int = ...) -> bytes: ...
    async def write(self, data: bytes | memoryview) -> None: ...
    async def drained(self) -> None: ...
    def shutdown_write(self) -> None: ...


class SpeedtestService:
    """Serves tests, few at a time. A test that does not end in time is cut off: the caller closes the stream."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._running = 0

    async def serve(self, stream: Stream) -> None:
        """One connection, to its end. Raises `TcpError` where the client goes away."""
        try:
            try:
                async with deadline(self._clock, GREETING_LIMIT):
                    line, _ = await _first_line(stream)
                request = speedtest.read_request(line)
                with self._place(request):
                    await self._run(stream, request)
            except SpeedtestError as error:
                await stream.write(speedtest.answer(str(error)))
                stream.shutdown_write()
        except TimeoutError:
            return

    @contextmanager
    def _place(self, request: Request) -> Iterator[None]:
        if request.time > MAX_TIME * 1e9:
            raise SpeedtestError(f"a test may last {MAX_TIME:g} s at most")
        if self._running >= MAX_TESTS:
            raise SpeedtestError(f"there are {MAX_TESTS} speed tests already; try again later")
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def _run(self, stream: Stream, request: Request) -> None:
        seconds = max(request.time / 1e9, 0.0)
        async with deadline(self._clock, max(seconds * SLACK, MIN_LIMIT)):
            await stream.write(speedtest.answer())
            if request.direction is Direction.DOWN:
                await self._send(stream, seconds)
            else:
                await _discard(stream)

    async def _send(self, stream: Stream, seconds: float) -> None:
        block = os.urandom(BLOCK)
        began = self._clock.now()
        while True:
            await stream.write(block)
            if self._clock.now() - began >= seconds:
                break
            # A link faster than this processor never makes `write` wait: the others must get their turn.
            await asyncio.sleep(0)
        stream.shutdown_write()
        await _discard(stream)


@dataclass(frozen=True, slots=True)
class Interval:
    """Bytes that went through in a part of a test; times are seconds since its beginning."""

    start: float
    end: float
    size: int

    @property
    def rate(self) -> float:
        """Bits per second."""
        return self.size * 8 / (self.end - self.start) if self.end > self.start else 0.0


async def measure(
    stream: Stream, direction: Direction, seconds: float, clock: Clock, interval: float = INTERVAL
) -> AsyncGenerator[Interval]:
    """Run a test of that many seconds; an `Interval` about every `interval` seconds, in order and without gaps.

    The last interval ends when the other side has taken everything. Raises `SpeedtestError` when the agent
    refuses or the test does not end in time, `TcpError` when the connection breaks.
    """
    try:
        async with deadline(clock, GREETING_LIMIT):
            await stream.write(Request(round(seconds * 1e9), direction).encode())
            line, rest = await _first_line(stream)
    except TimeoutError as error:
        raise SpeedtestError(f"the agent did not answer within {GREETING_LIMIT:g} s") from error
    speedtest.read_answer(line)
    limit = max(seconds * SLACK, MIN_LIMIT)
    began = start = clock.now()
    size = len(rest)
    pieces = _download(stream) if direction is Direction.DOWN else _upload(stream, seconds, clock)
    async with aclosing(pieces):
        while True:
            try:
                async with deadline(clock, began + limit - clock.now()):
                    piece = await anext(pieces, None)
            except TimeoutError as error:
                raise SpeedtestError(f"the test did not end within {limit:g} s") from error
            now = clock.now()
            size += piece or 0
            # An upload is over when the rest has gone through, also where that took a while.
            last = piece is None and (size > 0 or direction is Direction.UP)
            if last or (size and now - start >= interval):
                yield Interval(start - began, now - began, size)
                start, size = now, 0
            if piece is None:
                return


async def _download(stream: Stream) -> AsyncGenerator[int]:
    while data := await stream.read():
        yield len(data)


async def _upload(stream: Stream, seconds: float, clock: Clock) -> AsyncGenerator[int]:
    piece = os.urandom(PIECE)
    end = clock.now() + seconds
    while clock.now() < end:
        await stream.write(piece)
        yield PIECE
        await asyncio.sleep(0)
    stream.shutdown_write()
    await stream.drained()


async def _first_line(stream: Stream) -> tuple[bytes, bytes]:
    line = Line()
    while data := await stream.read():
        if (found := line.receive(data)) is not None:
            return found
    raise SpeedtestError("the connection ended before the first line")


async def _discard(stream: Stream) -> None:
    while await stream.read():
        pass
