"""How fast one peer's requests are taken: what it says beyond that waits, in the end at the peer."""

from __future__ import annotations


class Pace:
    """A burst, and so many a second after it (the generic cell rate algorithm). Times are seconds, monotonic."""

    def __init__(self, burst: int, rate: float) -> None:
        self._ahead, self._step = burst / rate, 1 / rate
        self._due = float("-inf")

    def wait(self, now: float) -> float:
        """Count one more; seconds that it has to wait."""
        self._due = max(self._due, now) + self._step
        return max(self._due - self._ahead - now, 0.0)
