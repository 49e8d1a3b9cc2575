"""Connections are open files: as many as may be, and few words when there are no more."""

from __future__ import annotations

import asyncio
import errno
import resource
from contextlib import suppress
from typing import Any

import structlog

from agent.clock import Clock

COMPLAINT_PERIOD = 60.0
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = structlog.get_logger("agent.server")


def allow_many() -> None:
    """As many as this process may allow itself: the usual 1024 are kept low only for programs that use `select`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems call the most unlimited, and then refuse it
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class LoopErrors:
    """The exception handler of an event loop. When no connection can be accepted, asyncio tries again as often as the
    backlog is long, and tells it each time with a trace: hundreds of thousands of lines within seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._quiet_until = clock.now()

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in EXHAUSTED and "accept" in context["message"]):
            loop.default_exception_handler(context)
        elif self._clock.now() >= self._quiet_until:
            self._quiet_until = self._clock.now() + COMPLAINT_PERIOD
            log.error("cannot accept connections; are there enough open files (ulimit -n)?", error=error.strerror)
