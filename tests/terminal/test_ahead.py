from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.terminal.ahead import PERIOD, SMALLEST, Ahead

LARGEST = 65536


def test_it_follows_the_rate_upwards_in_steps_and_downwards_at_once() -> None:
    ahead, sizes = Ahead(LARGEST, 0.0), []
    for number in range(1, 8):
        ahead.taken(10_000_000, number * 1.01 * PERIOD)
        sizes.append(ahead.size)
    assert sizes == [4096, 8192, 16384, 32768, 65536, 65536, 65536]
    ahead.taken(2000, 8.08 * 1.01 * PERIOD)
    assert ahead.size == SMALLEST


def test_a_keystroke_after_a_pause_is_no_rate() -> None:
    ahead = Ahead(LARGEST, 0.0)
    ahead.taken(1, 100.0)
    assert ahead.size == SMALLEST


def test_what_is_ready_for_a_viewer_is_what_it_takes_in_a_period() -> None:
    ahead, now = Ahead(LARGEST, 0.0), 0.0
    for _ in range(100):
        now += 0.005
        ahead.taken(5000, now)  # 1 MB/s
    assert 0.9 * PERIOD * 1e6 < ahead.size < 1.1 * PERIOD * 1e6


@given(st.integers(1, LARGEST), st.lists(st.tuples(st.integers(0, 1 << 20), st.floats(0, 1)), max_size=100))
def test_it_is_bounded(largest: int, steps: list[tuple[int, float]]) -> None:
    ahead, now = Ahead(largest, 0.0), 0.0
    for count, passed in steps:
        now += passed
        ahead.taken(count, now)
        assert min(SMALLEST, largest) <= ahead.size <= largest
