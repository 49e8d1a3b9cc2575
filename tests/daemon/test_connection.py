"""Routines are data: what their failure means, when they start, and what shutdown does to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from agent.api import methods
from agent.api.methods import AgentApi
from agent.api.proto import agent_pb2 as pb
from agent.api.versions import ApiVersion
from agent.daemon.connection import InShutdown, OnFailure, ReconnectError, Routine, serve
from agent.rpc import RpcError
from agent.testing import ManualClock, settle
from agent.testing.control_plane import FakeControlPlane


class Harness:
    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.server = FakeControlPlane(clock)
        self.stopping = asyncio.Event()
        self.began: list[str] = []
        self.ended: list[str] = []

    def endless(self, name: str) -> Callable[[AgentApi], Awaitable[None]]:
        async def run(api: AgentApi) -> None:
            self.began.append(name)
            try:
                await asyncio.Event().wait()
            finally:
                self.ended.append(name)

        return run

    def failing(self, name: str, *errors: Exception) -> Callable[[AgentApi], Awaitable[None]]:
        left = list(errors)

        async def run(api: AgentApi) -> None:
            self.began.append(name)
            if left:
                raise left.pop(0)

        return run

    @asynccontextmanager
    async def serving(self, *routines: Routine) -> AsyncIterator[asyncio.Task[Exception | None]]:
        api = await self.server.connect()
        task = asyncio.create_task(serve(api, routines, self.stopping, self.clock))
        await settle()
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})
            await self.server.aclose()


@pytest.fixture
async def harness(clock: ManualClock) -> Harness:
    return Harness(clock)


async def test_a_failed_routine_restarts_and_the_others_do_not_notice(harness: Harness) -> None:
    with capture_logs() as logs:
        async with harness.serving(
            Routine("sick", harness.failing("sick", ValueError("no"), ValueError("no"))),
            Routine("well", harness.endless("well")),
        ) as task:
            await harness.clock.advance(60)
            assert harness.began == ["sick", "well", "sick", "sick"]
            assert harness.ended == []
            assert not task.done()
    assert [entry["failures"] for entry in logs if entry["event"].startswith("routine failed")] == [1, 2]


async def test_a_routine_that_fails_for_ever_does_not_flood_the_log(harness: Harness) -> None:
    with capture_logs() as logs:
        async with harness.serving(Routine("sick", harness.failing("sick", *[ValueError("no")] * 300))):
            await harness.clock.advance(3600)
    assert harness.began.count("sick") > 100
    assert len([entry for entry in logs if entry["event"].startswith("routine failed")]) < 15


async def test_a_missing_rpc_ends_its_routine_quietly(harness: Harness) -> None:
    async def ask(api: AgentApi) -> None:
        await api.call(methods.GET_ANNOUNCEMENT_BANNERS, pb.GetAnnouncementBannersRequest())

    harness.server.failures["GetAnnouncementBanners"].append(RpcError("protocol error: unknown rpc"))
    with capture_logs() as logs:
        async with harness.serving(Routine("banners", ask)) as task:
            await harness.clock.advance(300)
            assert not task.done()
    assert len(harness.server.calls) == 1
    assert [entry["log_level"] for entry in logs] == ["info"]


async def test_a_routine_is_left_out_when_the_server_is_too_old(harness: Harness) -> None:
    harness.server.version = ApiVersion(2, 2)
    async with harness.serving(Routine("new", harness.endless("new"), needs=ApiVersion(2, 3))):
        assert harness.began == []


async def test_reconnect_policy_ends_the_connection_with_its_reason(harness: Harness) -> None:
    async with harness.serving(
        Routine("manifest", harness.failing("manifest", ValueError("bad")), on_failure=OnFailure.RECONNECT),
        Routine("well", harness.endless("well")),
    ) as task:
        cause = await task
        assert isinstance(cause, ReconnectError)
        assert str(cause) == "manifest: bad"
        assert harness.ended == ["well"]
        await harness.server.until(lambda: harness.server.connected == 0)


async def test_end_policy_ends_the_routine_only(harness: Harness) -> None:
    async with harness.serving(
        Routine("once", harness.failing("once", ValueError("no")), on_failure=OnFailure.END)
    ) as task:
        await harness.clock.advance(300)
        assert harness.began == ["once"]
        assert not task.done()


async def test_a_dependent_routine_starts_after_the_other_has_returned(harness: Harness) -> None:
    async with harness.serving(
        Routine("late", harness.endless("late"), after="first"),
        Routine("first", harness.failing("first", ValueError("not yet"))),
    ):
        assert harness.began == ["first"]
        await harness.clock.advance(10)
        assert harness.began == ["first", "first", "late"]


async def test_shutdown_stops_what_is_declared_so(harness: Harness) -> None:
    async with harness.serving(
        Routine("stop", harness.endless("stop")),
        Routine("stay", harness.endless("stay"), in_shutdown=InShutdown.STAY),
    ) as task:
        harness.stopping.set()
        await settle()
        assert harness.ended == ["stop"]
        assert not task.done()


async def test_a_connection_made_in_shutdown_runs_only_what_stays(harness: Harness) -> None:
    harness.stopping.set()
    async with harness.serving(
        Routine("stop", harness.endless("stop")),
        Routine("stay", harness.endless("stay"), in_shutdown=InShutdown.STAY),
    ):
        assert harness.began == ["stay"]


async def test_what_stays_does_not_wait_for_what_was_stopped(harness: Harness) -> None:
    stay = Routine("late", harness.endless("late"), after="first", in_shutdown=InShutdown.STAY)
    async with harness.serving(stay, Routine("first", harness.endless("first"))):
        assert harness.began == ["first"]
        harness.stopping.set()
        await settle()
        assert harness.began == ["first", "late"]
    harness.began.clear()
    async with harness.serving(stay, Routine("first", harness.endless("first"))):
        assert harness.began == ["late"]


async def test_a_plain_close_and_a_broken_connection_are_told_apart(harness: Harness) -> None:
    async with harness.serving(Routine("well", harness.endless("well"))) as task:
        await harness.server.drop()
        assert await task is None
    async with harness.serving(Routine("well", harness.endless("well"))) as task:
        await harness.server.cut()
        assert await task is not None
    assert harness.ended == ["well", "well"]


async def test_a_call_that_is_never_answered_ends_the_connection(harness: Harness) -> None:
    async def ask(api: AgentApi) -> None:
        await api.call(methods.GET_MANIFEST, pb.GetManifestRequest(), timeout=30)

    harness.server.hanging.add("GetManifest")
    async with harness.serving(Routine("manifest", ask)) as task:
        await harness.clock.advance(31)
        cause = await task
        assert "no answer" in str(cause)


async def test_cancelling_leaves_nothing_behind(harness: Harness) -> None:
    before = asyncio.all_tasks()
    async with harness.serving(Routine("well", harness.endless("well"))) as task:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert harness.ended == ["well"]
    await settle()
    assert asyncio.all_tasks() == before
