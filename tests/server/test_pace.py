"""The window of a terminal on lines and browsers of many kinds, simulated."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.server.pace import FIRST, LARGEST, SMALLEST, Pace

PACKET = 1208


@dataclass
class Road:
    """An agent that always has output, and a browser behind a line; everything by hand. Rates are in bytes a second."""

    line: float
    browser: float
    to_agent: float = 0.0005
    """One way, seconds; the same for `to_browser`."""
    to_browser: float = 0.0005
    burst: float = 0.0
    """Seconds between two moments in which the browser draws: a page draws in frames."""
    pace: Pace = field(default_factory=Pace)
    now: float = 0.0
    drawn: int = 0
    waits: list[tuple[float, float]] = field(default_factory=list)
    """When something was drawn, and how long after it had left the agent's program."""

    def __post_init__(self) -> None:
        self._events: list[tuple[float, int, str, int, float]] = []
        self._number = self._sent = 0
        self._line_free = self._browser_free = 0.0

    def _at(self, when: float, what: str, value: int, left: float = 0.0) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, what, value, left))

    def run(self, seconds: float, *, prints: bool = True) -> None:
        until = self.now + seconds
        if prints:
            self._at(self.now + self.to_agent, "allowed", self.pace.allowed)
        while self._events and self._events[0][0] <= until:
            self.now, _, what, value, left = heapq.heappop(self._events)
            if what == "allowed":
                while self._sent + PACKET <= value:
                    self._sent += PACKET
                    self._at(self.now + self.to_agent, "arrived", PACKET, self.now)
            elif what == "arrived":
                self.pace.arrive(value, self.now, 2 * self.to_agent)
                self._line_free = max(self._line_free, self.now) + value / self.line
                self._at(self._line_free + self.to_browser, "shown", value, left)
            elif what == "shown":
                begin = max(self._browser_free, self.now)
                if self.burst:
                    begin = (begin // self.burst + 1) * self.burst
                self._browser_free = begin + value / self.browser
                self._at(self._browser_free, "drawn", value, left)
            elif what == "drawn":
                self.drawn += value
                self.waits.append((self.now, self.now - left))
                self._at(self.now + self.to_browser, "told", self.drawn)
            else:
                assert self.pace.draw(value, self.now)
                self._at(self.now + self.to_agent, "allowed", self.pace.allowed)
        self.now = until

    def rate(self, seconds: float) -> float:
        before = self.drawn
        self.run(seconds)
        return (self.drawn - before) / seconds

    def longest(self, since: float) -> float:
        return max(wait for when, wait in self.waits if when >= since)


def prompt(road: Road) -> None:
    """What every shell says first."""
    road.pace.arrive(100, 0.0, 2 * road.to_agent)
    assert road.pace.draw(100, 2 * road.to_browser + 100 / road.line)
    road.drawn += 100


@pytest.mark.parametrize(
    ("line", "browser", "to_agent", "to_browser", "share", "wait"),
    [
        (100e3, 1e9, 0.0005, 0.0025, 0.95, 0.17),
        (100e3, 1e9, 0.0005, 0.1, 0.75, 0.35),
        (100e3, 1e9, 0.1, 0.0025, 0.15, 0.30),
        (10e6, 1e9, 0.0005, 0.0025, 0.95, 0.12),
        (10e6, 1e9, 0.0005, 0.1, 0.4, 0.3),
        (10e6, 1e9, 0.1, 0.0025, 0.4, 0.3),
        (1e9, 5e6, 0.0005, 0.0005, 0.95, 0.12),
        (20e6, 15e6, 0.0002, 0.0002, 0.95, 0.12),
        (30e6, 1e9, 0.0002, 0.0002, 0.0, 0.05),
    ],
)
def test_a_line_is_used_and_little_waits(
    line: float, browser: float, to_agent: float, to_browser: float, share: float, wait: float
) -> None:
    road = Road(line, browser, to_agent, to_browser)
    prompt(road)
    road.run(4)
    rate = road.rate(5)
    print(
        f"{line:.0f} {browser:.0f} {to_agent} {to_browser}: {rate / 1e6:.3f} MB/s {rate / min(line, browser):.2f} longest {road.longest(4):.3f} from start {road.longest(0):.3f} window {road.pace.window}"
    )
