"""When and what is sent: agent-api.md §10.2."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api.proto import agent_pb2 as pb
from agent.logs.chain import Batch
from agent.logs.sender import Queue, Sender, choose
from agent.logs.spool import Spool
from agent.rpc import ConnectionLostError, RpcError
from agent.testing import ManualClock, settle
from tests.logs.kit import A, B, FakeServer, ListLogger, make_spool

T = TypeVar("T")


class _Room:
    """A sender with a spool behind it, and no thread."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.spool: Spool = make_spool(None, clock)
        self.logger = ListLogger()
        self.told: list[str] = []
        self.server = FakeServer()
        self.sender = Sender(self, clock, self.logger, lambda source, text: self.told.append(text))

    def append(self, source: UUID, *lines: str) -> None:
        self.spool.append(source, pb.Log.INFO, [line.encode() for line in lines])
        self.say(source)

    def say(self, source: UUID) -> None:
        chain = self.spool.chain(source)
        self.sender.news(Queue(source, chain.pending, chain.lines, chain.text))

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.sender.run(self.server))

    def next_batch(self, source_id: UUID) -> Awaitable[Batch | None]:
        return _done(self.spool.next_batch(source_id))

    def acknowledge(self, batch: Batch) -> Awaitable[None]:
        self.spool.acknowledge(batch)
        self.say(batch.source_id)
        return _done(None)

    def end(self) -> Awaitable[None]:
        self.spool.end()
        return _done(None)


async def _done(value: T) -> T:
    return value


@pytest.fixture
def room(clock: ManualClock) -> _Room:
    return _Room(clock)


async def test_the_first_line_leaves_at_once_and_the_next_within_a_second(room: _Room, clock: ManualClock) -> None:
    task = room.start()
    await settle()
    room.append(A, "one")
    await settle()
    assert room.server.lines[A] == ["one"]
    room.append(A, "two")
    room.append(A, "three")
    await clock.advance(0.9)
    assert len(room.server.requests) == 1
    await clock.advance(0.2)
    assert room.server.lines[A] == ["one", "two", "three"]
    assert len(room.server.requests) == 2
    await clock.advance(2)
    room.append(A, "four")
    await settle()
    assert len(room.server.requests) == 3
    task.cancel()


async def test_a_flush_and_a_full_batch_do_not_wait(room: _Room, clock: ManualClock) -> None:
    task = room.start()
    room.append(A, "one")
    await settle()
    room.append(A, "two")
    room.sender.flush(A)
    await settle()
    assert room.server.lines[A] == ["one", "two"]
    room.append(A, "x" * 1_048_500)
    room.append(A, "y" * 100)
    await settle()
    assert len(room.server.requests) == 3
    assert clock.now() == 0
    task.cancel()


async def test_setting_the_clock_back_stalls_nothing(room: _Room, clock: ManualClock) -> None:
    task = room.start()
    room.append(A, "one")
    await settle()
    clock.set_wall(1)
    room.append(A, "two")
    await clock.advance(1)
    assert room.server.lines[A] == ["one", "two"]
    task.cancel()


@given(
    st.lists(
        st.builds(
            Queue,
            st.uuids(),
            st.booleans(),
            st.integers(0, 60_000),
            st.integers(0, 2_000_000),
            st.none() | st.floats(0, 10),
            st.booleans(),
        )
    )
)
def test_the_queue_sent_of_longest_ago_goes_first(queues: list[Queue]) -> None:
    choice = choose(queues, 10.0)
    waiting = [queue for queue in queues if queue.pending]
    if isinstance(choice, Queue):
        assert any(queue.due(10.0) for queue in waiting)
        assert choice.last_sent is None or all((queue.last_sent or 0) >= choice.last_sent for queue in waiting)
    elif choice is None:
        assert not waiting
    else:
        assert 0 < choice <= 1
        assert not any(queue.due(10.0) for queue in waiting)


@pytest.mark.spec("agent-api", 32)
@pytest.mark.spec("daemon", 37)
@pytest.mark.parametrize("error", [ConnectionLostError("gone"), RpcError("no"), RuntimeError("odd")])
async def test_after_a_failed_call_the_next_connection_sends_the_same_lines(room: _Room, error: Exception) -> None:
    def fail(request: pb.BatchCreateLogsRequest) -> None:
        raise error

    room.append(A, "one", "two")
    good, room.server.fail = room.server.fail, fail
    with pytest.raises(type(error)):
        await room.sender.run(room.server)
    room.append(A, "three")
    room.server.fail = good
    await room.clock.advance(1)
    task = room.start()
    await asyncio.wait_for(room.sender.drained(), 5)
    assert room.server.lines[A] == ["one", "two", "three"]
    assert room.server.requests[0].logs[0] == room.server.requests[1].logs[0]
    task.cancel()


@pytest.mark.spec("agent-api", 31)
@pytest.mark.spec("daemon", 37)
async def test_when_the_limit_is_exceeded_sending_ends_for_good(room: _Room) -> None:
    room.server.fail = lambda request: pb.BatchCreateLogsResponse(log_limit_exceeded=True)
    room.append(A, "one")
    room.append(B, "two")
    await asyncio.wait_for(room.sender.run(room.server), 5)
    assert len(room.server.requests) == 1
    await asyncio.wait_for(room.sender.drained(), 5)
    room.append(A, "three")
    await asyncio.wait_for(room.sender.run(FakeServer()), 5)  # the next connection
    await asyncio.wait_for(room.sender.drained(), 5)
    assert room.sender.queued == (0, 0)
    assert len(room.logger.infos) == 1


async def test_a_batch_that_is_refused_for_ever_is_given_up_with_a_line(room: _Room, clock: ManualClock) -> None:
    def fail(request: pb.BatchCreateLogsRequest) -> pb.BatchCreateLogsResponse | None:
        if any(log.output == "poison" for log in request.logs):
            raise RpcError("cannot store that")
        return None

    room.server.fail = fail
    room.append(A, "poison")
    attempts = 0
    while room.spool.chain(A).pending:
        attempts += 1
        with pytest.raises(RpcError):
            await room.sender.run(room.server)
        await clock.advance(150)
    assert attempts == 5
    assert room.told == ["[agent] 1 lines are left out: the server refused them: cannot store that"]


async def test_a_refused_source_does_not_hold_up_the_others(room: _Room, clock: ManualClock) -> None:
    def fail(request: pb.BatchCreateLogsRequest) -> pb.BatchCreateLogsResponse | None:
        if UUID(bytes=request.log_source_id) == A:
            raise RpcError("no")
        return None

    room.server.fail = fail
    room.append(A, "poison")
    room.append(B, "good")
    for _ in range(2):
        task = room.start()
        await settle()
        if task.done():
            assert isinstance(task.exception(), RpcError)
        else:
            task.cancel()
    assert room.server.lines[B] == ["good"]


@pytest.mark.parametrize("turns", range(8))
async def test_cancelling_at_any_time_loses_nothing(room: _Room, turns: int) -> None:
    room.append(A, "one")
    task = room.start()
    await settle(turns)
    task.cancel()
    await asyncio.wait([task])
    room.append(A, "two")
    await room.clock.advance(1)
    task = room.start()
    await asyncio.wait_for(room.sender.drained(), 5)
    assert room.server.lines[A] == ["one", "two"]
    task.cancel()


async def test_two_connections_at_a_time_send_one_batch_at_a_time(room: _Room) -> None:
    first, second = room.start(), room.start()
    room.append(A, "one")
    await settle()
    assert len(room.server.requests) == 1
    first.cancel()
    await settle()
    room.append(A, "two")
    await room.clock.advance(1)
    assert room.server.lines[A] == ["one", "two"]
    second.cancel()
