"""How a run ends: by itself, at its time limit, or because it is told to (daemon.md §4.5). Policy, no processes."""

from __future__ import annotations

import asyncio
import enum
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from agent.clock import Clock, wait_for
from agent.scripts.ports import Capture
from agent.scripts.runs import RunStatus


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. `hangup`: from SIGHUP to SIGKILL. `drain`: that pipes may stay open after the script ended.

    `kill`: for the end to show after SIGKILL; a process that the kernel holds may take longer and is left.
    """

    hangup: float = 10.0
    drain: float = 10.0
    kill: float = 2.0


class Ending(enum.Enum):
    """Why a run is over."""

    EXITED = enum.auto()
    PIPES_LEFT_OPEN = enum.auto()
    TIMED_OUT = enum.auto()
    CANCELLED = enum.auto()
    LOST = enum.auto()
    """The keeper was killed: how the script ended is not known."""


class ScriptProcess(Protocol):
    """What supervising needs of a script; `KeptScript` is one."""

    async def wait(self) -> RunStatus:
        """How the script ended, pipes or not."""

    def signal_group(self, number: int) -> bool:
        """Signal the script's process group; False when nobody is left in it."""


async def supervise(
    process: ScriptProcess,
    capture: Capture,
    *,
    remaining: float | None,
    stop: asyncio.Event,
    clock: Clock,
    limits: Limits,
) -> tuple[Ending, RunStatus]:
    """See a run to its end; afterwards its capture can be finished. `remaining` is its time limit in seconds, if any.

    `stop` ends the run. From the first signal it takes at most `limits.hangup + limits.kill`. Cancelling this leaves
    the script as it is.
    """
    exited = asyncio.create_task(process.wait(), name="script exit")
    drained = asyncio.create_task(capture.wait_eof(), name="script output")
    stopping = asyncio.create_task(stop.wait(), name="script stop")
    tasks: list[asyncio.Task[Any]] = [exited, drained, stopping]
    first: list[asyncio.Task[Any]] = [exited, stopping]
    if remaining is not None:
        timer = asyncio.create_task(clock.sleep(remaining), name="script timeout")
        tasks.append(timer)
        first.append(timer)
    try:
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if exited.done():
            return await _after_exit(process, exited.result(), drained, clock, limits)
        ending = Ending.CANCELLED if stopping.done() else Ending.TIMED_OUT
        process.signal_group(signal.SIGHUP)
        if not await _all_done((exited, drained), clock, limits.hangup):
            process.signal_group(signal.SIGKILL)
            await _all_done((exited,), clock, limits.kill)
        return ending, exited.result() if exited.done() else RunStatus()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _after_exit(
    process: ScriptProcess, status: RunStatus, drained: asyncio.Task[None], clock: Clock, limits: Limits
) -> tuple[Ending, RunStatus]:
    if status.exit_code is None:
        # Nobody can tell any more when it ends or how, so it may not go on.
        if process.signal_group(signal.SIGHUP) and not await _all_done((drained,), clock, limits.hangup):
            process.signal_group(signal.SIGKILL)
        return Ending.LOST, status
    closed = await _all_done((drained,), clock, limits.drain)
    return (Ending.EXITED if closed or status.exit_code != 0 else Ending.PIPES_LEFT_OPEN), status


async def _all_done(tasks: Iterable[asyncio.Task[Any]], clock: Clock, seconds: float) -> bool:
    """Wait for tasks without cancelling them; False when that takes longer. A task's failure is raised."""
    tasks = list(tasks)
    try:
        await wait_for(clock, asyncio.wait(tasks), seconds)
    except TimeoutError:
        return False
    for task in tasks:
        task.result()
    return True
