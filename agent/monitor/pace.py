"""What the reports have in common: whole seconds counted from the start of a connection, and tasks at their side."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager

from agent.clock import Clock

_ROUNDING = 1e-6

_log = logging.getLogger("agent.monitor")


class Seconds:
    """The ticks of a clock that starts now and ticks once a second, without a timer that runs."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start = clock.now()

    def next(self) -> int:
        """The number of the next tick; the first one, now, had number 0."""
        return math.floor(self._clock.now() - self._start + _ROUNDING) + 1

    async def until(self, tick: int) -> None:
        """Wait for a tick; one that is over already is not waited for."""
        if (remaining := self._start + tick - self._clock.now()) > 0:
            await self._clock.sleep(remaining)


@asynccontextmanager
async def side_tasks(coroutines: Iterable[Coroutine[object, object, None]]) -> AsyncIterator[None]:
    """Run the coroutines as tasks until the body ends. They deal with their own errors; what they miss is logged."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                _log.error("a task of the monitor failed", exc_info=outcome)
