from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from agent.api.proto import agent_pb2 as pb
from agent.monitor import ConnectionReporter
from agent.monitor.connections import MAX_QUEUED, host
from agent.rpc import ConnectionLostError, RpcError, UnsupportedError
from agent.testing import ManualClock, settle
from tests.monitor.fakes import FakeApi

SSH = pb.Connection.SSH
ONE = UUID(int=1)


def told(api: FakeApi) -> list[tuple[int, int]]:
    return [(UUID(bytes=request.connection.id).int, request.connection.action) for request in api.requests]


@pytest.mark.spec("agent-api", 37)
@pytest.mark.spec("daemon", 43)
async def test_a_connection_is_reported_twice_with_one_id_and_an_empty_address_is_allowed(clock: ManualClock) -> None:
    reporter, api = ConnectionReporter(clock), FakeApi()
    task = asyncio.create_task(reporter.run(api))
    reporter.connected(ONE, SSH, "")
    await clock.advance(5)
    reporter.disconnected(ONE, SSH, "", 3, "process exited with error status: 3")
    await settle()
    task.cancel()
    begun, ended = (request.connection for request in api.requests)
    assert begun.id == ended.id == ONE.bytes
    assert (begun.action, ended.action) == (pb.Connection.CONNECT, pb.Connection.DISCONNECT)
    assert begun.ip == ended.ip == ""
    assert begun.status_code == 0
    assert not begun.HasField("reason")
    assert (ended.status_code, ended.reason) == (3, "process exited with error status: 3")
    assert ended.timestamp.seconds - begun.timestamp.seconds == 5


async def test_an_empty_reason_is_present(clock: ManualClock) -> None:
    reporter, api = ConnectionReporter(clock), FakeApi()
    reporter.disconnected(ONE, SSH, "::1", 0, "")
    task = asyncio.create_task(reporter.run(api))
    await settle()
    task.cancel()
    assert api.requests[0].connection.HasField("reason")


@pytest.mark.spec("agent-api", 37)
@pytest.mark.spec("daemon", 43)
async def test_a_refused_report_is_dropped_and_the_next_ones_go_out(clock: ManualClock) -> None:
    reporter = ConnectionReporter(clock)
    for number in range(1, 5):
        reporter.connected(UUID(int=number), SSH, "fd00::1")
    api = FakeApi(RpcError("refused"), UnsupportedError("unknown"))
    task = asyncio.create_task(reporter.run(api))
    await reporter.sent()
    task.cancel()
    assert [number for number, _ in told(api)] == [1, 2, 3, 4]


@pytest.mark.spec("daemon", 43)
async def test_reports_wait_for_a_server_and_survive_a_lost_connection_in_order(clock: ManualClock) -> None:
    reporter = ConnectionReporter(clock)
    for number in range(1, 4):
        reporter.connected(UUID(int=number), SSH, "")
    first = FakeApi(pb.ReportConnectionRequest(), ConnectionLostError("gone"))
    with pytest.raises(ConnectionLostError):
        await reporter.run(first)
    second = FakeApi()
    task = asyncio.create_task(reporter.run(second))
    await reporter.sent()
    task.cancel()
    assert [number for number, _ in told(first)] == [1, 2]
    assert [number for number, _ in told(second)] == [2, 3]  # the second may have arrived: the server merges


async def test_a_full_queue_drops_what_is_new_and_counts_by_action(clock: ManualClock) -> None:
    reporter = ConnectionReporter(clock)
    for _ in range(MAX_QUEUED):
        reporter.connected(uuid4(), SSH, "")
    reporter.connected(ONE, SSH, "")
    reporter.disconnected(ONE, SSH, "", 0, "")
    reporter.disconnected(ONE, SSH, "", 0, "")
    assert reporter.queued == MAX_QUEUED
    assert reporter.dropped == {"connect": 1, "disconnect": 2}


async def test_what_is_no_text_or_too_much_of_it_is_made_reportable(clock: ManualClock) -> None:
    reporter, api = ConnectionReporter(clock), FakeApi()
    reporter.disconnected(ONE, SSH, "", 2**40, "\udc80\0" + "x" * 5000)
    task = asyncio.create_task(reporter.run(api))
    await settle()
    task.cancel()
    report = api.requests[0].connection
    assert report.status_code == 2**31 - 1
    assert report.reason == "?\ufffd" + "x" * 1022


async def test_cancelled_in_a_call_it_forgets_nothing(clock: ManualClock) -> None:
    reporter, api = ConnectionReporter(clock), FakeApi()
    api.hold.clear()
    reporter.connected(ONE, SSH, "")
    task = asyncio.create_task(reporter.run(api))
    await settle()
    task.cancel()
    await asyncio.wait({task})
    assert reporter.queued == 1


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.0.1:4711", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.1"),
        ("[fd00::1]:22", "fd00::1"),
        ("fd00::1", "fd00::1"),
        ("localhost:99", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("", ""),
    ],
)
def test_the_port_is_no_part_of_an_address(address: str, expected: str) -> None:
    assert host(address) == expected
