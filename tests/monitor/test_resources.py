from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from agent.api.proto import agent_pb2 as pb
from agent.monitor import ResourceMonitor
from agent.monitor.usage import Usage, UsageError
from agent.rpc import ConnectionLostError, RpcError
from agent.testing import ManualClock
from tests.monitor.fakes import FakeApi


def wanted(
    count: int = 20, interval: int = 10, *, memory: bool = True, volumes: tuple[str, ...] = ("/",)
) -> pb.GetResourcesMonitoringConfigurationResponse:
    answer = pb.GetResourcesMonitoringConfigurationResponse()
    answer.config.num_datapoints = count
    answer.config.collection_interval_seconds = interval
    if memory:
        answer.memory.enabled = True
    for path in volumes:
        answer.volumes.add(enabled=True, path=path)
    answer.volumes.add(enabled=False, path="/off")
    return answer


class Machine:
    """Uses a byte more at each reading."""

    def __init__(self) -> None:
        self.reads = 0
        self.broken: set[str] = set()

    def memory(self) -> Usage:
        self.reads += 1
        return Usage(self.reads, 1000)

    def disk(self, path: str) -> Usage:
        if path in self.broken:
            raise UsageError(f'"{path}": no such file')
        return Usage(7, 70)


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The manual clock does not wait for threads."""

    async def at_once(call: Callable[..., object], *arguments: object) -> object:
        return call(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", at_once)


@pytest.mark.spec("agent-api", 38)
@pytest.mark.spec("daemon", 42)
async def test_the_first_push_is_a_full_window_and_each_interval_brings_the_newest(clock: ManualClock) -> None:
    machine, times = Machine(), []
    api = FakeApi(wanted(), pb.PushResourcesMonitoringUsageResponse(), RpcError("no"), RpcError("no"))
    api.called = lambda: times.append(clock.now())
    task = asyncio.create_task(ResourceMonitor(clock, machine.memory, machine.disk).run(api))
    await clock.advance(230)
    assert not task.done()  # refused pushes end nothing
    task.cancel()
    assert times == [0, 200, 210, 220, 230]
    windows = [[point.memory.used for point in request.datapoints] for request in api.requests[1:]]
    assert windows == [list(range(first, first + 20)) for first in (1, 2, 3, 4)]
    point = api.requests[1].datapoints[0]
    assert [(volume.volume, volume.used, volume.total) for volume in point.volumes] == [("/", 7, 70)]
    assert point.memory.total == 1000
    gaps = {
        after.collected_at.ToNanoseconds() - before.collected_at.ToNanoseconds()
        for before, after in zip(api.requests[1].datapoints, api.requests[1].datapoints[1:], strict=False)
    }
    assert gaps == {10_000_000_000}


@pytest.mark.spec("daemon", 42)
async def test_a_volume_that_cannot_be_read_is_left_out_and_told_once(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine()
    machine.broken.add("/gone")
    api = FakeApi(wanted(3, 1, volumes=("/gone", "/data")))
    task = asyncio.create_task(ResourceMonitor(clock, machine.memory, machine.disk).run(api))
    with caplog.at_level(logging.WARNING):
        await clock.advance(4)
    task.cancel()
    for point in api.requests[1].datapoints:
        assert [volume.volume for volume in point.volumes] == ["/data"]
        assert point.HasField("memory")
    assert [record.getMessage() for record in caplog.records].count(
        'usage of /gone cannot be read and is left out: "/gone": no such file'
    ) == 1


@pytest.mark.parametrize(
    "answer",
    [wanted(memory=False, volumes=()), wanted(0), wanted(20, 0), wanted(-1, -1)],
)
async def test_where_nothing_is_asked_for_nothing_is_read(
    clock: ManualClock, answer: pb.GetResourcesMonitoringConfigurationResponse
) -> None:
    machine, api = Machine(), FakeApi(answer)
    await ResourceMonitor(clock, machine.memory, machine.disk).run(api)
    assert machine.reads == 0


async def test_a_lost_connection_ends_it(clock: ManualClock) -> None:
    machine = Machine()
    api = FakeApi(wanted(1, 1), ConnectionLostError("gone"))
    task = asyncio.create_task(ResourceMonitor(clock, machine.memory, machine.disk).run(api))
    await clock.advance(1)
    with pytest.raises(ConnectionLostError):
        await task
