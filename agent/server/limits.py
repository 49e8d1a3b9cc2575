"""How many requests one caller may send to one path (agent-api.md §1.7)."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

WINDOW = 60.0
MAX_KEYS = 50_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reset` is in seconds from now."""

    allowed: bool
    limit: int
    remaining: int
    reset: float

    def headers(self, wall_seconds: int) -> dict[str, str]:
        headers = {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": str(wall_seconds + math.ceil(self.reset)),
        }
        if not self.allowed:
            headers["Retry-After"] = str(max(math.ceil(self.reset), 1))
        return headers


class RateLimiter:
    """A sliding window made of two fixed ones: the last minute's count, weighted by how much of it is still in view.

    Memory is bounded: at `MAX_KEYS` callers and paths within a minute, new ones share one count.
    """

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._index = 0
        self._current: dict[Hashable, int] = {}
        self._previous: dict[Hashable, int] = {}

    def check(self, key: Hashable, limit: int, now: float) -> Verdict:
        """Count one request at `now` (seconds, monotonic) and say whether it may go on. Refused ones do not count."""
        index = int(now // self._window)
        if index != self._index:
            self._previous = self._current if index == self._index + 1 else {}
            self._current, self._index = {}, index
        elapsed = now - index * self._window
        if key not in self._current and len(self._current) >= MAX_KEYS:
            key = None
        count = self._current.get(key, 0)
        used = count + self._previous.get(key, 0) * (1 - elapsed / self._window)
        reset = self._window - elapsed
        if used + 1 > limit:
            return Verdict(False, limit, 0, reset)
        self._current[key] = count + 1
        return Verdict(True, limit, max(int(limit - used - 1), 0), reset)
