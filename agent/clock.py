"""Time, as something that is handed in: production code gets `SystemClock`, tests get `agent.testing.ManualClock`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Where a program takes the time from and how it waits."""

    def now(self) -> float:
        """Seconds on a monotonic scale. Only differences mean something; setting the wall clock changes nothing."""

    def wall(self) -> int:
        """Nanoseconds since 1970 UTC, for time stamps that people or other machines read."""

    async def sleep(self, seconds: float) -> None:
        """Wait that long on the monotonic scale; zero or less yields once."""


class SystemClock:
    """The clock of the machine."""

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> int:
        return time.time_ns()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(seconds, 0))


@asynccontextmanager
async def deadline(clock: Clock, seconds: float) -> AsyncIterator[None]:
    """Like `asyncio.timeout`, but on the given clock: raises `TimeoutError` when the body takes longer."""
    async with asyncio.timeout(None) as scope:

        async def expire() -> None:
            await clock.sleep(seconds)
            scope.reschedule(asyncio.get_running_loop().time())

        timer = asyncio.create_task(expire(), name="deadline")
        try:
            yield
        finally:
            timer.cancel()


async def wait_for(clock: Clock, awaitable: Awaitable[T], seconds: float) -> T:
    """The result of `awaitable`, or `TimeoutError` after `seconds` on the given clock."""
    async with deadline(clock, seconds):
        return await awaitable
