"""Lifecycle, timings and banners: in order, once, on whatever connection there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from agent.api.methods import AgentApi
from agent.api.proto import agent_pb2 as pb
from agent.api.versions import ApiVersion
from agent.daemon.journal import Journal
from agent.daemon.lifecycle import State
from agent.daemon.reports import Banners, LifecycleReporter, TimingReporter
from agent.rpc import ConnectionLostError, RpcError
from agent.testing import ManualClock, settle
from agent.testing.control_plane import FakeControlPlane


async def nothing() -> None:
    return


@pytest.fixture
async def server(clock: ManualClock) -> AsyncIterator[FakeControlPlane]:
    server = FakeControlPlane(clock)
    yield server
    await server.aclose()


@asynccontextmanager
async def connected(
    server: FakeControlPlane, run: Callable[[AgentApi], Awaitable[None]]
) -> AsyncIterator[asyncio.Task[None]]:
    api = await server.connect()
    task: asyncio.Task[None] = asyncio.ensure_future(run(api))
    await settle(50)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
        await api.client.aclose()


@pytest.mark.spec("daemon", 24)
async def test_states_entered_offline_arrive_in_order_with_their_times(
    clock: ManualClock, server: FakeControlPlane
) -> None:
    lifecycle = LifecycleReporter(Journal(), clock, nothing)
    clock.set_wall(1_782_561_600_123_456_000)
    lifecycle.enter(State.STARTING)
    await clock.advance(1)
    lifecycle.enter(State.READY)
    await clock.advance(3600)
    async with connected(server, lifecycle.run):
        await lifecycle.acknowledged()
    assert server.states == ["starting", "ready"]
    times = [request.lifecycle.changed_at for request in server.received("UpdateLifecycle")]
    assert [time.ToNanoseconds() for time in times] == [1_782_561_600_123_456_000, 1_782_561_601_123_456_000]


@pytest.mark.spec("daemon", 23)
@pytest.mark.spec("agent-api", 28)
async def test_a_state_that_was_cut_off_is_sent_at_once_and_no_other_again(
    clock: ManualClock, server: FakeControlPlane
) -> None:
    lifecycle = LifecycleReporter(Journal(), clock, nothing)
    lifecycle.enter(State.STARTING)
    async with connected(server, lifecycle.run):
        await lifecycle.acknowledged()
        server.hanging.add("UpdateLifecycle")
        lifecycle.enter(State.READY)
        await settle(50)
        await server.cut()
    server.hanging.clear()
    async with connected(server, lifecycle.run):
        await lifecycle.acknowledged()
    assert server.states == ["starting", "ready", "ready"]
    async with connected(server, lifecycle.run):
        await clock.advance(60)
    assert len(server.calls) == 3


async def test_a_server_that_takes_a_state_and_never_answers_costs_the_connection(
    clock: ManualClock, server: FakeControlPlane
) -> None:
    lifecycle = LifecycleReporter(Journal(), clock, nothing)
    server.hanging.add("UpdateLifecycle")
    lifecycle.enter(State.STARTING)
    async with connected(server, lifecycle.run) as task:
        await clock.advance(30)
        with pytest.raises(ConnectionLostError, match="no answer"):
            await task


@pytest.mark.spec("daemon", 23)
async def test_another_agent_hears_the_current_state(clock: ManualClock, server: FakeControlPlane) -> None:
    lifecycle = LifecycleReporter(Journal(), clock, nothing)
    lifecycle.enter(State.STARTING)
    lifecycle.enter(State.READY)
    async with connected(server, lifecycle.run):
        await lifecycle.acknowledged()
        await clock.advance(5)
        lifecycle.reintroduce()
        await lifecycle.acknowledged()
    assert server.states == ["starting", "ready", "starting", "ready"]
    assert server.received("UpdateLifecycle")[3].lifecycle.changed_at.ToMicroseconds() == clock.wall() // 1000


async def test_a_refused_state_stays_pending(clock: ManualClock, server: FakeControlPlane) -> None:
    journal = Journal()
    lifecycle = LifecycleReporter(journal, clock, nothing)
    lifecycle.enter(State.STARTING)
    server.failures["UpdateLifecycle"].append(RpcError("database is away"))
    async with connected(server, lifecycle.run) as task:
        with pytest.raises(RpcError):
            await task
    assert len(journal.state.lifecycle.pending) == 1


async def test_a_step_back_is_dropped_with_a_warning(clock: ManualClock) -> None:
    lifecycle = LifecycleReporter(Journal(), clock, nothing)
    lifecycle.enter(State.SHUTTING_DOWN)
    with capture_logs() as logs:
        lifecycle.enter(State.START_ERROR)
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert lifecycle.state is State.SHUTTING_DOWN


@pytest.mark.parametrize(("state", "waits"), [(State.READY, True), (State.STARTING, False), (State.OFF, True)])
async def test_lines_go_before_the_state_that_follows_them_but_not_for_ever(
    clock: ManualClock, server: FakeControlPlane, state: State, waits: bool
) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    lifecycle = LifecycleReporter(Journal(), clock, never)
    lifecycle.enter(state)
    async with connected(server, lifecycle.run):
        assert len(server.calls) == (0 if waits else 1)
        await clock.advance(0.5)
        await lifecycle.acknowledged()


def timing(code: int) -> pb.Timing:
    return pb.Timing(script_id=bytes(16), exit_code=code)


def codes(server: FakeControlPlane) -> list[int]:
    return [request.timing.exit_code for request in server.received("ScriptCompleted")]


async def test_timings_of_any_time_go_out_on_the_current_connection(
    clock: ManualClock, server: FakeControlPlane
) -> None:
    timings = TimingReporter(Journal())
    timings.add(timing(1))
    async with connected(server, timings.run):
        await timings.sent()
        server.hanging.add("ScriptCompleted")
        timings.add(timing(2))
        timings.add(timing(3))
        await settle(50)
    server.hanging.clear()
    async with connected(server, timings.run):
        await timings.sent()
        timings.add(timing(4))
        await timings.sent()
    assert codes(server) == [1, 2, 2, 3, 4]


async def test_a_timing_that_is_never_answered_ends_the_connection(
    clock: ManualClock, server: FakeControlPlane
) -> None:
    timings = TimingReporter(Journal())
    timings.add(timing(1))
    server.hanging.add("ScriptCompleted")
    async with connected(server, timings.run) as task:
        await clock.advance(31)
        with pytest.raises(ConnectionLostError):
            await task


async def test_a_refused_timing_is_dropped_with_a_warning(clock: ManualClock, server: FakeControlPlane) -> None:
    timings = TimingReporter(Journal())
    timings.add(timing(1))
    timings.add(timing(2))
    server.failures["ScriptCompleted"].append(RpcError("no such script"))
    with capture_logs() as logs:
        async with connected(server, timings.run):
            await timings.sent()
    assert codes(server) == [1, 2]
    assert [entry["log_level"] for entry in logs] == ["warning"]


async def test_a_server_that_takes_no_timings_holds_nothing_up(clock: ManualClock, server: FakeControlPlane) -> None:
    server.version = ApiVersion(2, 2)
    timings = TimingReporter(Journal())
    timings.add(timing(1))
    async with connected(server, timings.run):
        await timings.sent()
        timings.add(timing(2))
        await timings.sent()
    assert server.calls == []


async def test_timings_are_bounded(clock: ManualClock, server: FakeControlPlane) -> None:
    timings = TimingReporter(Journal())
    for number in range(1100):
        timings.add(timing(number))
    async with connected(server, timings.run):
        await timings.sent()
    assert codes(server) == list(range(100, 1100))


async def test_banners_are_looked_at_every_two_minutes(clock: ManualClock, server: FakeControlPlane) -> None:
    async def answer(request: object) -> pb.GetAnnouncementBannersResponse:
        shown = pb.BannerConfig(enabled=True, message="hello")
        return pb.GetAnnouncementBannersResponse(announcement_banners=[shown, pb.BannerConfig(message="off")])

    server.handlers["GetAnnouncementBanners"] = answer
    banners = Banners(clock)
    async with connected(server, banners.run):
        assert [banner.message for banner in banners.current] == ["hello"]
        await clock.advance(119)
        assert len(server.calls) == 1
        await clock.advance(2)
        assert len(server.calls) == 2


async def test_an_old_server_has_one_banner(clock: ManualClock, server: FakeControlPlane) -> None:
    async def answer(request: object) -> pb.ServiceBanner:
        return pb.ServiceBanner(enabled=True, message="old", background_color="#ff0000")

    server.version = ApiVersion(2, 0)
    server.handlers["GetServiceBanner"] = answer
    banners = Banners(clock)
    async with connected(server, banners.run):
        assert [banner.message for banner in banners.current] == ["old"]
    assert [name for name, _ in server.calls] == ["GetServiceBanner"]
