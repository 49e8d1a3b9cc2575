"""How long one request may take (terminal-ssh-http.md §4)."""

from __future__ import annotations

from typing import Final

from agent.clock import Clock

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
