"""Listening ports for several readers: one scan serves all, and changes are watched only while somebody looks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection
from typing import Final

from agent.clock import Clock
from agent.ports.scan import ListeningPort

FRESH: Final = 1.0
"""Seconds for which a scan is repeated instead of made anew (terminal-ssh-http.md §4.2, rule 4)."""
WATCH_PERIOD: Final = 0.8
"""Seconds between the scans of a watcher: a change is told within a second."""
WATCH_SHARE: Final = 0.05
"""The part of one processor that watching may take: beside very many processes it becomes slower instead of costly."""
LOWEST: Final = 9
"""Ports below are never listed (§4.2, rule 5)."""

Ports = tuple[ListeningPort, ...]


class PortService:
    """Shares the scans of one scanner. `scan` may block and is called in a thread, once at a time.

    `hidden` are ports that are left out: those on which the agent's own helpers are configured to listen.
    """

    def __init__(self, scan: Callable[[], Ports], clock: Clock, hidden: Collection[int] = ()) -> None:
        self._scan = scan
        self._clock = clock
        self._hidden = frozenset(hidden)
        self._running: asyncio.Task[Ports] | None = None
        self._last: Ports = ()
        self._at: float | None = None
        self._cost = 0.0

    async def ports(self) -> Ports:
        """Who listens, as of at most a second ago. Raises `ScanError`."""
        if self._running is None:
            if self._at is not None and self._clock.now() - self._at < FRESH:
                return self._last
            return await self._look()
        return await asyncio.shield(self._running)

    async def watch(self) -> AsyncGenerator[Ports]:
        """What listens now, and then each time that it changes, for as long as one iterates.

        All watchers share the scans. Raises `ScanError`.
        """
        known: Ports | None = None
        while True:
            found = await self._recent()
            if found != known:
                known = found
                yield found
            await self._clock.sleep(max(WATCH_PERIOD, self._cost / WATCH_SHARE))

    async def _recent(self) -> Ports:
        """As `ports`, but newer: what another watcher found half a period ago is the oldest that counts."""
        if self._running is None and (self._at is None or self._clock.now() - self._at >= WATCH_PERIOD / 2):
            return await self._look()
        return await self.ports()

    async def _look(self) -> Ports:
        # A task of its own: one reader that is cancelled must not take the scan from the others.
        self._running = asyncio.create_task(self._take(), name="port scan")
        return await asyncio.shield(self._running)

    async def _take(self) -> Ports:
        try:
            found, self._cost = await asyncio.to_thread(self._timed)
            self._at = self._clock.now()
            self._last = tuple(item for item in found if item.port >= LOWEST and item.port not in self._hidden)
            return self._last
        finally:
            self._running = None

    def _timed(self) -> tuple[Ports, float]:
        """A scan, and the seconds of processor time that it cost."""
        began = time.thread_time()
        return self._scan(), time.thread_time() - began
