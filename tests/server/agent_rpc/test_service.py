"""What the Agent service tells others when an agent goes away in the middle of a call."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from agent.api import methods
from agent.api.proto import agent_pb2 as pb
from agent.api.versions import CURRENT
from agent.clock import Clock
from agent.rpc import Unary
from agent.server.agent_rpc.service import AgentService, Settings, Topic
from agent.server.store import logs


class Around:
    """Notes what was told."""

    database: Any = None
    settings = Settings(log_limit=1_000_000)

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.told: list[tuple[UUID, Topic]] = []

    def changed(self, agent: UUID, topic: Topic) -> None:
        self.told.append((agent, topic))

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is not needed")


async def test_followers_are_told_of_lines_whose_sender_is_gone(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    async def append(*_: object, **__: object) -> int:
        raise asyncio.CancelledError  # as a transaction does that is cancelled in its commit: the lines are stored

    monkeypatch.setattr(logs, "append", append)
    agent, around = uuid4(), Around(clock)
    handler = AgentService(agent, CURRENT, around).handlers()[methods.BATCH_CREATE_LOGS.path]
    assert isinstance(handler, Unary)
    request = pb.BatchCreateLogsRequest(log_source_id=uuid4().bytes, logs=[pb.Log(output="x")])
    with pytest.raises(asyncio.CancelledError):
        await handler.handler(request.SerializeToString())
    assert around.told == [(agent, Topic.LOGS)]
