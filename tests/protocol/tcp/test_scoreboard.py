"""Selective acknowledgements, merged: against a set of positions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.tcp.scoreboard import MAX_RUNS, Scoreboard


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 40)), max_size=40), st.integers(0, 100))
def test_like_a_set(blocks: list[tuple[int, int]], before: int) -> None:
    board = Scoreboard()
    known: set[int] = set()
    for start, size in blocks:
        block = set(range(start, start + size))
        run_start, run_end, fresh = board.add(start, start + size)
        positions = [position for one in fresh for position in range(*one)]
        assert sorted(block - known) == positions
        known |= block
        assert known.issuperset(range(run_start, run_end))
        assert not known & {run_start - 1, run_end}
        assert {position for run in board.runs for position in range(*run)} == known
        assert all(left[1] < right[0] for left, right in zip(board.runs, board.runs[1:], strict=False))
    board.forget(before)
    assert all(end > before for _, end in board.runs)


def test_a_hostile_peer_fills_nothing() -> None:
    board = Scoreboard()
    for at in range(0, 10_000, 2):
        board.add(at, at + 1)
    assert len(board.runs) <= MAX_RUNS
