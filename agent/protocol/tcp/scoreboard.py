"""What the peer has acknowledged selectively (RFC 2018): runs of positions, merged.

Peers repeat their blocks in every acknowledgement. `add` tells which part of a block is new, so that nothing is looked
at twice, whatever the peer sends.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter

MAX_RUNS = 1024
_start = itemgetter(0)


class Scoreboard:
    """Runs `[start, end)` that neither overlap nor touch, in order."""

    __slots__ = ("runs",)

    def __init__(self) -> None:
        self.runs: list[tuple[int, int]] = []

    def add(self, start: int, end: int) -> tuple[int, int, list[tuple[int, int]]]:
        """Merge a block; the run that it is now part of, and those parts of the block that were not known."""
        runs = self.runs
        if len(runs) >= MAX_RUNS:
            # Only a hostile peer has so many; looking at a part twice does no harm.
            runs.clear()
        first = bisect_right(runs, start, key=_start)
        if first and runs[first - 1][1] >= start:
            first -= 1
        at, whole_start, whole_end = start, start, end
        last = first
        fresh = []
        while last < len(runs) and runs[last][0] <= end:
            known_start, known_end = runs[last]
            if known_start > at:
                fresh.append((at, known_start))
            at = max(at, known_end)
            whole_start = min(whole_start, known_start)
            whole_end = max(whole_end, known_end)
            last += 1
        if at < end:
            fresh.append((at, end))
        if fresh:
            runs[first:last] = [(whole_start, whole_end)]
        return whole_start, whole_end, fresh

    def forget(self, before: int) -> None:
        """Drop the runs that the cumulative acknowledgement has passed."""
        runs = self.runs
        count = 0
        while count < len(runs) and runs[count][1] <= before:
            count += 1
        del runs[:count]

    def clear(self) -> None:
        """Forget everything."""
        self.runs.clear()
