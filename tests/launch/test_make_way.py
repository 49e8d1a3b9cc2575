"""An agent makes way for a newer one: nothing of the workspace ends with it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from agent.testing.deployment import Deployment

pytestmark = pytest.mark.timeout(120)

DEFINITION = """
name: way
scripts:
  - display_name: begin
    run_on_start: true
    script: |
      echo $$ > "$PLACE/pid"
      for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.5; done
  - display_name: end
    run_on_stop: true
    script: touch "$PLACE/stopped"
"""


async def test_scripts_go_on_and_stop_scripts_wait_for_a_stop(tmp_path: Path) -> None:
    environment = {**os.environ, "PLACE": str(tmp_path)}
    async with Deployment(tmp_path, environment=environment) as running:
        created = await running.create_agent(DEFINITION)
        agent = running.agent(created)
        await agent.start()
        await running.wait_for(created, 30, lifecycle_state={"starting"}, status={"connected"})
        while not (tmp_path / "pid").exists():
            await asyncio.sleep(0.02)
        script = int((tmp_path / "pid").read_text())

        began = time.monotonic()
        agent.send_signal(signal.SIGUSR2)
        assert await agent.wait() == 0
        assert time.monotonic() - began < 3
        assert os.path.exists(f"/proc/{script}")
        assert not (tmp_path / "stopped").exists()
        assert not (tmp_path / "way.sock").exists()

        await agent.start()
        await running.wait_for(created, 30, lifecycle_state={"ready"})
        assert await agent.stop(30) == 0
        assert (tmp_path / "stopped").exists()
        lines = await running.logs(created)
        assert [line for line in lines if line.startswith("line ")] == [f"line {number}" for number in range(1, 9)]


async def test_stop_wins_over_making_way(tmp_path: Path) -> None:
    environment = {**os.environ, "PLACE": str(tmp_path)}
    async with Deployment(tmp_path, environment=environment) as running:
        created = await running.create_agent(DEFINITION.replace("1 2 3 4 5 6 7 8", "1"))
        agent = running.agent(created)
        await agent.start()
        await running.wait_for(created, 30, lifecycle_state={"ready"})
        agent.send_signal(signal.SIGTERM)
        agent.send_signal(signal.SIGUSR2)
        assert await agent.wait() == 0
        assert (tmp_path / "stopped").exists()
