"""How much output is read ahead of what a viewer takes. No I/O, no clock."""

from __future__ import annotations

from typing import Final

SMALLEST: Final = 2048
PERIOD: Final = 0.02
"""Seconds. About so much output is made ready: what is ready when somebody types Ctrl-C is still shown."""


class Ahead:
    """Grows with the rate at which one viewer takes output, at most twofold in a period, and falls with it at once."""

    def __init__(self, largest: int, now: float) -> None:
        self.size = min(SMALLEST, largest)
        """Bytes."""
        self._largest = largest
        self._since = now
        self._count = 0

    def taken(self, count: int, now: float) -> None:
        """The viewer has taken `count` bytes more."""
        self._count += count
        passed = now - self._since
        if passed >= PERIOD:
            rate = self._count / passed
            self.size = min(max(int(rate * PERIOD), SMALLEST), 2 * self.size, self._largest)
            self._since, self._count = now, 0
