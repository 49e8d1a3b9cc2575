"""Waiting between attempts: exponential growth, a cap, and full jitter applied after the cap."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """The delays of one retry loop.

    The n-th delay is drawn uniformly from `[low, d(n)]`, where d grows from `first` by `factor` up to `cap` seconds.
    The draw comes after the cap, so that many clients that wait at the cap still spread out. The first delay is
    short on purpose: most failures are over at once.
    """

    def __init__(
        self,
        *,
        first: float,
        cap: float,
        factor: float = 1.6180339887498949,
        low: float = 0.0,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        if not 0 < first <= cap or factor <= 1 or not 0 <= low <= first:
            raise ValueError("need 0 < first <= cap, factor > 1 and 0 <= low <= first")
        self._first, self._cap, self._factor, self._low, self._uniform = first, cap, factor, low, uniform
        self._ceiling = 0.0
        self.attempts = 0

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        self._ceiling = min(self._ceiling * self._factor, self._cap) if self._ceiling else self._first
        self.attempts += 1
        return self._uniform(self._low, self._ceiling)

    def reset(self) -> None:
        """Start over; call it after an attempt that lasted."""
        self._ceiling = 0.0
        self.attempts = 0
