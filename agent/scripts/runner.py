"""Runs the scripts of a manifest: start, stop and cron (daemon.md §4)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import UUID

from agent.api.manifest import Script
from agent.api.proto import agent_pb2 as pb
from agent.clock import Clock, wait_for
from agent.scripts.cron import CronError, Schedule, parse_schedule
from agent.scripts.files import ScriptDirectories, ScriptFileError
from agent.scripts.ports import Captures, CommandContext, ScriptCompleted
from agent.scripts.run import KeeperLauncher, Launcher, OnResult, PhaseResult, Run, Stage, Surroundings, logger
from agent.scripts.runs import RunRecord, RunStore
from agent.scripts.scheduler import CronJob, Scheduler
from agent.scripts.supervise import Limits

_CLOSE_SLACK = 5.0
"""Seconds that closing waits beyond the grace periods of the runs."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """A run of a former process that goes on. `joined`: it is one of this life's start scripts."""

    script_id: UUID
    source_id: UUID
    stage: Stage
    started: int
    joined: bool
    task: asyncio.Task[PhaseResult]


class ScriptRunner:
    """The scripts of one manifest.

    `runs_dir` is where runs are written down for an agent that comes after a SIGKILL, None for nowhere; `life` names
    the time from machine start to shutdown within which start scripts run once. `completed` takes every timing;
    `on_result` is told how every run ended, also one that could not begin. Both must not block; `written` waits until
    what they were told is kept, which is when the run's own record goes.
    """

    def __init__(
        self,
        scripts: Iterable[Script],
        *,
        runs_dir: Path | None,
        data_dir: Path,
        log_dir: Path,
        captures: Captures,
        context: CommandContext,
        completed: ScriptCompleted,
        clock: Clock,
        life: str = "",
        on_result: OnResult | None = None,
        written: Callable[[], Awaitable[None]] | None = None,
        limits: Limits = Limits(),
        launcher: Launcher | None = None,
    ) -> None:
        self._scripts = tuple(scripts)
        self._clock = clock
        self._limits = limits
        self._captures = captures
        self._around = Surroundings(
            captures=captures,
            context=context,
            completed=completed,
            on_result=on_result,
            clock=clock,
            limits=limits,
            directories=ScriptDirectories(data_dir),
            log_dir=log_dir,
            store=RunStore(runs_dir) if runs_dir is not None else None,
            life=life,
            written=written,
            launcher=launcher or KeeperLauncher(),
        )
        self._runs: dict[asyncio.Task[PhaseResult], Run] = {}
        self._joinable: dict[UUID, asyncio.Task[PhaseResult]] = {}
        self._jobs: dict[UUID, CronJob] = {}
        self._scheduler: asyncio.Task[None] | None = None
        self._interrupted = False
        self._closing = False

    async def prepare(self) -> None:
        """Make the directories, parse the cron lines. What cannot be used is told, never raised."""
        try:
            await asyncio.to_thread(self._around.directories.make_bin)
        except ScriptFileError as error:
            # Every run will fail with the same text in its own log.
            logger().error("scripts cannot be run", reason=str(error))
        with_cron = [script for script in self._scripts if script.cron.strip()]
        for script, schedule in zip(with_cron, await asyncio.to_thread(_parse_all, with_cron), strict=True):
            if isinstance(schedule, CronError):
                text = f'cron line "{script.cron}" cannot be used, so this script is not scheduled: {schedule}'
                logger().error("script is not scheduled", script=str(_key(script)), reason=str(schedule))
                self._captures.note(script.log_source_id, pb.Log.ERROR, text)
            else:
                self._jobs[_key(script)] = self._job(script, schedule)

    async def adopt(self) -> list[Adopted]:
        """Go on with the runs that a killed agent left behind; call it before anything is run.

        A start script of another life is ended: this life runs it again.
        """
        store = self._around.store
        if store is None:
            return []
        try:
            records = await asyncio.to_thread(store.load)
        except OSError as error:
            store.complain(error)
            return []
        return [self._adopt(record) for record in records]

    async def run_start(self, already_done: Mapping[UUID, str] = MappingProxyType({})) -> PhaseResult:
        """Run the start scripts, all at once. Cancelling it kills them.

        Scripts in `already_done` (what `on_result` was given before, by id) are not run again, nor are those of
        adopted runs, which are waited for. A run may be both: it had ended, but not all of its output was taken in.
        """
        result = PhaseResult.OK
        tasks: list[asyncio.Task[PhaseResult]] = []
        for script in self._scripts:
            if not script.run_on_start:
                continue
            if (done := already_done.get(_key(script))) is not None:
                result = PhaseResult(done) if result is PhaseResult.OK else result
            if (adopted := self._joinable.get(_key(script))) is not None:
                tasks.append(adopted)
            elif done is None:
                tasks.append(self._execute(script, pb.Timing.START))
        later = await self._all_of(tasks)
        return later if result is PhaseResult.OK else result

    async def run_stop(self) -> PhaseResult:
        """Run the stop scripts, all at once. Cancelling it kills them."""
        return await self._all_of(
            [self._execute(script, pb.Timing.STOP) for script in self._scripts if script.run_on_stop]
        )

    def start_cron(self) -> None:
        """Begin to fire cron scripts; call it when the start phase has ended."""
        if self._jobs and self._scheduler is None and not self._closing:
            scheduler = Scheduler(self._clock, list(self._jobs.values()))
            self._scheduler = asyncio.create_task(scheduler.run(), name="cron")
            self._scheduler.add_done_callback(_tell_failure)

    async def interrupt_start(self) -> None:
        """SIGHUP to the running start scripts, SIGKILL after the grace; does not wait for their end."""
        self._interrupted = True
        for run in self._runs.values():
            if run.stage == pb.Timing.START:
                run.stop.set()

    async def aclose(self) -> None:
        """Run nothing any more, end what still runs and wait for it, for a bounded time. Cancelling it kills them."""
        self._closing = True
        if self._scheduler is not None:
            self._scheduler.cancel()
        for run in self._runs.values():
            run.stop.set()
        tasks = [*self._runs, *([self._scheduler] if self._scheduler is not None else [])]
        limits = self._limits
        try:
            with contextlib.suppress(TimeoutError):
                if tasks:
                    bound = limits.hangup + limits.kill + limits.drain + _CLOSE_SLACK
                    await wait_for(self._clock, asyncio.wait(tasks), bound)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _adopt(self, record: RunRecord) -> Adopted:
        run = Run(
            self._around,
            script_id=record.script_id,
            source_id=record.source_id,
            stage=pb.Timing.Stage.ValueType(record.stage),
            timeout=record.timeout,
            run_id=record.run_id,
            started=record.started,
        )
        task = self._spawn(run, run.resume(record))
        joined = False
        if run.stage == pb.Timing.CRON:
            if (job := self._jobs.get(run.key)) is not None:
                job.occupy(task)
        elif run.stage == pb.Timing.START:
            if record.life != self._around.life:
                run.stop.set()
            else:
                joined = True
                self._joinable[run.key] = task
        return Adopted(run.script_id, run.source_id, run.stage, run.started, joined, task)

    def _job(self, script: Script, schedule: Schedule) -> CronJob:
        def on_skip() -> None:
            text = "the previous run of this script has not ended: runs are skipped until it has"
            logger().warning("cron run skipped", script=str(_key(script)))
            self._captures.note(script.log_source_id, pb.Log.WARN, text)

        def on_skipped(count: int) -> None:
            text = f"{count} {'run was' if count == 1 else 'runs were'} skipped while the previous one went on"
            logger().warning("cron runs skipped", script=str(_key(script)), skipped=count)
            self._captures.note(script.log_source_id, pb.Log.WARN, text)

        return CronJob(schedule, lambda: self._execute(script, pb.Timing.CRON), on_skip, on_skipped)

    def _execute(self, script: Script, stage: Stage) -> asyncio.Task[PhaseResult]:
        run = Run(
            self._around,
            script_id=script.id,
            source_id=script.log_source_id,
            stage=stage,
            timeout=script.timeout,
        )
        if self._closing or (self._interrupted and stage == pb.Timing.START):
            run.stop.set()
        logger().info("running script", script=str(run.key), display_name=script.display_name, bytes=len(script.text))
        return self._spawn(run, run.execute(script))

    def _spawn(self, run: Run, body: Coroutine[Any, Any, PhaseResult]) -> asyncio.Task[PhaseResult]:
        task = asyncio.create_task(body, name=f"script {run.key}")
        self._runs[task] = run
        task.add_done_callback(self._runs.pop)
        return task

    async def _all_of(self, tasks: list[asyncio.Task[PhaseResult]]) -> PhaseResult:
        """How the first of the runs that did not end well ended."""
        result = PhaseResult.OK
        pending = set(tasks)
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in (task for task in tasks if task in done and result is PhaseResult.OK):
                    # A run that `aclose` gave up waiting for was cancelled; that is not a cancellation of ours.
                    result = PhaseResult.ERROR if task.cancelled() else task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return result


def _key(script: Script) -> UUID:
    return script.id if script.id.int else script.log_source_id


def _parse_all(scripts: Iterable[Script]) -> list[Schedule | CronError]:
    schedules: list[Schedule | CronError] = []
    for script in scripts:
        try:
            schedules.append(parse_schedule(script.cron))
        except CronError as error:
            schedules.append(error)
    return schedules


def _tell_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger().error("cron scripts are not run any more", exc_info=error)
