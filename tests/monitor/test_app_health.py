from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from uuid import UUID

import pytest

from agent.api.manifest import Manifest, from_proto
from agent.api.proto import agent_pb2 as pb
from agent.monitor import AppHealthChecker
from agent.monitor.app_health import Probe
from agent.rpc import ConnectionLostError, RpcError
from agent.testing import ManualClock, settle
from tests.monitor.fakes import FakeApi

A, B, C = (UUID(int=number) for number in (10, 11, 12))
Start = Callable[..., "asyncio.Task[None]"]


def manifest(*apps: pb.WorkspaceApp) -> Manifest:
    return from_proto(pb.Manifest(agent_id=UUID(int=1).bytes, workspace_id=UUID(int=2).bytes, apps=apps))[0]


def app(
    uuid: UUID,
    url: str = "http://a",
    interval: int = 5,
    threshold: int = 1,
    health: pb.WorkspaceApp.Health.ValueType = pb.WorkspaceApp.INITIALIZING,
) -> pb.WorkspaceApp:
    message = pb.WorkspaceApp(id=uuid.bytes, slug=f"app-{uuid.int}", sharing_level=pb.WorkspaceApp.OWNER, health=health)
    message.healthcheck.url = url
    message.healthcheck.interval.seconds = interval
    message.healthcheck.threshold = threshold
    return message


class Apps:
    """Stands in for the network: `status` holds what each URL answers, None for never."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.status: dict[str, int | Exception | None] = {}
        self.checks: list[tuple[float, str]] = []
        self.open = 0

    @asynccontextmanager
    async def prober(self) -> AsyncIterator[Probe]:
        self.open += 1
        try:
            yield self.probe
        finally:
            self.open -= 1

    async def probe(self, url: str) -> int:
        self.checks.append((self.clock.now(), url))
        status = self.status.get(url, 200)
        if status is None:
            await asyncio.Event().wait()
        if isinstance(status, Exception):
            raise status
        assert status is not None
        return status


@pytest.fixture
def apps(clock: ManualClock) -> Apps:
    return Apps(clock)


@pytest.fixture
async def start(clock: ManualClock, apps: Apps) -> AsyncIterator[Start]:
    tasks: list[asyncio.Task[None]] = []

    def begin(api: FakeApi, *listed: pb.WorkspaceApp) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(AppHealthChecker(clock, apps.prober).run(api, manifest(*listed))))
        return tasks[-1]

    yield begin
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
    assert apps.open == 0


def healths(request: pb.BatchUpdateAppHealthRequest) -> dict[UUID, int]:
    return {UUID(bytes=update.id): update.health for update in request.updates}


@pytest.mark.spec("agent-api", 35)
@pytest.mark.parametrize(
    "unchecked",
    [
        app(A, health=pb.WorkspaceApp.DISABLED),
        app(A, url=""),
        app(A, interval=0),
        app(A, threshold=0),
    ],
)
async def test_without_checks_there_is_no_task_and_no_call(
    start: Start, clock: ManualClock, apps: Apps, unchecked: pb.WorkspaceApp
) -> None:
    api = FakeApi()
    task = start(api, unchecked)
    await settle()
    assert task.done()
    assert (clock.sleepers, apps.checks, api.requests) == (0, [], [])


async def test_the_first_check_comes_after_one_interval(start: Start, clock: ManualClock, apps: Apps) -> None:
    start(FakeApi(), app(A))
    await clock.advance(16)
    assert [time for time, _ in apps.checks] == [5, 10, 15]


async def test_a_change_is_reported_on_the_next_second_with_all_that_is_known(
    start: Start, clock: ManualClock, apps: Apps
) -> None:
    api = FakeApi()
    start(api, app(A), app(B, url=""), app(C, health=pb.WorkspaceApp.DISABLED))
    await clock.advance(5.5)
    assert api.requests == []
    await clock.advance(0.5)
    (request,) = api.requests
    assert healths(request) == {A: pb.HEALTHY, B: pb.INITIALIZING}
    await clock.advance(60)
    assert len(api.requests) == 1


@pytest.mark.spec("daemon", 40)
@pytest.mark.spec("agent-api", 35)
async def test_threshold_1_takes_two_failures(start: Start, clock: ManualClock, apps: Apps) -> None:
    api = FakeApi()
    apps.status["http://a"] = 500
    start(api, app(A, threshold=1))
    await clock.advance(9)
    assert api.requests == []
    await clock.advance(2)
    assert [healths(request)[A] for request in api.requests] == [pb.UNHEALTHY]


@pytest.mark.spec("daemon", 40)
@pytest.mark.spec("agent-api", 35)
async def test_404_is_healthy(start: Start, clock: ManualClock, apps: Apps) -> None:
    api = FakeApi()
    apps.status["http://a"] = 404
    start(api, app(A))
    await clock.advance(6)
    assert healths(api.requests[0]) == {A: pb.HEALTHY}


@pytest.mark.spec("daemon", 40)
async def test_a_success_forgives_the_failures(start: Start, clock: ManualClock, apps: Apps) -> None:
    api = FakeApi()
    start(api, app(A, threshold=1, health=pb.WorkspaceApp.HEALTHY))
    for status in (500, 200, 500, 200, 500, 500):
        assert api.requests == []
        apps.status["http://a"] = status
        await clock.advance(5)
    await clock.advance(1)
    assert healths(api.requests[0]) == {A: pb.UNHEALTHY}


@pytest.mark.parametrize("trouble", [None, ConnectionRefusedError("refused"), RuntimeError("a bug")])
async def test_whatever_gives_no_status_is_a_failure(
    start: Start, clock: ManualClock, apps: Apps, trouble: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    api = FakeApi()
    apps.status["http://a"] = trouble
    start(api, app(A, threshold=1), app(B, url="http://b"))
    await clock.advance(20)
    assert healths(api.requests[-1]) == {A: pb.UNHEALTHY, B: pb.HEALTHY}
    assert 'app "app-10" is unhealthy: ' in caplog.text
    assert [time for time, url in apps.checks if url == "http://a"] == [5, 10, 15, 20]


@pytest.mark.spec("daemon", 40)
async def test_a_rejected_report_is_repeated_on_the_next_second_then_more_slowly(
    start: Start, clock: ManualClock, apps: Apps
) -> None:
    times: list[float] = []
    api = FakeApi(*[RpcError("no") for _ in range(5)])
    api.called = lambda: times.append(clock.now())
    start(api, app(A))
    await clock.advance(60)
    assert times == [6, 7, 9, 13, 21, 37]


async def test_a_change_does_not_wait_for_the_repetition(start: Start, clock: ManualClock, apps: Apps) -> None:
    times: list[float] = []
    api = FakeApi(*[RpcError("no") for _ in range(9)])
    api.called = lambda: times.append(clock.now())
    start(api, app(A, interval=1, threshold=1))
    await clock.advance(20)
    apps.status["http://a"] = 500
    await clock.advance(4)
    assert times == [2, 3, 5, 9, 17, 23]


async def test_the_end_of_the_connection_ends_the_routine(start: Start, clock: ManualClock, apps: Apps) -> None:
    task = start(FakeApi(ConnectionLostError("gone")), app(A))
    await clock.advance(6)
    with pytest.raises(ConnectionLostError):
        await task
    assert clock.sleepers <= 1
