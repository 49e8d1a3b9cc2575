"""A clock that moves only when a test says so."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class ManualClock:
    """Starts at monotonic 0 and wall time `wall_ns`; `advance` wakes whoever sleeps, in order of their times."""

    def __init__(self, wall_ns: int = 1_730_433_233_500_000_000) -> None:
        self._now = 0.0
        self._wall = wall_ns
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self._now

    def wall(self) -> int:
        return self._wall

    def set_wall(self, wall_ns: int) -> None:
        """Step the wall clock, as an operator or NTP would; nobody wakes."""
        self._wall = wall_ns

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), waiter))
        await waiter

    @property
    def sleepers(self) -> int:
        """How many waits are pending."""
        return sum(not waiter.done() for _, _, waiter in self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Move both clocks on, waking sleepers one time step after another and letting their tasks run."""
        target = self._now + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= target:
            when, _, waiter = heapq.heappop(self._sleepers)
            if waiter.done():
                continue
            self._move_to(when)
            waiter.set_result(None)
            await settle()
        self._move_to(target)
        await settle()

    def _move_to(self, when: float) -> None:
        self._wall += round((when - self._now) * 1e9)
        self._now = when


async def settle(rounds: int = 20) -> None:
    """Let every task that is ready run until it waits again (a bounded number of loop turns)."""
    for _ in range(rounds):
        await asyncio.sleep(0)
