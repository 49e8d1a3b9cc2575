"""What real processes survive: a killed server, a killed agent, a state directory that cannot be written."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.testing.deployment import CreatedAgent, Deployment

LINES = 200_000
AWAY = 10.0  # seconds
FOUND_AGAIN = 2.0
SLACK = 2.0  # for a busy machine

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with Deployment(tmp_path) as running:
        yield running


def printing(lines: int, *, mark: Path | None = None) -> str:
    """A definition whose start script prints so many numbered lines in some seconds, 1000 at a time."""
    script = f"""
        {f"echo ran >> {mark}" if mark else ":"}
        i=0
        while [ $i -lt {lines // 1000} ]; do
            seq -f 'line %.0f' $((i * 1000 + 1)) $((i * 1000 + 1000))
            sleep 0.03
            i=$((i + 1))
        done
    """
    return json.dumps({"name": "dev", "scripts": [{"display_name": "print", "script": script, "run_on_start": True}]})


def numbered(lines: int) -> list[str]:
    return [f"line {number}" for number in range(1, lines + 1)]


async def until_length(deployment: Deployment, created: CreatedAgent, size: int, seconds: float) -> None:
    """Until the server has stored so many bytes of log lines."""
    async with asyncio.timeout(seconds):
        while (await deployment.request("GET", f"workspaceagents/{created.id}"))["logs_length"] < size:
            await asyncio.sleep(0.05)


async def until_all(deployment: Deployment, created: CreatedAgent, lines: int) -> list[str]:
    """What is stored once the last line has arrived."""
    await until_length(deployment, created, sum(map(len, numbered(lines))), 60)
    async with asyncio.timeout(30):
        while (stored := await deployment.logs(created))[-1] != f"line {lines}":
            await asyncio.sleep(0.2)
    return stored


@pytest.mark.spec("agent-api", 32)
async def test_a_killed_server_loses_and_doubles_no_line(deployment: Deployment) -> None:
    created = await deployment.create_agent(printing(LINES))
    await deployment.agent(created).start()
    await until_length(deployment, created, 200_000, 30)
    await deployment.server.kill()
    await asyncio.sleep(AWAY)
    await deployment.start_server()
    returned = time.monotonic()
    await deployment.wait_for(created, 30, status={"connected"})
    assert time.monotonic() - returned < FOUND_AGAIN + SLACK
    await deployment.wait_for(created, 60, lifecycle_state={"ready"})
    assert await until_all(deployment, created, LINES) == numbered(LINES)


async def test_a_killed_agent_loses_and_doubles_no_line_and_runs_nothing_twice(
    deployment: Deployment, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    created = await deployment.create_agent(printing(LINES, mark=mark))
    agent = deployment.agent(created)
    await agent.start()
    await until_length(deployment, created, 200_000, 30)
    await agent.kill()
    await asyncio.sleep(1)
    await agent.start()
    await deployment.wait_for(created, 60, lifecycle_state={"ready"})
    assert await until_all(deployment, created, LINES) == numbered(LINES)
    assert mark.read_text().split() == ["ran"]


async def test_an_agent_killed_again_and_again_loses_nothing(deployment: Deployment, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    created = await deployment.create_agent(printing(LINES, mark=mark))
    agent = deployment.agent(created)
    for number in range(1, 6):
        await agent.start()
        await until_length(deployment, created, number * 100_000, 30)
        await agent.kill()
    await agent.start()
    await deployment.wait_for(created, 60, lifecycle_state={"ready"})
    assert await until_all(deployment, created, LINES) == numbered(LINES)
    assert mark.read_text().split() == ["ran"]


async def test_a_full_state_directory_is_one_warning_and_logs_go_on(deployment: Deployment) -> None:
    created = await deployment.create_agent(printing(20_000))
    agent = deployment.agent(created)
    await agent.start()
    # Writing a file beyond its first 64 KiB fails from now on, for root, too.
    resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (65536, 65536))
    await deployment.wait_for(created, 60, lifecycle_state={"ready"})
    lines = await until_all(deployment, created, 20_000)
    notes = [line for line in lines if not line.startswith("line ")]
    assert len(notes) == 1, "the script's log file is full, too"
    assert "log file" in notes[0]
    assert [line for line in lines if line not in notes] == numbered(20_000)
    assert agent.printed().count("in memory") == 1


async def test_a_state_directory_that_cannot_be_made_is_one_warning_and_logs_go_on(deployment: Deployment) -> None:
    created = await deployment.create_agent(printing(20_000))
    agent = deployment.agent(created, "--state-dir=/dev/null/state")
    await agent.start()
    await deployment.wait_for(created, 60, lifecycle_state={"ready"})
    assert await until_all(deployment, created, 20_000) == numbered(20_000)
    assert agent.printed().count("/dev/null/state") == 1
