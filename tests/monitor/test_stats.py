from __future__ import annotations

import asyncio

import pytest

from agent.api.proto import agent_pb2 as pb
from agent.monitor import StatsReporter
from agent.monitor.stats import merge
from agent.rpc import ConnectionLostError
from agent.testing import ManualClock, settle
from tests.monitor.fakes import FakeApi


def interval(seconds: float) -> pb.UpdateStatsResponse:
    response = pb.UpdateStatsResponse()
    response.report_interval.FromNanoseconds(round(seconds * 1e9))
    return response


class NoTraffic:
    async def collect(self) -> pb.Stats:
        return pb.Stats(connection_median_latency_ms=-0.001)


class Traffic:
    """One packet more in every period."""

    def __init__(self) -> None:
        self.periods = 0

    async def collect(self) -> pb.Stats:
        self.periods += 1
        return pb.Stats(rx_packets=self.periods, connections_by_proto={"TCP": 1}, session_count_ssh=self.periods)


@pytest.mark.spec("agent-api", 36)
async def test_an_idle_agent_reports_zeros_at_the_period_that_the_server_sets(clock: ManualClock) -> None:
    times: list[float] = []
    api = FakeApi(interval(30), interval(30), interval(10), interval(10), interval(10))
    api.called = lambda: times.append(clock.now())
    task = asyncio.create_task(StatsReporter(clock, NoTraffic()).run(api))
    await clock.advance(85)
    task.cancel()
    assert times == [0, 30, 60, 70, 80]
    assert not api.requests[0].HasField("stats")
    for request in api.requests[1:]:
        assert request.HasField("stats")
        assert request.stats == pb.Stats(connection_median_latency_ms=-0.001)


@pytest.mark.parametrize("seconds", [0, -5])
async def test_no_interval_means_no_reports(clock: ManualClock, seconds: float) -> None:
    api = FakeApi(interval(seconds))
    await StatsReporter(clock, NoTraffic()).run(api)
    assert len(api.requests) == 1


async def test_a_tiny_interval_does_not_keep_the_agent_busy(clock: ManualClock) -> None:
    api = FakeApi(*[interval(1e-9) for _ in range(10)])
    task = asyncio.create_task(StatsReporter(clock, NoTraffic()).run(api))
    await clock.advance(3)
    task.cancel()
    assert len(api.requests) == 4


async def test_what_a_lost_connection_did_not_take_is_in_the_next_report(clock: ManualClock) -> None:
    reporter = StatsReporter(clock, Traffic())
    task = asyncio.create_task(reporter.run(FakeApi(interval(1), ConnectionLostError("gone"))))
    await clock.advance(1)
    with pytest.raises(ConnectionLostError):
        await task
    api = FakeApi(interval(1), interval(1), interval(1))
    task = asyncio.create_task(reporter.run(api))
    await clock.advance(2)
    task.cancel()
    await settle()
    first, second = (request.stats for request in api.requests[1:])
    assert (first.rx_packets, first.connections_by_proto["TCP"], first.session_count_ssh) == (1 + 2, 2, 2)
    assert second.rx_packets == 3


def test_merging_leaves_its_arguments_alone() -> None:
    old, new = pb.Stats(rx_bytes=1), pb.Stats(rx_bytes=2)
    assert merge(old, new).rx_bytes == 3
    assert (old.rx_bytes, new.rx_bytes) == (1, 2)
    assert merge(None, new) is new
