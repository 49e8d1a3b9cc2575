"""The end of terminals that nobody looks at (terminal-ssh-http.md §1.3)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.clock import Clock


class Expiry:
    """Calls `expired` unless it is stopped before."""

    def __init__(self, clock: Clock, expired: Callable[[], None]) -> None:
        self._clock = clock
        self._expired = expired
        self._task: asyncio.Task[None] | None = None

    def start(self, seconds: float) -> None:
        """From now on, whatever was running."""
        self.stop()
        self._task = asyncio.create_task(self._wait(seconds), name="terminal expiry")

    def stop(self) -> None:
        """Idempotent; `expired` may do it."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def _wait(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._task = None
        self._expired()
