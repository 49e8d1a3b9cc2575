"""The speed test's service and its client, over streams in memory, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agent.protocol.speedtest import BLOCK, Direction, Request, SpeedtestError
from agent.tailnet.speedtest import (
    GREETING_LIMIT,
    MAX_TESTS,
    MAX_TIME,
    MIN_LIMIT,
    Interval,
    SpeedtestService,
    measure,
)
from agent.testing import ManualClock, settle
from agent.testing.streams import MemoryStream, stream_pair


@asynccontextmanager
async def served(service: SpeedtestService) -> AsyncIterator[tuple[MemoryStream, asyncio.Task[None]]]:
    """The client's end of a connection, and the service's task."""
    near, far = stream_pair()
    task = asyncio.create_task(service.serve(far))
    task.add_done_callback(lambda _: far.close())
    try:
        yield near, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def answered(stream: MemoryStream) -> dict[str, str]:
    data = b""
    while not data.endswith(b"\n"):
        data += await stream.read(1)
    found: dict[str, str] = json.loads(data)
    return found


async def run(clock: ManualClock, direction: Direction, seconds: float) -> list[Interval]:
    """A whole test, while the clock runs."""
    service = SpeedtestService(clock)
    async with served(service) as (near, task):
        intervals: list[Interval] = []

        async def client() -> None:
            async for interval in measure(near, direction, seconds, clock):
                intervals.append(interval)
            near.close()

        measuring = asyncio.create_task(client())
        while not measuring.done() and clock.now() < 20:
            await clock.advance(0.1)
        await measuring
        await settle()
        assert task.done()
        return intervals


@pytest.mark.spec("tailnet", 55)
@pytest.mark.spec("terminal-ssh-http", 48)
@pytest.mark.parametrize("direction", list(Direction))
async def test_a_test_runs_its_full_time(direction: Direction) -> None:
    intervals = await run(ManualClock(), direction, 3.0)
    assert intervals[0].start == 0.0
    assert all(one.end == other.start for one, other in itertools.pairwise(intervals))
    assert 3.0 <= intervals[-1].end < 4.0
    assert sum(interval.size for interval in intervals) >= BLOCK


async def test_a_download_is_whole_blocks_and_ends_by_itself() -> None:
    clock = ManualClock()
    async with served(SpeedtestService(clock)) as (near, task):
        await near.write(Request(0, Direction.DOWN).encode())
        assert await answered(near) == {}
        size = 0
        while data := await near.read():
            size += len(data)
        assert size == BLOCK  # the time is looked at after each block
        near.close()
        await settle()
        assert task.done()


@pytest.mark.spec("terminal-ssh-http", 48)
@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            b'{"version":1,"time":5000000000,"direction":0}\n',
            "version mismatch! Server is version 2, client is version 1",
        ),
        (b"garbage\n", "it is no JSON"),
        (Request(round((MAX_TIME + 1) * 1e9), Direction.UP).encode(), "60 s at most"),
        (b"x" * 5000, "longer than"),
    ],
)
async def test_a_refusal_is_an_error_object_and_the_end(line: bytes, text: str) -> None:
    async with served(SpeedtestService(ManualClock())) as (near, task):
        await near.write(line)
        assert text in (await answered(near))["error"]
        assert await near.read() == b""
        await settle()
        assert task.done()


async def test_few_tests_at_one_time() -> None:
    clock = ManualClock()
    service = SpeedtestService(clock)
    open_ = []
    try:
        for _ in range(MAX_TESTS):
            context = served(service)
            near, _ = await context.__aenter__()
            open_.append(context)
            await near.write(Request(10**10, Direction.DOWN).encode())
            assert await answered(near) == {}
        async with served(service) as (near, _):
            await near.write(Request(10**10, Direction.DOWN).encode())
            assert "speed tests already" in (await answered(near))["error"]
    finally:
        for context in open_:
            await context.__aexit__(None, None, None)
    # The cancelled ones gave their places back.
    async with served(service) as (near, _):
        await near.write(Request(10**9, Direction.UP).encode())
        assert await answered(near) == {}


@pytest.mark.parametrize("direction", list(Direction))
async def test_whoever_neither_reads_nor_ends_is_cut_off(direction: Direction) -> None:
    clock = ManualClock()
    async with served(SpeedtestService(clock)) as (near, task):
        await near.write(Request(2 * 10**9, direction).encode())
        await settle()
        await clock.advance(7.9)
        assert not task.done()
        await clock.advance(0.2)
        assert task.done()
        assert task.exception() is None


async def test_whoever_says_nothing_is_cut_off() -> None:
    clock = ManualClock()
    async with served(SpeedtestService(clock)) as (near, task):
        await near.write(b'{"version"')
        await clock.advance(GREETING_LIMIT + 0.1)
        assert task.done()


async def test_a_client_learns_of_a_refusal_and_of_a_dead_agent() -> None:
    clock = ManualClock()
    near, far = stream_pair()
    await far.write(b'{"error":"there are 4 speed tests already"}\n')
    with pytest.raises(SpeedtestError, match="already"):
        await anext(measure(near, Direction.DOWN, 1, clock))

    near, far = stream_pair()
    asking = asyncio.ensure_future(anext(measure(near, Direction.DOWN, 1, clock)))
    await clock.advance(GREETING_LIMIT + 0.1)
    with pytest.raises(SpeedtestError, match="did not answer"):
        await asking

    near, far = stream_pair()
    await far.write(b"{}\n")
    intervals = measure(near, Direction.DOWN, 1, clock)
    asking = asyncio.ensure_future(anext(intervals))
    await clock.advance(MIN_LIMIT + 0.1)
    with pytest.raises(SpeedtestError, match="did not end"):
        await asking

    near, far = stream_pair()
    far.shutdown_write()
    with pytest.raises(SpeedtestError, match="ended before"):
        await anext(measure(near, Direction.DOWN, 1, clock))


async def test_an_upload_lasts_until_everything_has_gone_through() -> None:
    clock = ManualClock()
    near, far = stream_pair(1 << 30)  # takes everything, and passes it on later
    await far.write(b"{}\n")
    intervals: list[Interval] = []

    async def client() -> None:
        async for interval in measure(near, Direction.UP, 0.5, clock):
            intervals.append(interval)

    measuring = asyncio.create_task(client())
    await clock.advance(0.6)
    await clock.advance(1.5)
    assert not measuring.done()
    while await far.read(1 << 24):
        await settle()
    await measuring
    assert intervals[-1].end == pytest.approx(2.1)


def test_rates_are_bits_per_second() -> None:
    assert Interval(1.0, 3.0, 1_000_000).rate == 4_000_000
    assert Interval(1.0, 1.0, 5).rate == 0
