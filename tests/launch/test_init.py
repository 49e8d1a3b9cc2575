"""The parent of an agent as PID 1, in process-id name spaces of its own: signals, orphans, crashes, exit codes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent.launch import init

INIT = str(Path(init.__file__))
UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def _can_unshare() -> bool:
    return bool(shutil.which("unshare")) and subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not _can_unshare(), reason="needs the right to make a process-id name space (root)")


class Contained:
    """A shell script in the place of the agent, below the real parent, which is PID 1."""

    def __init__(self, directory: Path, process: asyncio.subprocess.Process) -> None:
        self.directory = directory
        self.process = process

    def lines(self) -> list[str]:
        told = self.directory / "told"
        return told.read_text().split("\n")[:-1] if told.exists() else []

    async def until(self, done: Callable[[list[str]], bool]) -> list[str]:
        end = time.monotonic() + 20
        while not done(self.lines()):
            assert time.monotonic() < end, f"{self.lines()} {self.log()}"
            await asyncio.sleep(0.02)
        return self.lines()

    def pid(self) -> int:
        """The parent as this name space sees it: the only child of `unshare`."""
        task = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        (child,) = task.read_text().split()
        return int(child)

    def log(self) -> str:
        return (self.directory / "coder-agent-init.log").read_text()

    async def code(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 20)


@pytest.fixture
async def contained(tmp_path: Path) -> AsyncIterator[Callable[[str], object]]:
    started = []

    async def start(script: str) -> Contained:
        log = str(tmp_path / "coder-agent-init.log")
        process = await asyncio.create_subprocess_exec(
            *UNSHARE, sys.executable, "-I", "-S", INIT, log, "/bin/sh", "-c", script, "agent", cwd=tmp_path
        )
        started.append(process)
        return Contained(tmp_path, process)

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.spec("daemon", 6)
@pytest.mark.parametrize("code", [0, 1, 42])
async def test_exit_code_is_the_agents(contained, code: int) -> None:  # type: ignore[no-untyped-def]
    here = await contained(f'echo "$@" >> told; exit {code}')
    assert await here.code() == code
    assert here.lines() == ["--no-reap"]
    assert os.stat(here.directory / "coder-agent-init.log").st_mode & 0o777 == 0o600


@pytest.mark.spec("daemon", 6)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("last", "code"), [("exit 0", 0), ("kill -9 $$", 137), ("trap - TERM; kill -TERM $$", 143)])
async def test_stop_signals_reach_the_agent(contained, number: signal.Signals, last: str, code: int) -> None:  # type: ignore[no-untyped-def]
    name = number.name.removeprefix("SIG")
    here = await contained(f"trap 'echo got >> told; {last}' {name}; echo up >> told; while :; do sleep 0.05; done")
    await here.until(lambda lines: lines == ["up"])
    os.kill(here.pid(), number)
    assert await here.code() == code
    assert here.lines() == ["up", "got"]


@pytest.mark.spec("daemon", 6)
async def test_orphans_are_buried(contained) -> None:  # type: ignore[no-untyped-def]
    script = "for i in 1 2 3 4 5; do (sleep 0.1 & sleep 0.1 &); done; sleep 1; "
    # The parent, this shell and the programs of the pipe are all that is left.
    script += "grep -l '^State:.Z' /proc/[0-9]*/status >> told; echo looked >> told"
    here = await contained(script)
    assert await here.code() == 0
    assert here.lines() == ["looked"]


async def test_agent_that_crashes_is_started_again_and_orphans_go_on(contained) -> None:  # type: ignore[no-untyped-def]
    script = (
        "if [ -e told ]; then kill -0 $(cat kept) && echo kept >> told; exit 0; fi; "
        "setsid sleep 60 & echo $! > kept; echo first >> told; kill -9 $$"
    )
    here = await contained(script)
    assert await here.code() == 0
    assert here.lines() == ["first", "kept"]
    assert "crashed with 137" in here.log()


async def test_agent_that_makes_way_is_followed_at_once(contained) -> None:  # type: ignore[no-untyped-def]
    script = "trap 'exit 0' USR2; trap 'exit 3' TERM; echo up >> told; while :; do sleep 0.02; done"
    here = await contained(script)
    await here.until(lambda lines: lines == ["up"])
    began = time.monotonic()
    os.kill(here.pid(), signal.SIGUSR2)
    await here.until(lambda lines: lines == ["up", "up"])
    assert time.monotonic() - began < init.FIRST
    os.kill(here.pid(), signal.SIGTERM)
    assert await here.code() == 3


async def test_stop_while_a_crashed_agent_is_waited_for(contained) -> None:  # type: ignore[no-untyped-def]
    here = await contained("echo up >> told; kill -9 $$")
    await here.until(lambda lines: len(lines) == 2)  # now it waits for two seconds
    await asyncio.sleep(0.2)
    began = time.monotonic()
    os.kill(here.pid(), signal.SIGTERM)
    assert await here.code() == 137
    assert time.monotonic() - began < 1
    assert len(here.lines()) == 2


async def test_program_that_is_not_there_ends_it(tmp_path: Path) -> None:
    log = tmp_path / "init.log"
    process = await asyncio.create_subprocess_exec(*UNSHARE, sys.executable, "-I", "-S", INIT, str(log), "/nowhere/x")
    assert await asyncio.wait_for(process.wait(), 20) == 1
    assert "/nowhere/x" in log.read_text()


async def test_parent_is_small(contained) -> None:  # type: ignore[no-untyped-def]
    here = await contained("echo up >> told; sleep 60")
    await here.until(lambda lines: lines == ["up"])
    rollup = Path(f"/proc/{here.pid()}/smaps_rollup").read_text()
    private = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
    assert private < 5 * 1024, rollup  # KiB
