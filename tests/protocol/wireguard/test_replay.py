"""The window of counters that are still told apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.wireguard.replay import WINDOW, ReplayWindow


@pytest.mark.spec("tailnet", 43)
def test_the_window_is_8128_counters() -> None:
    assert WINDOW == 8128
    for highest in (8127, 8128, 8191, 8192, 100_000, 2**60 + 63):
        window = ReplayWindow()
        assert window.accept(highest)
        assert not window.accept(highest)
        assert window.accept(highest - 8127)
        assert not window.accept(highest - 8127)
        assert highest < 8128 or window.accept(highest - 8128)
        assert not window.accept(highest - 8129)
        assert window.accept(highest + 1)


class _Model:
    """The same rule, said slowly."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.highest = 0

    def accept(self, counter: int) -> bool:
        if counter in self.seen or self.highest - counter > WINDOW:
            return False
        self.seen.add(counter)
        self.highest = max(self.highest, counter)
        return True


_STEP = st.one_of(
    st.integers(-200, 200),
    st.sampled_from([-8129, -8128, -8127, -8126, -64, -63, -1, 0, 1, 63, 64, 65, 8127, 8128, 8129, 8191, 8192, 8193]),
    st.integers(-20_000, 20_000),
    st.integers(0, 2**40),
)


@given(st.lists(_STEP, max_size=300))
def test_the_window_does_what_the_rule_says(steps: list[int]) -> None:
    window, model = ReplayWindow(), _Model()
    for step in steps:
        counter = max(0, model.highest + step)
        assert window.accept(counter) is model.accept(counter)
