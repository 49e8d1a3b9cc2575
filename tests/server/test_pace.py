"""The window of a terminal on lines and browsers of many kinds, simulated."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.server.pace import FIRST, LARGEST, MARKS, NEAR, SMALLEST, Pace

PACKET = 1208


@dataclass
class Road:
    """An agent that always has output, and a browser behind a line; everything by hand. Rates are in bytes a second."""

    line: float
    browser: float
    to_agent: float = 0.0005
    """One way, seconds; the same for `to_browser`."""
    to_browser: float = 0.0005
    frame: float = 0.0
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

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        if not self._events:
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
                if self.frame:
                    begin = max(begin, (self.now // self.frame + 1) * self.frame)
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
        (100e3, 1e9, 0.0005, 0.0025, 0.98, 0.07),
        (100e3, 1e9, 0.0005, 0.1, 0.95, 0.20),
        (100e3, 1e9, 0.1, 0.0025, 0.85, 0.20),
        (10e6, 1e9, 0.0005, 0.0025, 0.98, 0.07),
        (10e6, 1e9, 0.0005, 0.1, 0.5, 0.20),  # `LARGEST` for each round trip
        (10e6, 1e9, 0.1, 0.0025, 0.5, 0.20),
        (1e9, 5e6, 0.0005, 0.0005, 0.98, 0.07),
        (20e6, 15e6, 0.0002, 0.0002, 0.98, 0.07),
    ],
)
def test_a_line_is_used_and_little_waits(
    line: float, browser: float, to_agent: float, to_browser: float, share: float, wait: float
) -> None:
    road = Road(line, browser, to_agent, to_browser)
    prompt(road)
    road.run(4)
    assert road.rate(5) >= share * min(line, browser)
    assert road.longest(4) < wait


def test_a_slow_line_is_found_to_be_one_at_once() -> None:
    road = Road(100e3, 1e9, 0.0005, 0.0025)
    prompt(road)
    road.run(0.5)
    assert road.longest(0) < (FIRST + PACKET) / 100e3
    assert road.pace.window < FIRST


def test_a_browser_that_draws_in_frames_is_kept_busy() -> None:
    road = Road(1e9, 5e6, frame=1 / 60)
    prompt(road)
    road.run(2)
    assert road.rate(5) > 0.9 * 5e6
    assert road.longest(2) < 0.1


def test_a_line_that_becomes_slow_and_fast_again() -> None:
    road = Road(10e6, 1e9, 0.0005, 0.0025)
    prompt(road)
    road.run(3)
    road.line = 100e3
    road.run(10)
    assert road.longest(road.now - 3) < 0.1
    road.line = 10e6
    road.run(3)
    assert road.rate(3) > 9e6


def test_a_way_that_becomes_longer_is_used_again() -> None:
    road = Road(2e6, 1e9, 0.0005, 0.0025)
    prompt(road)
    road.run(3)
    road.to_browser = 0.1
    road.run(10)
    assert road.rate(5) > 1.5e6


def test_a_slow_agent_gets_no_larger_window() -> None:
    """Its own line is the narrow place: what was allowed would wait there."""
    pace, now = Pace(), 0.0
    for _ in range(200):
        now += PACKET / 100e3
        pace.arrive(PACKET, now, 0.005)
        assert pace.draw(pace.arrived, now + 0.001)
    assert pace.window == FIRST


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(-10, 5000), st.floats(0, 0.2)), max_size=200))
def test_the_window_is_bounded_and_what_was_allowed_stays_so(steps: list[tuple[int, int, float]]) -> None:
    pace, now, drawn, allowed = Pace(), 0.0, 0, 0
    for arriving, drawing, passing in steps:
        now += passing
        if arriving := min(arriving, pace.allowed - pace.arrived):
            pace.arrive(arriving, now, 0.01)
        can_be = drawing >= 0 and drawn + drawing <= pace.arrived
        assert pace.draw(drawn + drawing, now) is can_be
        drawn += drawing if can_be else 0
        assert SMALLEST <= pace.window <= LARGEST
        assert pace.allowed >= max(allowed, drawn + SMALLEST)
        assert pace.full is (pace.arrived == pace.allowed)
        allowed = pace.allowed
    assert pace.draw(pace.arrived, now)
    assert not pace.full


def test_single_bytes_cost_little_memory() -> None:
    pace = Pace()
    for _ in range(FIRST):
        pace.arrive(1, 0.0, 0.0)
    assert len(pace._marks) <= MARKS
    for total in range(FIRST + 1):
        assert pace.draw(total, 0.0)
    assert len(pace._grants) <= LARGEST // NEAR
