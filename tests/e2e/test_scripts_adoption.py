"""An agent is killed while a script runs; the next one takes over."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from agent.api.manifest import Script
from agent.api.proto import agent_pb2 as pb
from agent.scripts import PhaseResult
from agent.scripts.runs import RunRecord, RunStatus, RunStore
from tests.e2e.script_host import host_script
from tests.e2e.test_scripts import Workshop
from tests.scripts.support import eventually


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Workshop]:
    shop = Workshop(tmp_path)
    yield shop
    for runner in shop.runners:
        await runner.aclose()
    assert not (tmp_path / "runs").exists() or os.listdir(tmp_path / "runs") == []


async def killed_host(
    shop: Workshop, text: str, timeout: float = 0.0, until: str = "begun"
) -> tuple[Script, RunRecord]:
    """The script that an agent ran when it was killed: as soon as `until` was in the log file."""
    it, host = await start_host(shop, text, timeout)
    log = shop.log_of(it)
    await eventually(lambda: log.exists() and until in log.read_text())
    host.kill()
    await host.wait()
    (record,) = await asyncio.to_thread(RunStore(shop.root / "runs").load)
    return it, record


async def start_host(shop: Workshop, text: str, timeout: float = 0.0) -> tuple[Script, asyncio.subprocess.Process]:
    arguments = (text, str(timeout), str(uuid4()), str(uuid4()))
    host = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.e2e.script_host",
        str(shop.root),
        *arguments,
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
    )
    assert host.stdout is not None
    assert await host.stdout.readline() == b"ready\n"
    return host_script(*arguments), host


async def test_script_goes_on_and_nothing_is_lost(shop: Workshop) -> None:
    it, record = await killed_host(shop, "echo begun; for i in $(seq 1 40); do echo line $i; sleep 0.02; done; exit 3")
    await asyncio.sleep(0.3)  # it prints while nobody reads
    runner = shop.runner(it)
    (adopted,) = await runner.adopt()
    assert adopted.joined
    assert await runner.run_start() is PhaseResult.ERROR
    assert shop.captures.run_ids == [record.run_id]
    assert shop.log_of(it).read_text() == "begun\n" + "".join(f"line {number}\n" for number in range(1, 41))
    timing = shop.timing(it)
    assert (timing.exit_code, timing.status) == (3, pb.Timing.EXIT_FAILURE)
    assert timing.start.ToNanoseconds() == record.started
    await eventually(lambda: not record.keeper.exists())


async def test_script_that_ended_meanwhile(shop: Workshop) -> None:
    it, record = await killed_host(shop, "echo begun; sleep 0.2; echo done")
    await asyncio.sleep(1)
    adopted_at = time.time_ns()
    runner = shop.runner(it)
    await runner.adopt()
    assert await runner.run_start() is PhaseResult.OK
    assert shop.log_of(it).read_text() == "begun\ndone\n"
    assert record.started < shop.timing(it).end.ToNanoseconds() < adopted_at


async def test_time_limit_counts_from_the_start(shop: Workshop) -> None:
    it, record = await killed_host(shop, "echo begun; exec sleep 1000", timeout=1.0)
    await asyncio.sleep(max(record.started / 1e9 + 1.1 - time.time(), 0))
    runner = shop.runner(it)
    began = time.monotonic()
    await runner.adopt()
    assert await runner.run_start() is PhaseResult.TIMEOUT
    assert time.monotonic() - began < 1


async def test_keeper_killed_too(shop: Workshop) -> None:
    it, record = await killed_host(shop, "echo begun; exec sleep 2")
    record.keeper.signal(signal.SIGKILL)
    await eventually(lambda: not record.keeper.alive())
    runner = shop.runner(it)
    (adopted,) = await runner.adopt()
    assert adopted.joined
    assert await runner.run_start() is PhaseResult.ERROR
    assert shop.captures.of(it).fds == (None, None)
    assert (shop.timing(it).exit_code, shop.timing(it).status) == (255, pb.Timing.EXIT_FAILURE)
    assert shop.log_of(it).read_text() == "begun\n"


async def test_start_script_of_another_life_is_ended_and_run_again(shop: Workshop) -> None:
    it, _ = await killed_host(shop, "echo begun $$; exec sleep 1000")
    runner = shop.runner(it, life="another")
    (adopted,) = await runner.adopt()
    assert not adopted.joined
    phase = asyncio.create_task(runner.run_start())
    assert await adopted.task is PhaseResult.ERROR
    await eventually(lambda: len(shop.captures.run_ids) == 2 and b"begun" in shop.captures.of(it).stdout)
    await runner.interrupt_start()
    assert await phase is PhaseResult.ERROR


async def test_incomplete_request_runs_nothing(shop: Workshop) -> None:
    """The agent dies between writing the run down and sending the request: as if it had never been."""
    it, record = await killed_host(shop, "echo begun; exec sleep 1000")
    store = RunStore(shop.root / "runs")
    record.keeper.signal(signal.SIGKILL)
    await eventually(lambda: not record.keeper.alive())
    script = RunStatus.parse((store.path(record.run_id) / "status").read_bytes()).pid
    assert script is not None
    os.kill(script, signal.SIGKILL)
    (store.path(record.run_id) / "status").write_bytes(b"\n" * 128)
    runner = shop.runner(it)
    assert await runner.adopt() == []
    assert not store.path(record.run_id).exists()


@pytest.mark.parametrize("after", [0.0, 0.003, 0.006, 0.009, 0.012, 0.015, 0.02, 0.03, 0.05])
async def test_killed_while_it_starts_a_script_the_script_runs_once(shop: Workshop, after: float) -> None:
    ran = shop.root / "ran"
    it, host = await start_host(shop, f"echo once >> {ran}; sleep 0.3; exit 5")
    await asyncio.sleep(after)
    host.kill()
    await host.wait()
    runner = shop.runner(it)
    await runner.adopt()
    assert await runner.run_start() is PhaseResult.ERROR
    assert ran.read_text() == "once\n"
    assert shop.timing(it).exit_code == 5
