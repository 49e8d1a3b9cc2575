"""Fires cron scripts at their times (daemon.md §4.4)."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agent.clock import Clock
from agent.scripts.cron import Calendar, Schedule

_LONGEST_SLEEP = 60.0
"""Seconds; the wall clock is looked at this often at least, because it may be set while we sleep."""
_CLOCK_STEP = 1.0
"""Seconds that the wall clock must fall behind the monotonic one to count as set back."""


@dataclass(slots=True)
class CronJob:
    """One cron script. A firing while its run goes on is skipped and counted: a run never overlaps itself.

    `start` begins a run. `on_skip` is called for the first firing that is skipped during a run, `on_skipped` with the
    number of all of them when that run has ended.
    """

    schedule: Schedule
    start: Callable[[], asyncio.Task[Any]]
    on_skip: Callable[[], None]
    on_skipped: Callable[[int], None]
    _running: asyncio.Task[Any] | None = None
    _skipped: int = 0

    def fire(self) -> None:
        """Begin a run, or skip this one."""
        if self._running is None:
            self.occupy(self.start())
            return
        self._skipped += 1
        if self._skipped == 1:
            self.on_skip()

    def occupy(self, run: asyncio.Task[Any]) -> None:
        """Let nothing fire while this run goes on."""
        self._running = run
        run.add_done_callback(self._ended)

    def _ended(self, _: asyncio.Task[Any]) -> None:
        self._running = None
        skipped, self._skipped = self._skipped, 0
        if skipped:
            self.on_skipped(skipped)


@dataclass(slots=True)
class Scheduler:
    """One loop for all jobs: sleeps until the earliest firing, then fires each due job once.

    Firings that were missed (suspend, a stall, the clock set forward) collapse into one. When the clock is set back,
    the next firings are computed anew, so that none waits for the old time to come again.
    """

    clock: Clock
    jobs: list[CronJob] = field(default_factory=list)

    async def run(self) -> None:
        """Fire until cancelled; ends at once when no job will ever fire."""
        if any(isinstance(job.schedule, Calendar) for job in self.jobs):
            # It takes some 40 ms, for which the loop must not stand still.
            await asyncio.to_thread(importlib.import_module, "croniter")
        wall, monotonic = self._time()
        upcoming = [(job, job.schedule.next_after(int(wall))) for job in self.jobs]
        while any(when is not None for _, when in upcoming):
            earliest = min(when for _, when in upcoming if when is not None)
            await self.clock.sleep(min(max(earliest - wall, 0.0), _LONGEST_SLEEP))
            before_wall, before_monotonic = wall, monotonic
            wall, monotonic = self._time()
            set_back = wall - before_wall < monotonic - before_monotonic - _CLOCK_STEP
            for index, (job, when) in enumerate(upcoming):
                due = when is not None and wall >= when
                if due:
                    job.fire()
                if due or (set_back and when is not None):
                    upcoming[index] = job, job.schedule.next_after(int(wall))

    def _time(self) -> tuple[float, float]:
        return self.clock.wall() / 1e9, self.clock.now()
