from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.process import Command
from agent.process.bounded import GRACE, Job, Outcome, StartError, run_command
from agent.testing import ManualClock

LIMIT = 5.0


def job(script: str, **environment: str) -> Callable[[], Job]:
    return lambda: Job(Command(("/bin/sh", "-c", script)), {"PATH": os.environ["PATH"], **environment}, "/")


async def run(script: str, clock: ManualClock, max_output: int = 10240, **environment: str) -> Outcome:
    return await run_command(job(script, **environment), limit=LIMIT, max_output=max_output, clock=clock)


def has_ended(pid: int) -> bool:
    """Whether the process ends within some seconds; being killed takes a moment."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 10)[0])
    finally:
        os.close(descriptor)


class Pid:
    """A FIFO through which a script tells a process id, and with it that it has come that far."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "pid"
        os.mkfifo(self.path)

    async def read(self) -> int:
        return int(await asyncio.to_thread(self.path.read_text))


@pytest.fixture
def pid(tmp_path: Path) -> Pid:
    return Pid(tmp_path)


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> object:
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) <= len(before)


async def test_both_streams_in_order(clock: ManualClock) -> None:
    outcome = await run("echo a; echo b >&2; echo $X; pwd; exit 3", clock, X="x")
    assert outcome == Outcome(b"a\nb\nx\n/\n", 8, 3, timed_out=False)


async def test_stderr_may_be_discarded(clock: ManualClock) -> None:
    command = Job(Command(("/bin/sh", "-c", "echo a; echo b >&2")), {}, merge_stderr=False)
    outcome = await run_command(lambda: command, limit=1, max_output=10, clock=clock)
    assert outcome.output == b"a\n"


async def test_stdin_is_empty(clock: ManualClock) -> None:
    assert (await run("cat; echo end", clock)).output == b"end\n"


async def test_a_signal_is_a_negative_status(clock: ManualClock) -> None:
    assert (await run("kill -TERM $$", clock)).status == -15


async def test_output_is_cut_and_counted(clock: ManualClock) -> None:
    outcome = await run("head -c 300000 /dev/zero", clock)
    assert (len(outcome.output), outcome.printed, outcome.status) == (10240, 300000, 0)


async def test_the_whole_group_is_killed_at_the_limit(clock: ManualClock, pid: Pid) -> None:
    task = asyncio.create_task(run(f"echo before; sleep 1000 & echo $! > {pid.path}; wait", clock))
    child = await pid.read()
    await clock.advance(LIMIT)
    outcome = await task
    assert (outcome.output, outcome.status, outcome.timed_out) == (b"before\n", -9, True)
    assert await asyncio.to_thread(has_ended, child)


@pytest.mark.parametrize("script", ["exit 0", "sleep 1000"])
async def test_a_descendant_outside_the_group_holds_the_pipe_no_longer_than_the_grace(
    clock: ManualClock, pid: Pid, script: str
) -> None:
    holder = f"setsid sh -c 'echo $$ > {pid.path}; exec sleep 1000' & echo out"
    task = asyncio.create_task(run(f"{holder}; {script}", clock))
    child = await pid.read()
    try:
        limited = script != "exit 0"
        for step in (LIMIT if limited else 0.0, GRACE):
            for _ in range(100):  # exits and kills take their time outside of this clock
                await asyncio.sleep(0.001)
            assert not task.done()
            await clock.advance(step)
        outcome = await task
        assert (outcome.output, outcome.status, outcome.timed_out) == (b"out\n", -9 if limited else 0, limited)
    finally:
        os.kill(child, 9)


async def test_a_missing_program(clock: ManualClock) -> None:
    missing = Job(Command(("/nowhere/sh",)), {}, "/")
    with pytest.raises(StartError, match="No such file or directory: /nowhere/sh"):
        await run_command(lambda: missing, limit=1, max_output=1, clock=clock)


async def test_a_missing_directory(clock: ManualClock) -> None:
    misplaced = Job(Command(("/bin/sh",)), {}, "/nowhere")
    with pytest.raises(StartError, match="No such file or directory: /nowhere"):
        await run_command(lambda: misplaced, limit=1, max_output=1, clock=clock)


async def test_an_error_of_the_preparation_is_the_callers(clock: ManualClock) -> None:
    def prepare() -> Job:
        raise LookupError("no shell")

    with pytest.raises(LookupError, match="no shell"):
        await run_command(prepare, limit=1, max_output=1, clock=clock)


async def test_cancelling_kills_the_group(clock: ManualClock, pid: Pid) -> None:
    task = asyncio.create_task(run(f"sleep 1000 & echo $! > {pid.path}; wait", clock))
    child = await pid.read()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(has_ended, child)
    await reaped()


async def test_cancelling_during_the_start_kills_what_starts(clock: ManualClock) -> None:
    started: list[int] = []
    task = asyncio.create_task(run("sleep 1000", clock))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await reaped()
    assert started == []


async def test_it_works_without_pidfds(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: int) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "pidfd_open", denied)
    assert (await run("echo a; exit 4", clock)).status == 4


@pytest.mark.parametrize("end", ["exit", "limit", "cancel", "no start"])
async def test_a_temporary_script_is_removed(clock: ManualClock, pid: Pid, tmp_path: Path, end: str) -> None:
    directory = tmp_path / "script"
    directory.mkdir()
    program = "/nowhere" if end == "no start" else "/bin/sh"
    script = f"echo $$ > {pid.path}" + ("" if end == "exit" else "; sleep 1000")
    prepared = Job(Command((program, "-c", script), str(directory)), dict(os.environ), "/")
    task = asyncio.create_task(run_command(lambda: prepared, limit=LIMIT, max_output=1, clock=clock))
    if end != "no start":
        await pid.read()
    if end == "limit":
        await clock.advance(LIMIT)
    if end == "cancel":
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await reaped()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert not directory.exists()


async def reaped() -> None:
    """Wait until this process has no child left."""
    while True:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        await asyncio.sleep(0.001)
