"""Phases, results and reports of the runner, with scripts that are no processes."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
import structlog

from agent.api.manifest import Script
from agent.api.proto import agent_pb2 as pb
from agent.process import ProcessId
from agent.scripts import PhaseResult, ScriptRunner
from agent.scripts.kept import KeeperFds, LaunchError
from agent.scripts.run import outcome
from agent.scripts.runs import RunRecord, RunStatus, RunStore
from agent.scripts.supervise import Ending
from agent.testing import ManualClock, settle
from tests.scripts.support import Context, PipeCaptures, eventually, script


@dataclass
class FakeScript:
    """One that ends when the test says so, or by any signal."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    code: int = 0
    output: tuple[int | None, int | None] = (None, None)
    pipes: frozenset[int] = frozenset()
    signals: list[int] = field(default_factory=list)
    released: int = 0

    def exit(self, code: int) -> None:
        self.code = code
        self.exited.set()

    async def wait(self) -> RunStatus:
        await self.exited.wait()
        return RunStatus(pid=1, exit_code=self.code)

    def signal_group(self, number: int) -> bool:
        self.signals.append(number)
        self.exit(-1)
        return True

    async def release(self) -> None:
        self.released += 1


class FakeLauncher:
    """Starts `FakeScript`s, found by what their text is."""

    def __init__(self) -> None:
        self.started: dict[str, FakeScript] = {}
        self.error: Exception | None = None

    def launch(
        self,
        argv: Sequence[str],
        directory: str,
        environment: Mapping[str, str],
        *,
        status_fd: int,
        before_start: Callable[[ProcessId, KeeperFds], None],
    ) -> FakeScript:
        os.close(status_fd)
        if self.error is not None:
            raise self.error
        before_start(ProcessId(1, 1), KeeperFds(3, 4, 5))
        it = self.started[argv[-1]] = FakeScript(argv, environment)
        return it

    def take_over(self, record: RunRecord, store: RunStore) -> FakeScript:
        it = self.started["taken over"] = FakeScript((), {})
        return it


@dataclass
class Stage:
    root: Path
    clock: ManualClock
    captures: PipeCaptures = field(default_factory=PipeCaptures)
    launcher: FakeLauncher = field(default_factory=FakeLauncher)
    timings: list[pb.Timing] = field(default_factory=list)
    results: list[tuple[UUID, int, PhaseResult]] = field(default_factory=list)

    def runner(self, *scripts: Script, **more: Any) -> ScriptRunner:
        settings: dict[str, Any] = {
            "runs_dir": self.root / "runs",
            "data_dir": self.root / "data",
            "log_dir": self.root / "log",
            "captures": self.captures,
            "context": Context(self.root),
            "completed": self.timings.append,
            "clock": self.clock,
            "life": "life",
            "on_result": lambda *result: self.results.append(result),
            "launcher": self.launcher,
        }
        return ScriptRunner(scripts, **(settings | more))

    async def started(self, *texts: str) -> list[FakeScript]:
        await eventually(lambda: set(texts) <= self.launcher.started.keys())
        # captures begin on the loop, after the thread that started the script
        await eventually(lambda: len(self.captures.run_ids) >= len(self.launcher.started))
        await settle()
        return [self.launcher.started[text] for text in texts]


@pytest.fixture
def stage(tmp_path: Path, clock: ManualClock) -> Stage:
    return Stage(tmp_path, clock)


@pytest.mark.spec("daemon", 35)
async def test_selection(stage: Stage) -> None:
    start, stop = script("start", run_on_start=True), script("stop", run_on_stop=True)
    runner = stage.runner(start, stop, script("neither"), script("cron", cron="0 0 * * * *"))
    await runner.prepare()
    phase = asyncio.create_task(runner.run_start())
    (it,) = await stage.started("start")
    it.exit(0)
    assert await phase is PhaseResult.OK
    phase = asyncio.create_task(runner.run_stop())
    (it,) = await stage.started("stop")
    it.exit(0)
    assert await phase is PhaseResult.OK
    assert set(stage.launcher.started) == {"start", "stop"}
    assert stage.results == [
        (start.id, pb.Timing.START, PhaseResult.OK),
        (stop.id, pb.Timing.STOP, PhaseResult.OK),
    ]
    assert all(fake.released == 1 for fake in stage.launcher.started.values())
    await runner.aclose()


@pytest.mark.spec("daemon", 22)
@pytest.mark.parametrize("timeout_first", [True, False])
async def test_the_first_error_decides(stage: Stage, timeout_first: bool) -> None:
    slow = script("slow", run_on_start=True, timeout=5)
    runner = stage.runner(slow, script("fine", run_on_start=True), script("bad", run_on_start=True))
    phase = asyncio.create_task(runner.run_start())
    _, fine, bad = await stage.started("slow", "fine", "bad")
    if timeout_first:
        await stage.clock.advance(5)
        await eventually(lambda: len(stage.results) == 1)
        bad.exit(1)
    else:
        bad.exit(1)
        await eventually(lambda: len(stage.results) == 1)
        await stage.clock.advance(5)
    await eventually(lambda: len(stage.results) == 2)
    assert not phase.done()
    fine.exit(0)
    assert await phase is (PhaseResult.TIMEOUT if timeout_first else PhaseResult.ERROR)


async def test_no_scripts(stage: Stage) -> None:
    runner = stage.runner()
    await runner.prepare()
    runner.start_cron()
    assert await runner.adopt() == []
    assert await runner.run_start() is PhaseResult.OK
    assert await runner.run_stop() is PhaseResult.OK
    await runner.aclose()
    assert (stage.root / "data" / "coder-script-data" / "bin").is_dir()


async def test_already_done_scripts_are_not_run_again(stage: Stage) -> None:
    done, failed, new = (script(text, run_on_start=True) for text in ("done", "failed", "new"))
    runner = stage.runner(done, failed, new)
    phase = asyncio.create_task(runner.run_start({done.id: PhaseResult.OK, failed.id: PhaseResult.TIMEOUT}))
    (it,) = await stage.started("new")
    it.exit(1)
    assert await phase is PhaseResult.TIMEOUT
    assert set(stage.launcher.started) == {"new"}


async def test_a_run_that_is_done_but_was_left_behind_is_waited_for(stage: Stage) -> None:
    """The former agent was killed between writing down the result and forgetting the run."""
    it = script("it", run_on_start=True)
    former = stage.runner(it)
    running = asyncio.create_task(former.run_start())
    await stage.started("it")
    kept = stage.root / "kept"
    shutil.copytree(stage.root / "runs", kept)
    running.cancel()
    await asyncio.wait({running})
    (run,) = kept.iterdir()
    record = msgspec.json.decode((run / "run.json").read_bytes(), type=RunRecord)
    (run / "run.json").write_bytes(
        msgspec.json.encode(msgspec.structs.replace(record, keeper=ProcessId.of(os.getpid())))
    )
    runner = stage.runner(it, runs_dir=kept)
    (adopted,) = await runner.adopt()
    phase = asyncio.create_task(runner.run_start({it.id: PhaseResult.TIMEOUT}))
    (left,) = await stage.started("taken over")
    assert not phase.done()
    left.exit(0)
    assert await phase is PhaseResult.TIMEOUT
    assert adopted.task.done()
    assert set(stage.launcher.started) == {"it", "taken over"}


async def test_the_record_of_a_run_goes_after_its_result_is_written(stage: Stage) -> None:
    it = script("it", run_on_start=True)
    written = asyncio.Event()
    runner = stage.runner(it, written=written.wait)
    phase = asyncio.create_task(runner.run_start())
    (process,) = await stage.started("it")
    process.exit(0)
    await eventually(lambda: stage.results == [(it.id, pb.Timing.START, PhaseResult.OK)])
    await settle()
    assert not phase.done()
    assert len(list((stage.root / "runs").iterdir())) == 1
    written.set()
    assert await phase is PhaseResult.OK
    assert list((stage.root / "runs").iterdir()) == []


async def test_script_without_an_id_goes_by_its_log_source(stage: Stage) -> None:
    it = Script(id=UUID(int=0), log_source_id=UUID(int=7), text="old server", run_on_start=True)
    assert await stage.runner(it).run_start({UUID(int=7): PhaseResult.OK}) is PhaseResult.OK
    phase = asyncio.create_task(stage.runner(it).run_start())
    (fake,) = await stage.started("old server")
    fake.exit(0)
    await phase
    assert stage.results == [(UUID(int=7), pb.Timing.START, PhaseResult.OK)]


async def test_clock_set_back_during_a_run(stage: Stage) -> None:
    runner = stage.runner(script("x", run_on_start=True))
    phase = asyncio.create_task(runner.run_start())
    (it,) = await stage.started("x")
    stage.clock.set_wall(1_000_000_000)
    it.exit(0)
    await phase
    (timing,) = stage.timings
    assert timing.start.ToNanoseconds() == timing.end.ToNanoseconds() > 1_000_000_000


@pytest.mark.parametrize(
    ("wall_change", "spent_at"),
    [(4.0, 6.0), (-1000.0, 10.0), (1000.0, 0.0)],
    ids=["on time", "set back", "set forward"],
)
async def test_time_left_of_an_adopted_run(stage: Stage, wall_change: float, spent_at: float) -> None:
    it = script("x", run_on_start=True, timeout=10)
    store = RunStore(stage.root / "runs")
    me = ProcessId.of(os.getpid())
    assert me is not None
    record = RunRecord(
        UUID(int=1), "life", it.id, it.log_source_id, pb.Timing.START, stage.clock.wall(), 10, b"/dev/null", me, 3, 4, 5
    )
    os.close(await asyncio.to_thread(store.create, record.run_id))
    await asyncio.to_thread(store.write, record)
    stage.clock.set_wall(stage.clock.wall() + round(wall_change * 1e9))
    runner = stage.runner(it)
    (adopted,) = await runner.adopt()
    (fake,) = await stage.started("taken over")
    await stage.clock.advance(max(spent_at - 0.1, 0))
    assert fake.signals == [] or spent_at == 0
    await stage.clock.advance(0.2)
    assert await runner.run_start() is PhaseResult.TIMEOUT
    assert adopted.task.done()
    assert not store.path(record.run_id).exists()


async def test_directory_of_somebody_else(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    (stage.root / "data" / "coder-script-data").mkdir(parents=True)
    somebody = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody)
    it = script("x", run_on_start=True)
    runner = stage.runner(it)
    await runner.prepare()
    assert await runner.run_start() is PhaseResult.ERROR
    assert "belongs to user" in stage.captures.errors(it)[0]
    assert not stage.launcher.started
    assert not stage.timings


@pytest.mark.spec("daemon", 36)
async def test_bad_cron_line_disables_that_schedule_alone(stage: Stage) -> None:
    bad, good = script("bad", cron="* * * *", run_on_start=True), script("good", cron="@every 1s")
    runner = stage.runner(bad, good)
    await runner.prepare()
    assert stage.captures.errors(bad) == [
        'cron line "* * * *" cannot be used, so this script is not scheduled: '
        "expected 5 to 6 fields (seconds first), found 4: [* * * *]"
    ]
    phase = asyncio.create_task(runner.run_start())
    (it,) = await stage.started("bad")
    it.exit(0)
    assert await phase is PhaseResult.OK
    runner.start_cron()
    await settle()
    await stage.clock.advance(1)
    await stage.started("good")
    # A second firing is skipped, and said so in the script's own log.
    await stage.clock.advance(1)
    assert [(source, level) for source, level, _ in stage.captures.notes[1:]] == [(good.log_source_id, pb.Log.WARN)]
    await runner.aclose()
    assert "1 run was skipped" in stage.captures.notes[-1][2]
    assert stage.launcher.started["good"].signals == [1]
    assert stage.timings[-1].stage == pb.Timing.CRON


async def test_context_that_fails_costs_one_run(stage: Stage) -> None:
    class NoShell(Context):
        def shell(self) -> str:
            raise LookupError("no shell for this user")

    it = script("x", run_on_start=True)
    with structlog.testing.capture_logs() as logs:
        assert await stage.runner(it, context=NoShell(stage.root)).run_start() is PhaseResult.ERROR
    assert logs[-1]["event"] == "script run failed"
    assert stage.captures.errors(it) == ["the script could not be run: no shell for this user"]
    assert os.listdir(stage.root / "runs") == []


async def test_launch_error_is_timed_and_told(stage: Stage) -> None:
    stage.launcher.error = LaunchError("cannot run it")
    it = script("x", run_on_start=True)
    assert await stage.runner(it).run_start() is PhaseResult.ERROR
    assert stage.captures.errors(it) == ["cannot run it"]
    (timing,) = stage.timings
    assert (timing.exit_code, timing.status) == (255, pb.Timing.EXIT_FAILURE)


async def test_cancelling_the_phase_kills_and_reports_nothing(stage: Stage) -> None:
    runner = stage.runner(script("x", run_on_start=True))
    phase = asyncio.create_task(runner.run_start())
    (it,) = await stage.started("x")
    phase.cancel()
    with pytest.raises(asyncio.CancelledError):
        await phase
    assert it.signals == [9]
    assert it.released == 1
    assert not stage.timings
    assert not stage.results
    assert os.listdir(stage.root / "runs") == []


async def test_close_is_bounded(stage: Stage) -> None:
    class Stuck(FakeScript):
        def signal_group(self, number: int) -> bool:
            self.signals.append(number)
            return True

    runner = stage.runner(script("x", run_on_stop=True))
    phase = asyncio.create_task(runner.run_stop())
    (it,) = await stage.started("x")
    it.__class__ = Stuck
    closing = asyncio.create_task(runner.aclose())
    await settle()
    await stage.clock.advance(12)
    await closing
    assert await phase is PhaseResult.ERROR
    assert it.signals == [1, 9]


@pytest.mark.spec("daemon", 34)
@pytest.mark.parametrize(
    ("ending", "code", "expected"),
    [
        (Ending.EXITED, 0, (0, pb.Timing.OK, PhaseResult.OK)),
        (Ending.EXITED, 3, (3, pb.Timing.EXIT_FAILURE, PhaseResult.ERROR)),
        (Ending.EXITED, -1, (-1, pb.Timing.EXIT_FAILURE, PhaseResult.ERROR)),
        (Ending.TIMED_OUT, -1, (255, pb.Timing.TIMED_OUT, PhaseResult.TIMEOUT)),
        (Ending.TIMED_OUT, 0, (255, pb.Timing.TIMED_OUT, PhaseResult.TIMEOUT)),
        (Ending.PIPES_LEFT_OPEN, 0, (255, pb.Timing.PIPES_LEFT_OPEN, PhaseResult.ERROR)),
        (Ending.CANCELLED, 0, (255, pb.Timing.EXIT_FAILURE, PhaseResult.ERROR)),
        (Ending.LOST, None, (255, pb.Timing.EXIT_FAILURE, PhaseResult.ERROR)),
    ],
)
def test_outcomes(ending: Ending, code: int | None, expected: tuple[int, int, PhaseResult]) -> None:
    assert outcome(ending, code) == expected


def test_timing_on_the_wire() -> None:
    """The example of daemon.md §4.10."""
    script_id = bytes.fromhex("11111111222233334444555555555555")
    timing = pb.Timing(script_id=script_id, exit_code=255, status=pb.Timing.PIPES_LEFT_OPEN)
    timing.start.FromNanoseconds(1_782_561_600 * 10**9)
    timing.end.FromNanoseconds(1_782_561_610 * 10**9)
    assert pb.WorkspaceAgentScriptCompletedRequest(timing=timing).SerializeToString() == bytes.fromhex(
        "0a270a101111111122223333444455555555555512060 8c0f6fed1061a0608caf6fed10620ff013003".replace(" ", "")
    )
    assert pb.Timing(exit_code=-1).SerializeToString().hex() == "20ffffffffffffffffff01"
