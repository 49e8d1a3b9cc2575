"""What others can make happen as often as they like, told only now and then."""

from __future__ import annotations

from typing import Final

from agent.clock import Clock

PAUSE: Final = 60.0
"""Seconds between two that are told."""


class Seldom:
    """The first of its kind is told at once, then one a minute, with how many it stands for."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next = float("-inf")
        self._untold = 0

    def tell(self) -> int:
        """Count one more; how many are to be told of now, 0 for not yet."""
        self._untold += 1
        now = self._clock.now()
        if now < self._next:
            return 0
        self._next = now + PAUSE
        told, self._untold = self._untold, 0
        return told
