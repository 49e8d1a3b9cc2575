"""A server without room for another connection."""

from __future__ import annotations

import asyncio
import errno
import resource
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.server.open_files import COMPLAINT_PERIOD, LoopErrors, allow_many
from agent.testing import ManualClock


@pytest.fixture
def soft_limit() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("soft_limit")
def test_as_many_as_the_operator_allows() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, most), most))
    allow_many()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)


async def test_it_is_said_once_a_minute(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    handler, loop = LoopErrors(clock), asyncio.get_running_loop()
    context: dict[str, Any] = {
        "message": "socket.accept() out of system resource",
        "exception": OSError(errno.EMFILE, "Too many open files"),
    }
    with capture_logs() as said:
        for _ in range(1000):
            handler(loop, context)
        assert [entry["error"] for entry in said] == ["Too many open files"]
        await clock.advance(COMPLAINT_PERIOD)
        handler(loop, context)
        assert len(said) == 2
    assert not caplog.records
    handler(loop, {"message": "something else"})
    assert "something else" in caplog.text
