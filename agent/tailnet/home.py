"""Which relay region is home, decided from measured latencies (tailnet.md §5.10). Without input or output."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from agent.tailnet.derp_map import DerpMap

MEMORY: Final = 300.0
"""Seconds for which a measurement counts."""
STICKY: Final = 0.010
"""Seconds by which another region must be faster, at least, to take the place of the present home …"""
STICKY_RATIO: Final = 2 / 3
"""… and the share of the present latency below which it must be."""


class HomeChooser:
    """Remembers the reports of the last five minutes."""

    def __init__(self, choose: Callable[[Sequence[int]], int]) -> None:
        self._choose = choose
        """Picks one of several regions where nothing could be measured."""
        self._reports: deque[tuple[float, Mapping[int, float]]] = deque()

    def home(self, derp_map: DerpMap, report: Mapping[int, float], present: int, now: float) -> int:
        """The home region after a measurement; 0 where no region has a relay. Latencies are seconds by region."""
        able = {number for number, region in derp_map.regions.items() if region.relays}
        self._reports.append((now, {number: value for number, value in report.items() if number in able}))
        while now - self._reports[0][0] > MEMORY:
            self._reports.popleft()
        current = self._reports[-1][1]
        if not current:
            if present in able:
                return present
            return self._choose(sorted(able)) if able else 0
        best = {
            number: min(seen[number] for _, seen in self._reports if number in seen) * _score(derp_map, number)
            for number in current
        }
        candidate = min(best, key=lambda number: (best[number], number))
        if present in current and candidate != present:
            here = current[present]
            if here - best[candidate] < STICKY or best[candidate] > here * STICKY_RATIO:
                return present
        return candidate


def _score(derp_map: DerpMap, number: int) -> float:
    score = derp_map.scores.get(number, 1.0)
    return score if score > 0 else 1.0
