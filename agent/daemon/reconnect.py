"""Staying connected: dial, serve the connection, wait, dial again, until cancelled (daemon.md §1.12, §1.13).

`Retry` decides how long to wait and `Chronicle` what is worth a log line, both without I/O.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.api.versions import ApiVersion
from agent.backoff import Backoff
from agent.clock import Clock
from agent.control import RedirectError, RefusedError, UnreachableError, VersionMismatchError
from agent.daemon.connection import ReconnectError, Routine, serve
from agent.daemon.logfile import get_logger
from agent.identity import ExchangeRefusedError, IdentityError
from agent.rpc import ConnectionLostError, RpcAgentApi

FIRST, LOW = 0.1, 0.05
AWAY_CAP = 2.0
"""Seconds between attempts at most while nobody answers: a server that is back is found within this time. The full
jitter under the cap spreads the agents over it."""
REFUSED_CAP = 10.0
"""Seconds between attempts at most while the server answers, but not with a connection."""
MAX_RETRY_AFTER = 60.0
"""Seconds of a `Retry-After` that are obeyed."""
STEADY = 30.0
"""A connection that lasted this many seconds was a good one: waiting starts over."""
LOG_EVERY = 60.0
"""Seconds between log lines about the same failure."""


class Dialer(Protocol):
    """`agent.control.ControlPlane`."""

    async def connect(self) -> RpcAgentApi:
        """One attempt."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why there is no connection: `kind` for telling one trouble from another, `text` says what happened and what to
    do about it, `away` whether nobody answered."""

    kind: str
    text: str
    away: bool
    retry_after: float = 0.0


def diagnose(error: Exception | None) -> Trouble:
    """What the failure of an attempt, or the end of a connection, means. None is a plain close by the server."""
    match error:
        case None:
            return Trouble("closed", "the control plane closed the connection", True)
        case ConnectionLostError():
            return Trouble("lost", f"the connection broke: {str(error.__cause__ or error) or error}", True)
        case UnreachableError():
            return Trouble("unreachable", f"{error}; is the control plane running, and CODER_AGENT_URL right?", True)
        case RefusedError():
            text = f"{error}{_ADVICE.get(error.status, '')}"
            return Trouble(f"refused {error.status}", text, error.status >= 500, error.retry_after or 0.0)
        case ExchangeRefusedError():
            kind = f"identity refused {error.status}"
            return Trouble(kind, f"refresh token: {error}", error.status >= 500, error.retry_after or 0.0)
        case IdentityError():
            return Trouble("no token", f"refresh token: {error}", False)
        case RedirectError() | VersionMismatchError():
            return Trouble(type(error).__name__, str(error), False)
        case ReconnectError():
            return Trouble(f"failed {str(error).partition(':')[0]}", str(error), False)
        case _:
            return Trouble(type(error).__name__, str(error) or type(error).__name__, False)


_ADVICE = {
    401: ". This is normal for the first seconds of a build; later it means that the token belongs to no agent of a "
    "current build",
    403: "; the workspace has a newer build, or the token may not do this",
    404: "; there is no agent API at this address: check CODER_AGENT_URL",
    426: "; a proxy in between does not let WebSockets through",
}


class Retry:
    """How long to wait before the next attempt."""

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._away = Backoff(first=FIRST, cap=AWAY_CAP, low=LOW, uniform=uniform)
        self._refused = Backoff(first=FIRST, cap=REFUSED_CAP, low=LOW, uniform=uniform)

    def after(self, trouble: Trouble, lasted: float) -> float:
        """Seconds to wait after `trouble`, which ended a connection of `lasted` seconds; 0 where there was none."""
        if lasted >= STEADY:
            self._away.reset()
            self._refused.reset()
        wait = (self._away if trouble.away else self._refused).next()
        # On top, so that many agents which were told the same time do not come all at once.
        return min(trouble.retry_after, MAX_RETRY_AFTER) + wait


class Chronicle:
    """Which failures are worth a line: the first of its kind since a connection, then one a minute with a count."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, int]] = {}

    def failures_to_tell(self, kind: str, now: float) -> int | None:
        """How many failures of this kind a line now stands for; None when no line is due."""
        told, untold = self._seen.get(kind, (-LOG_EVERY, 0))
        if now - told < LOG_EVERY:
            self._seen[kind] = (told, untold + 1)
            return None
        self._seen[kind] = (now, 0)
        return untold + 1

    def steady(self) -> None:
        """A connection lasted; the next trouble is a new one."""
        self._seen.clear()


class Connector:
    """Keeps one connection up. `status` is told in one line how things stand."""

    def __init__(
        self,
        dialer: Dialer,
        routines: Sequence[Routine],
        stopping: asyncio.Event,
        clock: Clock,
        status: Callable[[str], None] = lambda text: None,
        retry: Retry | None = None,
    ) -> None:
        self._dialer = dialer
        self._routines = routines
        self._stopping = stopping
        self._clock = clock
        self._status = status
        self._retry = retry or Retry()
        self._chronicle = Chronicle()
        self.attempts = 0
        self.connections = 0
        """Attempts that succeeded."""
        self.api: ApiVersion | None = None
        """What was agreed on with the server of now; None while there is no connection."""
        self.trouble = "no attempt was made yet"
        """Why there is no connection; empty while there is one."""

    async def run(self) -> None:
        """Until cancelled. Nothing that a server does or fails to do ends it."""
        while True:
            trouble, lasted = await self._attempt()
            if lasted >= STEADY:
                self._chronicle.steady()
            delay = self._retry.after(trouble, lasted)
            count = self._chronicle.failures_to_tell(trouble.kind, self._clock.now())
            if count is not None:
                log = get_logger("agent.connection")
                tell = log.info if trouble.kind == "closed" else log.warning
                message = "disconnected" if lasted else "cannot connect"
                tell(f"{message}: {trouble.text}", failures=count, next_attempt=f"{delay:.1f}s")
            self.trouble = trouble.text
            self._status(f"not connected: {trouble.text}")
            await self._clock.sleep(delay)

    async def _attempt(self) -> tuple[Trouble, float]:
        self.attempts += 1
        try:
            api = await self._dialer.connect()
        except Exception as error:
            # Whatever it is: an agent that gave up would be lost to its user. The trouble is logged by the caller.
            return diagnose(error), 0.0
        get_logger("agent.connection").info("connected", api=str(api.version), attempt=self.attempts)
        self._status(f"connected (API {api.version})")
        began = self._clock.now()
        self.connections += 1
        self.api, self.trouble = api.version, ""
        try:
            trouble = diagnose(await serve(api, self._routines, self._stopping, self._clock))
        finally:
            self.api = None
        return trouble, max(self._clock.now() - began, 1e-9)
