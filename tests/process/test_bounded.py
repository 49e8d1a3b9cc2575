from __future__ import annotations

import asyncio
import os
import select
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
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
        return (await self.read_all())[0]

    async def read_all(self) -> list[int]:
        return [int(word) for word in (await asyncio.to_thread(self.path.read_text)).split()]


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
    await waiting(clock)
    await clock.advance(LIMIT)
    outcome = await task
    assert (outcome.output, outcome.status, outcome.timed_out) == (b"before\n", -9, True)
    assert await asyncio.to_thread(has_ended, child)


@pytest.mark.parametrize("script", ["exit 0", "sleep 1000"])
async def test_a_descendant_outside_the_group_holds_the_pipe_no_longer_than_the_grace(
    clock: ManualClock, pid: Pid, script: str
) -> None:
    holder = f"echo out; LEADER=$$ setsid sh -c 'echo $$ $LEADER > {pid.path}; exec sleep 1000' &"
    task = asyncio.create_task(run(f"{holder} {script}", clock))
    child, shell = await pid.read_all()
    try:
        limited = script != "exit 0"
        if limited:
            await waiting(clock)
            await clock.advance(LIMIT)
        assert await asyncio.to_thread(has_ended, shell)
        await asyncio.sleep(0.01)  # the loop learns of it
        assert not task.done()
        await clock.advance(GRACE)
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


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_cancelling_during_the_start_kills_what_starts(clock: ManualClock, turns: int) -> None:
    task = asyncio.create_task(run("sleep 1000", clock))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.get_running_loop().shutdown_default_executor()
    await reaped()


async def test_a_start_abandoned_before_the_process_exists_kills_it(clock: ManualClock) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def prepare() -> Job:
        entered.set()
        go_on.wait(10)
        return job("sleep 1000")()

    task = asyncio.create_task(run_command(prepare, limit=LIMIT, max_output=1, clock=clock))
    assert await asyncio.to_thread(entered.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await asyncio.get_running_loop().shutdown_default_executor()
    await reaped()


async def test_a_group_out_of_reach_is_left_at_the_limit(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []

    def killpg(pid: int, number: int) -> None:  # what `exec sudo …` makes of it
        pids.append(pid)
        raise PermissionError

    monkeypatch.setattr(os, "killpg", killpg)
    task = asyncio.create_task(run("exec sleep 1000", clock))
    await waiting(clock)
    await clock.advance(LIMIT)
    await clock.advance(2 * GRACE)
    try:
        outcome = await task
        assert (outcome.status, outcome.timed_out) == (None, True)
    finally:
        os.kill(pids[0], 9)
    assert await asyncio.to_thread(has_ended, pids[0])
    await asyncio.sleep(0.01)  # it is reaped


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
        await waiting(clock)
        await clock.advance(LIMIT)
    if end == "cancel":
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await reaped()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert not directory.exists()


async def waiting(clock: ManualClock) -> None:
    """Wait until the limit of the command runs: its start takes a time that this clock does not show."""
    while not clock.sleepers:
        await asyncio.sleep(0.001)


async def reaped() -> None:
    """Wait until this process has no child left that the test made, ended ones included."""
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(LOOKING, children) - OTHERS:
        await asyncio.sleep(0.001)


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children()}


LOOKING = ThreadPoolExecutor(1)
"""The loop's own pool is shut down by some tests."""
OTHERS: set[int] = set()
"""Children that were there before the test: servers and browsers of other tests."""


@pytest.fixture(autouse=True)
def _others() -> None:
    OTHERS.clear()
    OTHERS.update(children())
