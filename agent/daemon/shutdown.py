"""The graceful shutdown: named stages, each in its time box; a second signal skips the rest (daemon.md §3.4)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from agent.clock import Clock, deadline
from agent.daemon.logfile import get_logger

CANCEL_LIMIT = 2.0
"""Seconds that a stage gets to react to its cancellation."""


ECHO = 1.0
"""Seconds after the first stop signal within which another one is the same wish: wrappers pass on what the process
group got as well, and a dying parent of several threads sends its signal once for each."""


class StopRequest:
    """What signals have asked for: `stopping` after the first stop signal, `skip` after one that insists.

    `ending` is set by either wish to end, `making_way` when it is to make way for a newer agent; a stop wins over it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._first = 0.0
        self.stopping = asyncio.Event()
        self.skip = asyncio.Event()
        self.ending = asyncio.Event()

    @property
    def making_way(self) -> bool:
        """Whether to end as if nothing ended: the workspace goes on."""
        return self.ending.is_set() and not self.stopping.is_set()

    def make_way(self) -> None:
        """A newer agent is to take over from this one."""
        if not self.ending.is_set():
            get_logger("agent").info("making way for a newer agent")
            self.ending.set()

    def receive(self, signal: str) -> None:
        """A stop signal came; `signal` is its name."""
        log = get_logger("agent")
        if not self.stopping.is_set():
            log.info("shutting down", signal=signal)
            self._first = self._clock.now()
            self.stopping.set()
            self.ending.set()
        elif self._clock.now() - self._first >= ECHO:
            log.warning("stopping at once", signal=signal)
            self.skip.set()


@dataclass(frozen=True, slots=True)
class Stage:
    """One step. `limit` is in seconds; None leaves the step as long as it takes (stop scripts have their own limits,
    and a second signal ends them)."""

    name: str
    run: Callable[[], Awaitable[None]]
    limit: float | None


async def shut_down(stages: Sequence[Stage], skip: asyncio.Event, clock: Clock) -> list[str]:
    """Run the stages in order; the names of those that did not finish.

    A stage that fails or takes too long does not keep the next ones from running. Once `skip` is set, the stage that
    runs is cancelled and the others are left out.
    """
    log = get_logger("agent.shutdown")
    unfinished: list[str] = []
    skipped = asyncio.create_task(skip.wait(), name="shutdown skip")
    try:
        for stage in stages:
            if skip.is_set():
                unfinished.append(stage.name)
                continue
            step = asyncio.create_task(_within(stage, clock), name=f"shutdown {stage.name}")
            try:
                await asyncio.wait({step, skipped}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not step.done():
                    step.cancel()
                    await asyncio.wait({step}, timeout=CANCEL_LIMIT)
            if not step.done() or step.cancelled():
                unfinished.append(stage.name)
            elif (error := step.exception()) is not None:
                unfinished.append(stage.name)
                reason = f"not finished after {stage.limit:g} s" if isinstance(error, TimeoutError) else str(error)
                log.warning("shutdown stage did not complete", stage=stage.name, reason=reason)
    finally:
        skipped.cancel()
    if unfinished:
        log.warning("shutdown was not complete", skipped=skip.is_set(), unfinished=", ".join(unfinished))
    return unfinished


async def all_of(**waits: Awaitable[None]) -> None:
    """Wait for all at once; says which ones were left when it is cancelled."""
    tasks = {asyncio.ensure_future(wait): name for name, wait in waits.items()}
    try:
        await asyncio.wait(tasks)
    finally:
        left = [name for task, name in tasks.items() if not task.done()]
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        if left:
            get_logger("agent.shutdown").warning("not delivered to the server", left=", ".join(left))
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _within(stage: Stage, clock: Clock) -> None:
    if stage.limit is None:
        await stage.run()
        return
    async with deadline(clock, stage.limit):
        await stage.run()
