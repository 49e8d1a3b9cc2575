"""Firing of cron scripts, on a manual clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import croniter
import pytest

from agent.scripts.cron import Every, Schedule, parse_schedule
from agent.scripts.scheduler import CronJob, Scheduler
from agent.testing import ManualClock, settle

_ = croniter  # it is slow to import; the tests find it done

START = 1_767_225_600  # 2026-01-01T00:00:00Z


@dataclass
class Job:
    """Counts its runs, which go on until the test ends them."""

    clock: ManualClock
    instant: bool = True
    started: list[float] = field(default_factory=list)
    skips: list[int] = field(default_factory=list)
    end: asyncio.Event = field(default_factory=asyncio.Event)

    def job(self, schedule: Schedule) -> CronJob:
        return CronJob(schedule, self._start, lambda: self.skips.append(0), self.skips.append)

    def _start(self) -> asyncio.Task[None]:
        self.started.append(self.clock.wall() / 1e9 - START)
        return asyncio.create_task(self._run())

    async def _run(self) -> None:
        if not self.instant:
            await self.end.wait()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START * 10**9 + 400_000_000)


@pytest.fixture
async def tasks() -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks: list[asyncio.Task[None]] = []
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def begin(tasks: list[asyncio.Task[None]], clock: ManualClock, *jobs: CronJob) -> None:
    tasks.append(asyncio.create_task(Scheduler(clock, list(jobs)).run()))
    for _ in range(1000):  # croniter's import, found done, takes a turn through a thread
        if clock.sleepers:
            return
        await asyncio.sleep(0.001)


@pytest.mark.spec("daemon", 36)
@pytest.mark.parametrize(("line", "expected"), [("*/2 * * * * *", [2, 4, 6, 8, 10]), ("*/5 * * * *", [5, 10])])
async def test_fires_at_whole_seconds(
    clock: ManualClock, tasks: list[asyncio.Task[None]], line: str, expected: list[float]
) -> None:
    job = Job(clock)
    await begin(tasks, clock, job.job(parse_schedule(line)))
    await clock.advance(10)
    assert job.started == expected


async def test_every(clock: ManualClock, tasks: list[asyncio.Task[None]]) -> None:
    job = Job(clock)
    await begin(tasks, clock, job.job(Every(90)))
    await clock.advance(300)
    assert job.started == [90, 180, 270]


async def test_jobs_do_not_hold_up_each_other(clock: ManualClock, tasks: list[asyncio.Task[None]]) -> None:
    slow, quick = Job(clock, instant=False), Job(clock)
    await begin(tasks, clock, slow.job(Every(2)), quick.job(Every(3)))
    await clock.advance(9)
    assert slow.started == [2]
    assert quick.started == [3, 6, 9]


async def test_a_run_never_overlaps_itself(clock: ManualClock, tasks: list[asyncio.Task[None]]) -> None:
    job = Job(clock, instant=False)
    await begin(tasks, clock, job.job(Every(2)))
    await clock.advance(9)
    assert job.started == [2]
    assert job.skips == [0]  # said once, when skipping began
    job.end.set()
    await settle()
    assert job.skips == [0, 3]
    await clock.advance(1)
    assert job.started == [2, 10]


async def test_suspend_collapses_to_one_firing(clock: ManualClock, tasks: list[asyncio.Task[None]]) -> None:
    job = Job(clock)
    await begin(tasks, clock, job.job(parse_schedule("CRON_TZ=UTC 0 * * * * *")))
    clock.set_wall(clock.wall() + 3600 * 10**9)  # noticed at the next look
    await clock.advance(60)
    assert len(job.started) == 1
    await clock.advance(60)
    assert len(job.started) == 2


async def test_clock_set_back_stalls_nothing(clock: ManualClock, tasks: list[asyncio.Task[None]]) -> None:
    job = Job(clock)
    await begin(tasks, clock, job.job(parse_schedule("CRON_TZ=UTC */30 * * * * *")), job.job(Every(45)))
    await clock.advance(30)
    clock.set_wall(clock.wall() - 365 * 86400 * 10**9)
    await clock.advance(180)
    assert len(job.started) >= 6


async def test_schedule_that_never_fires_ends_the_loop(clock: ManualClock, tasks: list[asyncio.Task[None]]) -> None:
    scheduler = Scheduler(clock, [Job(clock).job(parse_schedule("0 0 0 30 2 *"))])
    await asyncio.wait_for(scheduler.run(), 10)


async def test_without_jobs() -> None:
    await Scheduler(ManualClock(), []).run()
