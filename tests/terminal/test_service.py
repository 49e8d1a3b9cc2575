"""The service as far as it needs no processes."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from agent.protocol.pty import Init
from agent.terminal import Ending, TerminalService
from agent.testing import ManualClock, settle
from tests.terminal.support import MemoryStream


class NoManifest:
    """A workspace before its first manifest."""

    def environment(self) -> dict[str, str]:
        raise RuntimeError("there is no manifest yet")

    def shell(self) -> str:
        raise AssertionError

    def directory(self) -> str:
        raise AssertionError


class Reports:
    def __init__(self) -> None:
        self.endings: list[Ending] = []

    def connected(self, connection: UUID, address: bytes) -> None: ...

    def disconnected(self, connection: UUID, ending: Ending) -> None:
        self.endings.append(ending)


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
async def service(clock: ManualClock, reports: Reports) -> TerminalService:
    service = TerminalService(NoManifest(), clock, reports=reports)
    await service.open(None)
    return service


async def test_a_client_has_30_seconds_to_say_what_it_wants(
    clock: ManualClock, service: TerminalService, reports: Reports
) -> None:
    stream = MemoryStream()
    stream.say(b"\x10")
    serving = asyncio.create_task(service.serve(stream))
    await clock.advance(29)
    assert not stream.closed
    await clock.advance(2)
    await serving
    assert stream.closed
    assert reports.endings == [Ending.NETWORK_ERROR]


async def test_a_client_that_leaves_before_is_no_error(service: TerminalService, reports: Reports) -> None:
    stream = MemoryStream()
    stream.leave()
    await service.serve(stream)
    assert reports.endings == [Ending.GRACEFUL]


async def test_a_connection_that_breaks_is_an_error(service: TerminalService, reports: Reports) -> None:
    stream = MemoryStream()
    serving = asyncio.create_task(service.serve(stream))
    await settle()
    stream.abort()
    await serving
    assert reports.endings == [Ending.NETWORK_ERROR]


async def test_a_cancelled_connection_is_closed_and_reported(service: TerminalService, reports: Reports) -> None:
    stream = MemoryStream()
    serving = asyncio.create_task(service.serve(stream))
    await settle()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert stream.closed
    assert reports.endings == [Ending.HARD_SHUTDOWN]
    assert service.counters.active == 0


async def test_a_context_that_fails_costs_one_terminal(service: TerminalService, reports: Reports) -> None:
    init = Init(uuid4(), 24, 80)
    streams = [MemoryStream() for _ in range(3)]
    for stream in streams:
        stream.say(init.encode())
    await asyncio.gather(*(service.serve(stream) for stream in streams))
    assert all(stream.closed for stream in streams)
    assert reports.endings == [Ending.NETWORK_ERROR] * 3
    assert service.counters.errors == {"create_command": 1}
    assert service.terminals == 0


async def test_closing_ends_connections_that_have_said_nothing(clock: ManualClock, service: TerminalService) -> None:
    stream = MemoryStream()
    serving = asyncio.create_task(service.serve(stream))
    await settle()
    closing = asyncio.create_task(service.aclose())
    await clock.advance(3)
    await closing
    await serving
    assert stream.closed
    await service.aclose()
