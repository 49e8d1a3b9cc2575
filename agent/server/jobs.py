"""Background jobs of the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from agent.backoff import Backoff
from agent.clock import Clock

log = structlog.get_logger("agent.server")


async def keep_running(name: str, job: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """A job that fails is begun again, so that one mistake does not end what else the server does."""
    backoff = Backoff(first=1, cap=60)
    while True:
        try:
            await job()
        except Exception:
            log.exception("a job of the server failed and begins again", job=name, failures=backoff.attempts + 1)
        await clock.sleep(backoff.next())
