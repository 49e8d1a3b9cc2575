"""What runs on one connection to the control plane (daemon.md §1.12, agent-api.md §9).

Each routine is declared as data. One task group holds one connection: it ends when the connection is lost, when a
routine that is declared so asks for a new one, or when it is cancelled. A routine's failure ends no other routine.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from agent.api.versions import OLDEST, ApiVersion
from agent.backoff import Backoff
from agent.clock import Clock
from agent.daemon.logfile import get_logger
from agent.rpc import ConnectionLostError, RpcAgentApi, UnsupportedError

RESTART_FIRST, RESTART_CAP = 0.5, 30.0
"""Seconds: the bounds of the wait before a failed routine starts again."""
STEADY = 60.0
"""A routine that ran this many seconds starts over with the shortest wait."""
PERSISTENT_FAILURES = 3
"""From the how-manieth failure in a row a restart is only logged at every doubling of the count."""


class OnFailure(enum.Enum):
    """What the failure of a routine means for the connection."""

    RESTART = enum.auto()
    """The routine starts again after a wait; the connection does not notice."""
    RECONNECT = enum.auto()
    """The connection is worth nothing without this routine: close it and dial again."""
    END = enum.auto()
    """The routine has ended for this connection."""


class InShutdown(enum.Enum):
    """Whether a routine goes on while the agent shuts down gracefully."""

    STAY = enum.auto()
    STOP = enum.auto()


@dataclass(frozen=True, slots=True)
class Routine:
    """One routine: `run` is called with the connection's API and returns when it has nothing more to do.

    `needs` is the oldest API version with which it makes sense, `after` the name of a routine that must have returned
    without failure on this connection before this one starts. In a shutdown, where the other may have been stopped,
    this one does not wait for it.
    """

    name: str
    run: Callable[[RpcAgentApi], Awaitable[None]]
    needs: ApiVersion = OLDEST
    on_failure: OnFailure = OnFailure.RESTART
    in_shutdown: InShutdown = InShutdown.STOP
    after: str | None = None


class ReconnectError(Exception):
    """A routine failed whose failure ends the connection; the text names it, the cause is chained."""


async def serve(
    api: RpcAgentApi, routines: Sequence[Routine], stopping: asyncio.Event, clock: Clock
) -> Exception | None:
    """Run the routines until the connection ends, and close it; what ended it, None for a plain close of the peer.

    Once `stopping` is set, only routines that stay in shutdown run.
    """
    ended: list[Exception] = []
    try:
        async with asyncio.TaskGroup() as group:
            _Running(api, routines, stopping, clock).start(group)
            cause = await api.client.wait_closed()
            raise ConnectionLostError("the control plane closed the connection") from cause
    except* (ConnectionLostError, ReconnectError) as failures:
        ended.extend(_leaves(failures))
    finally:
        await api.client.aclose()
    # Whatever else failed because the connection went away is told by its own error less well than by this one.
    cause = next((error for error in ended if isinstance(error, ReconnectError)), ended[0])
    return None if isinstance(cause, ConnectionLostError) and cause.__cause__ is None else cause


def _leaves(group: ExceptionGroup[Exception]) -> list[Exception]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, ExceptionGroup) else [error])
    ]


class _Running:
    def __init__(self, api: RpcAgentApi, routines: Sequence[Routine], stopping: asyncio.Event, clock: Clock) -> None:
        self._api = api
        self._routines = routines
        self._stopping = stopping
        self._clock = clock
        self._returned = {routine.name: asyncio.Event() for routine in routines}

    def start(self, group: asyncio.TaskGroup) -> None:
        stop = []
        for routine in self._routines:
            if routine.in_shutdown is InShutdown.STAY:
                group.create_task(self._keep(routine), name=f"routine {routine.name}")
            elif not self._stopping.is_set():
                stop.append(group.create_task(self._keep(routine), name=f"routine {routine.name}"))
        group.create_task(self._stop(stop), name="routines in shutdown")

    async def _stop(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        await self._stopping.wait()
        for task in tasks:
            task.cancel()
        for returned in self._returned.values():
            returned.set()  # what stays does not wait for what has been stopped

    async def _keep(self, routine: Routine) -> None:
        log = get_logger("agent.connection")
        if routine.needs > self._api.version:
            log.debug("feature absent: the server is too old", routine=routine.name, needs=str(routine.needs))
            return
        if routine.after is not None:
            await self._returned[routine.after].wait()
        backoff = Backoff(first=RESTART_FIRST, cap=RESTART_CAP, low=RESTART_FIRST / 5)
        while True:
            began = self._clock.now()
            try:
                await routine.run(self._api)
            except UnsupportedError as error:
                log.info("feature absent", routine=routine.name, reason=str(error))
                return
            except ConnectionLostError:
                raise
            except Exception as error:
                if routine.on_failure is OnFailure.RECONNECT:
                    raise ReconnectError(f"{routine.name}: {error}") from error
                if routine.on_failure is OnFailure.END:
                    log.warning("routine failed and has ended for this connection", routine=routine.name, error=error)
                    return
                if self._clock.now() - began >= STEADY:
                    backoff.reset()
                delay = backoff.next()
                if backoff.attempts <= PERSISTENT_FAILURES or backoff.attempts.bit_count() == 1:
                    log.warning(
                        "routine failed and will be restarted",
                        routine=routine.name,
                        failures=backoff.attempts,
                        delay=round(delay, 1),
                        error=error,
                        exc_info=error if _is_bug(error) else None,
                    )
                await self._clock.sleep(delay)
            else:
                self._returned[routine.name].set()
                return


def _is_bug(error: Exception) -> bool:
    """Whether the stack tells more than the text."""
    return isinstance(error, (TypeError, AttributeError, LookupError, AssertionError, NameError))
