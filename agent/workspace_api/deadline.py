"""How long one request may take (terminal-ssh-http.md §4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.clock import Clock, SystemClock

if TYPE_CHECKING:
    from aiohttp import web

REQUEST_LIMIT: Final = 20.0
"""Seconds for each phase: until there is a request, until it is answered, until the answer is taken."""
LONG_LIMIT: Final = 300.0
"""Seconds for answers that may be long."""


class RequestDeadline:
    """Of one connection. Whoever begins or ends a phase restarts it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until = clock.now() + REQUEST_LIMIT
        self.answering = False
        """Whether a handler is at work."""

    def restart(self, seconds: float = REQUEST_LIMIT) -> None:
        """A phase begins, which may take that long."""
        self._until = self._clock.now() + seconds

    async def expired(self) -> None:
        """Wait until a phase has taken too long."""
        while (left := self._until - self._clock.now()) > 0:
            await self._clock.sleep(left)


def deadline_of(request: web.Request) -> RequestDeadline:
    """The deadline of the connection on which a request came; on local servers, which have none, one without effect."""
    assert request.transport is not None, "without a connection no handler is called"
    deadline = request.transport.get_extra_info("deadline")
    return deadline if isinstance(deadline, RequestDeadline) else RequestDeadline(SystemClock())
