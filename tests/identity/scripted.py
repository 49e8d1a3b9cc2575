"""Metadata services that say what a test wants, without a port."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from yarl import URL

from agent.identity.metadata import Answer, AskError, MetadataService
from agent.testing import ManualClock

Reply = Answer | AskError | None
"""None: it is taken and never answered."""


class ScriptedAsker:
    """Answers one request after another with `replies`; the last one stays."""

    def __init__(self, *replies: Reply, connected: bool = True) -> None:
        self.replies = deque(replies)
        self.connected = connected
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.times: list[float] = []
        self.clock: ManualClock | None = None
        self.opened = 0

    async def ask(self, method: str, url: URL, headers: Mapping[str, str]) -> Answer:
        self.requests.append((method, str(url), dict(headers)))
        if self.clock is not None:
            self.times.append(self.clock.now())
        reply = self.replies.popleft() if len(self.replies) > 1 else self.replies[0]
        if reply is None:
            await asyncio.Event().wait()
        if isinstance(reply, AskError):
            raise reply
        assert reply is not None
        return reply

    @asynccontextmanager
    async def open(self) -> AsyncIterator[ScriptedAsker]:
        self.opened += 1
        yield self

    def service(self, clock: ManualClock, base: str = "http://169.254.169.254") -> MetadataService:
        self.clock = clock
        return MetadataService("metadata", URL(base), self, clock, uniform=lambda low, high: high)


def ok(body: str | bytes, **headers: str) -> Answer:
    """Status 200; names of headers with _ for -."""
    data = body.encode() if isinstance(body, str) else body
    return Answer(200, data, {name.replace("_", "-"): value for name, value in headers.items()})
