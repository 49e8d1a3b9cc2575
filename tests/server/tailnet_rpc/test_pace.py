"""How fast one peer's requests are taken."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.server.tailnet_rpc.pace import Pace


def test_a_burst_and_then_a_rate() -> None:
    pace, now = Pace(8, 4.0), -100.0
    assert [pace.wait(now) for _ in range(8)] == [0.0] * 8
    for _ in range(20):
        seconds = pace.wait(now)
        assert seconds == 0.25
        now += seconds
    now += 1.0
    assert [pace.wait(now) for _ in range(5)] == [0.0] * 4 + [0.25]


@given(st.integers(1, 20), st.floats(0.1, 50), st.lists(st.floats(0, 3), max_size=60))
def test_never_more_than_that_and_no_wait_without_need(burst: int, rate: float, pauses: list[float]) -> None:
    pace, now, taken = Pace(burst, rate), 0.0, []
    for pause in pauses:
        now += pause
        seconds = pace.wait(now)
        assert seconds <= 1 / rate + 1e-6, "who waits for one does not wait for another"
        now += seconds
        taken.append(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + (taken[last] - taken[first]) * rate + 1e-6
