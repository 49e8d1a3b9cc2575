"""Waiting for an agent, on a manual clock."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent.ops.client import ControlSocket, NoAgentError, NotReachedError
from agent.testing import ManualClock

STATUS = {"connected": False, "ready": False, "lifecycle": "starting", "trouble": "the server is away"}


class Agent(ControlSocket):
    """Answers with one state after another; the last one stays."""

    def __init__(self, *answers: dict[str, Any] | None) -> None:
        super().__init__(Path("/nowhere"))
        self._answers = list(answers)

    async def status(self) -> dict[str, Any]:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is None:
            raise NoAgentError("no agent answers")
        return STATUS | answer


async def test_an_agent_that_comes_late_is_waited_for(clock: ManualClock) -> None:
    agent = Agent(None, None, {}, {"connected": True})
    waiting = asyncio.create_task(agent.wait("connected", 60, clock))
    await clock.advance(0.5)
    assert not waiting.done()
    await clock.advance(0.5)
    assert (await waiting)["connected"]


@pytest.mark.parametrize("state", ["start_error", "start_timeout"])
async def test_failed_start_scripts_end_the_waiting_for_ready_at_once(clock: ManualClock, state: str) -> None:
    agent = Agent({"connected": True, "ready": True, "lifecycle": state})
    with pytest.raises(NotReachedError, match=state):
        await agent.wait("ready", 60, clock)
    assert (await agent.wait("connected", 60, clock))["lifecycle"] == state


@pytest.mark.parametrize(
    ("answer", "text"), [(None, "no agent answers"), ({}, "the server is away"), ({"trouble": ""}, "is starting")]
)
async def test_time_is_over(clock: ManualClock, answer: dict[str, Any] | None, text: str) -> None:
    waiting = asyncio.create_task(Agent(answer).wait("ready", 5, clock))
    await clock.advance(5)
    with pytest.raises(NotReachedError, match=f"not ready after 5 s.*{text}"):
        await waiting


async def test_no_socket_is_no_agent(tmp_path: Path) -> None:
    for path in (tmp_path / "status.sock", tmp_path / "no" / "status.sock"):
        with pytest.raises(NoAgentError, match=r"status\.sock"):
            await ControlSocket(path).ask("GET", "/status")
