"""Is a monitored resource running out? The evaluation of agent-api.md §11.7, as plain functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

CONSECUTIVE_BAD_PERCENT = 50
TOTAL_BAD_PERCENT = 20


class ResourceState(Enum):
    """What a monitor last concluded, and what one measurement says; UNKNOWN is for measurements alone."""

    OK = "ok"
    BAD = "nok"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One data point: when (microseconds since 1970), and by path the bytes used and in total; no path means memory."""

    at: int
    usage: Mapping[str, tuple[int, int]]


def judge(used: int | None, total: int | None, threshold: int) -> ResourceState:
    """One measurement against `threshold` percent; None (or a total of 0) means that nothing was measured."""
    if used is None or not total or total < 0:
        return ResourceState.UNKNOWN
    return ResourceState.BAD if used * 100 // total >= threshold else ResourceState.OK


def next_state(previous: ResourceState, points: Sequence[ResourceState]) -> ResourceState:
    """The monitor's state after `points` (oldest first): alert when many are bad, OK only when all are good."""
    if not points:
        return previous
    longest = run = 0
    for point in points:
        run = run + 1 if point is ResourceState.BAD else 0
        longest = max(longest, run)
    bad = sum(point is ResourceState.BAD for point in points)
    if longest * 100 >= CONSECUTIVE_BAD_PERCENT * len(points) or bad * 100 >= TOTAL_BAD_PERCENT * len(points):
        return ResourceState.BAD
    return ResourceState.OK if all(point is ResourceState.OK for point in points) else previous
