"""How far a terminal's output may be ahead of what its viewer has drawn. No I/O, no clock.

A line, a proxy and a browser each take what they get and let it wait; whoever types Ctrl-C waits behind all of that.
So the agent is allowed to send only what will be drawn within a blink: the window grows while that goes quickly, and
shrinks when it takes longer than the way itself does. (A delay-based congestion window, at the level of the
application.)
"""

from __future__ import annotations

from collections import deque
from typing import Final

SMALLEST: Final = 4 * 1024
FIRST: Final = 16 * 1024
LARGEST: Final = 1024 * 1024
"""Bytes. xterm.js draws 5 to 35 MB in a second."""
SHORT, LONG = 0.020, 0.060
"""Seconds of waiting, beyond the time that the way takes when nothing waits, at which the window grows or shrinks."""
NEAR: Final = 2560
"""Bytes below the window's end. An agent that sends in packets does not come closer to it."""
CAREFUL: Final = 8
"""Once the right size was passed, the window grows by this part of what was drawn, instead of by all of it."""
PERSISTENT: Final = 8
"""Reports with the smallest window that were all late, after which the way itself is taken to have become longer."""

MARKS: Final = 1024
"""Arrivals that are remembered; of more than that, those that followed each other count as one."""


class Pace:
    """One viewer's window. Numbers of bytes are totals since its beginning; times are in seconds."""

    def __init__(self) -> None:
        self.window = FIRST
        self.allowed = FIRST
        """What the agent may send in all; it never falls."""
        self.arrived = 0
        """What the agent has sent."""
        self._drawn = 0
        self._marks: deque[tuple[int, float, bool]] = deque()
        self._grants: deque[tuple[int, float]] = deque()
        self._way = float("inf")
        """How long a report takes when nothing waits."""
        self._growth = 1
        self._shrunk_at = 0
        self._late = 0

    @property
    def full(self) -> bool:
        """Whether nothing may arrive before something was drawn."""
        return self.arrived >= self.allowed

    def arrive(self, count: int, now: float, rtt: float) -> None:
        """The agent has sent `count` bytes more, and they are on their way to the viewer; `rtt` is the agent's."""
        self.arrived += count
        # Whether the window holds the agent up, which sends what it may as soon as it may: only then does a quick
        # report say that a larger one would do.
        held_up = False
        while self._grants and self._grants[0][0] - NEAR < self.arrived:
            held_up = now - self._grants.popleft()[1] < 1.25 * rtt + SHORT
        if len(self._marks) >= MARKS:
            held_up = self._marks.pop()[2] or held_up
        self._marks.append((self.arrived, now, held_up))

    def draw(self, total: int, now: float) -> bool:
        """The viewer has drawn so much in all. False for a number that cannot be."""
        if not self._drawn <= total <= self.arrived:
            return False
        mark, held_up = None, False
        while self._marks and self._marks[0][0] <= total:
            mark = self._marks.popleft()
            held_up = held_up or mark[2]
        if mark is not None:
            self._adapt(mark[0], now - mark[1], total - self._drawn if held_up else 0)
        self._drawn = total
        if total + self.window > self.allowed:
            self.allowed = total + self.window
            if not self._grants or self.allowed - self._grants[-1][0] >= NEAR:
                self._grants.append((self.allowed, now))
        return True

    def _adapt(self, position: int, took: float, wanted: int) -> None:
        self._way = min(self._way, took)
        waited = took - self._way
        if waited <= LONG:
            self._late = 0
        elif self.window == SMALLEST:
            self._late += 1
            if self._late >= PERSISTENT:
                self._way, self._late = took, 0
        elif position > self._shrunk_at:
            # Of what is under way already, more will be late: that says nothing about the new size.
            self.window = max(SMALLEST, self.window // 2)
            self._shrunk_at = self.arrived
            self._growth = CAREFUL
        if waited < SHORT:
            self.window = min(LARGEST, self.window + wanted // self._growth)
