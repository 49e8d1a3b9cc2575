"""How far a terminal's output may be sent ahead of what the browser has drawn. No I/O, no clock.

A line, a proxy and a browser each take what they get and let it wait; whoever types Ctrl-C waits behind all of that.
So only as much is under way as is drawn within a blink: the window grows while reports come back quickly, and shrinks
when they take longer than they need to. (A delay-based congestion window, at the level of the application.)
"""

from __future__ import annotations

from collections import deque
from typing import Final

SMALLEST: Final = 8 * 1024
LARGEST: Final = 1024 * 1024
"""Bytes. xterm.js draws 5 to 35 MB in a second."""
SHORT, LONG = 0.030, 0.080
"""Seconds of waiting, beyond the time that the way takes when nothing waits, at which the window grows or shrinks."""


class Pace:
    """One terminal's window."""

    def __init__(self) -> None:
        self.window = SMALLEST
        self._sent = self._drawn = 0
        self._marks: deque[tuple[int, float, bool]] = deque()
        self._least = float("inf")

    @property
    def room(self) -> int:
        """Bytes that may be sent now; not positive: none."""
        return self.window - (self._sent - self._drawn)

    def sent(self, count: int, now: float) -> None:
        self._sent += count
        # Whether the window held it up: only then does a quick report say that a larger one would do.
        self._marks.append((self._sent, now, self.room <= 0))

    def drawn(self, total: int, now: float) -> bool:
        """The browser has drawn so many bytes in all. False for a number that cannot be."""
        if not self._drawn <= total <= self._sent:
            return False
        self._drawn = total
        mark = None
        while self._marks and self._marks[0][0] <= total:
            mark = self._marks.popleft()
        if mark is None:
            return True
        took = now - mark[1]
        self._least = min(self._least, took)
        waited = took - self._least
        if waited > LONG:
            self.window = max(SMALLEST, self.window // 2)
        elif waited < SHORT and mark[2]:
            self.window = min(LARGEST, self.window * 2)
        return True
