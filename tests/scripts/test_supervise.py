"""The policy of how a run ends, on a manual clock."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.scripts.runs import RunStatus
from agent.scripts.supervise import Ending, Limits, supervise
from agent.testing import ManualClock, settle


@dataclass
class FakeProcess:
    """Ends when the test says so, or by a signal in `dies_of`."""

    dies_of: frozenset[int] = frozenset({signal.SIGHUP, signal.SIGKILL})
    signals: list[tuple[float, int]] = field(default_factory=list)
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    eof: asyncio.Event = field(default_factory=asyncio.Event)
    status: RunStatus = field(default_factory=lambda: RunStatus(pid=1))
    clock: ManualClock = field(default_factory=ManualClock)

    def exit(self, code: int | None, *, pipes_open: bool = False) -> None:
        self.status = RunStatus(pid=1, exit_code=code)
        self.exited.set()
        if not pipes_open:
            self.eof.set()

    async def wait(self) -> RunStatus:
        await self.exited.wait()
        return self.status

    def signal_group(self, number: int) -> bool:
        self.signals.append((self.clock.now(), number))
        if number in self.dies_of:
            self.exit(-1)
        return True

    async def wait_eof(self) -> None:
        await self.eof.wait()

    def note(self, text: str) -> None:
        raise AssertionError("supervising says nothing")

    async def finish(self) -> None:
        raise AssertionError("nor does it end the capture")

    def supervised(self, remaining: float | None, stop: asyncio.Event) -> asyncio.Task[tuple[Ending, RunStatus]]:
        run = supervise(self, self, remaining=remaining, stop=stop, clock=self.clock, limits=Limits())
        return asyncio.create_task(run)


async def test_exit() -> None:
    process = FakeProcess()
    run = process.supervised(5, asyncio.Event())
    await process.clock.advance(4)
    process.exit(3)
    assert await run == (Ending.EXITED, RunStatus(pid=1, exit_code=3))
    assert process.signals == []
    assert process.clock.sleepers == 0


async def test_timeout_and_grace() -> None:
    process = FakeProcess(dies_of=frozenset({signal.SIGKILL}))
    run = process.supervised(5, asyncio.Event())
    await process.clock.advance(14.9)
    assert not run.done()
    await process.clock.advance(0.2)
    assert (await run)[0] is Ending.TIMED_OUT
    assert process.signals == [(5, signal.SIGHUP), (15, signal.SIGKILL)]


async def test_script_that_obeys_but_whose_child_keeps_the_pipes() -> None:
    process = FakeProcess(dies_of=frozenset())
    stop = asyncio.Event()
    run = process.supervised(None, stop)
    stop.set()
    await settle()
    process.exit(-1, pipes_open=True)
    await process.clock.advance(10)
    assert (await run)[0] is Ending.CANCELLED
    assert process.signals == [(0, signal.SIGHUP), (10, signal.SIGKILL)]


async def test_process_that_even_sigkill_does_not_end() -> None:
    process = FakeProcess(dies_of=frozenset())
    run = process.supervised(1, asyncio.Event())
    await process.clock.advance(13.1)
    assert await run == (Ending.TIMED_OUT, RunStatus())


@pytest.mark.parametrize(("code", "ending"), [(0, Ending.PIPES_LEFT_OPEN), (4, Ending.EXITED), (-1, Ending.EXITED)])
async def test_pipes_left_open(code: int, ending: Ending) -> None:
    process = FakeProcess()
    run = process.supervised(5, asyncio.Event())
    await settle()
    process.exit(code, pipes_open=True)
    await process.clock.advance(9.9)
    assert not run.done()
    await process.clock.advance(0.2)
    assert (await run)[0] is ending
    assert process.signals == []  # also not by the time limit, which has passed


async def test_lost_keeper() -> None:
    process = FakeProcess(dies_of=frozenset())
    run = process.supervised(None, asyncio.Event())
    await settle()
    process.exit(None, pipes_open=True)
    await process.clock.advance(10)
    assert (await run)[0] is Ending.LOST
    assert process.signals == [(0, signal.SIGHUP), (10, signal.SIGKILL)]


@pytest.mark.parametrize("when", [0, 3, 5, 7, 16])
async def test_cancelled_anywhere_leaves_no_task(when: float) -> None:
    before = asyncio.all_tasks()
    process = FakeProcess(dies_of=frozenset())
    run = process.supervised(5, asyncio.Event())
    await process.clock.advance(when)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert asyncio.all_tasks() == before
    assert process.clock.sleepers == 0


@settings(deadline=None)
@given(
    timeout=st.none() | st.integers(0, 30),
    stop_at=st.none() | st.integers(0, 30),
    exit_at=st.integers(0, 60),
    eof_after=st.integers(0, 30),
    code=st.sampled_from([0, 1, -1]),
    obeys=st.booleans(),
)
def test_it_always_ends_in_time(
    timeout: int | None, stop_at: int | None, exit_at: int, eof_after: int, code: int, obeys: bool
) -> None:
    async def scenario() -> None:
        process = FakeProcess(dies_of=frozenset({signal.SIGHUP, signal.SIGKILL} if obeys else {signal.SIGKILL}))
        stop = asyncio.Event()
        run = process.supervised(timeout, stop)
        for second in range(100):
            if second == stop_at:
                stop.set()
            if second == exit_at and not process.exited.is_set():
                process.exit(code, pipes_open=True)
            if second == exit_at + eof_after:
                process.eof.set()
            await settle()
            if run.done():
                break
            await process.clock.advance(1)
        ending, _ = await run
        limits = [limit for limit in (timeout, stop_at) if limit is not None]
        end_of_all = min([exit_at + 10, *(limit + 12 for limit in limits)])
        assert process.clock.now() <= end_of_all + 10
        signalled = [number for _, number in process.signals]
        assert signalled in ([], [signal.SIGHUP], [signal.SIGHUP, signal.SIGKILL])
        if ending in (Ending.EXITED, Ending.PIPES_LEFT_OPEN):
            assert not signalled
            assert not limits or exit_at <= min(limits)
        else:
            assert signalled
            assert min(limits) <= exit_at

    asyncio.run(scenario())
