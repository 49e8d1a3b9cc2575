"""Stages run in order, each within its limit, until a second signal skips the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agent.daemon.shutdown import Stage, StopRequest, shut_down
from agent.testing import ManualClock, settle


class Book:
    def __init__(self) -> None:
        self.events: list[str] = []

    def stage(
        self, name: str, limit: float | None = 5.0, *, body: Callable[[], Awaitable[None]] | None = None
    ) -> Stage:
        async def run() -> None:
            self.events.append(f"{name} begins")
            try:
                if body is not None:
                    await body()
            except asyncio.CancelledError:
                self.events.append(f"{name} cancelled")
                raise
            self.events.append(f"{name} ends")

        return Stage(name, run, limit)


async def hang() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise OSError("disk on fire")


async def test_stages_run_in_order(clock: ManualClock) -> None:
    book = Book()
    assert await shut_down([book.stage("a"), book.stage("b")], asyncio.Event(), clock) == []
    assert book.events == ["a begins", "a ends", "b begins", "b ends"]


async def test_a_stage_that_takes_too_long_or_fails_is_told_and_left(clock: ManualClock) -> None:
    book = Book()
    stages = [book.stage("slow", 5, body=hang), book.stage("sick", body=fail), book.stage("well")]
    with capture_logs() as logs:
        task = asyncio.create_task(shut_down(stages, asyncio.Event(), clock))
        await clock.advance(4.9)
        assert book.events == ["slow begins"]
        await clock.advance(0.2)
        assert await task == ["slow", "sick"]
    assert book.events[-1] == "well ends"
    assert [entry.get("reason") for entry in logs] == ["not finished after 5 s", "disk on fire", None]
    assert logs[-1]["unfinished"] == "slow, sick"


async def test_a_stage_without_a_limit_waits_for_a_second_signal(clock: ManualClock) -> None:
    book, skip = Book(), asyncio.Event()
    task = asyncio.create_task(shut_down([book.stage("scripts", None, body=hang), book.stage("next")], skip, clock))
    await clock.advance(100_000)
    assert not task.done()
    skip.set()
    await settle()
    assert await task == ["scripts", "next"]
    assert book.events == ["scripts begins", "scripts cancelled"]


async def test_cancelling_cancels_the_stage(clock: ManualClock) -> None:
    book = Book()
    task = asyncio.create_task(shut_down([book.stage("scripts", None, body=hang)], asyncio.Event(), clock))
    await settle()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert book.events == ["scripts begins", "scripts cancelled"]


@given(st.lists(st.sampled_from(["ok", "hang", "fail"]), max_size=6), st.integers(0, 30))
def test_whatever_happens_every_stage_is_accounted_for(kinds: list[str], skip_after: int) -> None:
    async def scenario() -> None:
        clock, book, skip = ManualClock(), Book(), asyncio.Event()
        bodies = {"ok": None, "hang": hang, "fail": fail}
        stages = [book.stage(f"{index}{kind}", 5, body=bodies[kind]) for index, kind in enumerate(kinds)]
        task = asyncio.create_task(shut_down(stages, skip, clock))
        await clock.advance(skip_after)
        skip.set()
        await settle()
        unfinished = await task
        finished = [event.removesuffix(" ends") for event in book.events if event.endswith(" ends")]
        assert sorted(unfinished + finished) == sorted(stage.name for stage in stages)

    asyncio.run(scenario())


async def test_an_echo_of_the_first_stop_signal_is_not_a_second_wish(clock: ManualClock) -> None:
    request = StopRequest(clock)
    request.receive("SIGTERM")
    request.receive("SIGTERM")
    await clock.advance(0.9)
    request.receive("SIGINT")
    assert request.stopping.is_set()
    assert not request.skip.is_set()
    await clock.advance(0.1)
    request.receive("SIGINT")
    assert request.skip.is_set()
