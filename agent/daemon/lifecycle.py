"""The agent's lifecycle states, and which of them the server still has to hear about (daemon.md §3.1, §3.2).

Without input or output: `LifecycleReporter` (reports.py) sends what `pending` names, `Journal` remembers it.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

MAX_PENDING = 64
"""Transitions kept for the server; a life has at most eight, so this is several lives without a connection."""


class State(enum.IntEnum):
    """The numbers are those of the wire, and of the order in which states may follow each other."""

    CREATED = 1
    STARTING = 2
    START_TIMEOUT = 3
    START_ERROR = 4
    READY = 5
    SHUTTING_DOWN = 6
    SHUTDOWN_TIMEOUT = 7
    SHUTDOWN_ERROR = 8
    OFF = 9


@dataclass(frozen=True, slots=True)
class Transition:
    """A state and when it was entered, in microseconds since 1970 UTC."""

    state: State
    changed_at: int


class Lifecycle:
    """The current state, which moves forward only, and the transitions that are not acknowledged yet, oldest first.

    `created` is where everything begins; it is never reported. `pending` may begin with transitions of an earlier
    life of the same agent: the forward rule looks at `last`, the transition to the current state, alone.
    """

    def __init__(self, last: Transition | None = None, pending: Iterable[Transition] = ()) -> None:
        self._last = last
        self._pending = deque(pending, MAX_PENDING)

    @property
    def last(self) -> Transition | None:
        """The last transition that was accepted; None while everything is only created."""
        return self._last

    @property
    def state(self) -> State:
        """The last state that was accepted."""
        return self._last.state if self._last is not None else State.CREATED

    @property
    def pending(self) -> tuple[Transition, ...]:
        """What the server has not acknowledged, oldest first."""
        return tuple(self._pending)

    def enter(self, state: State, wall_ns: int) -> Transition | None:
        """Accept `state` when it stands later than the current one; None when it does not."""
        if state <= self.state:
            return None
        self._last = Transition(state, _microseconds(wall_ns))
        self._pending.append(self._last)
        return self._last

    def acknowledge(self, transition: Transition) -> bool:
        """The server has taken `transition`. False, and no change, when it is no longer the oldest pending one:
        the agent has become another one while the call was on its way."""
        if not self._pending or self._pending[0] is not transition:
            return False
        self._pending.popleft()
        return True

    def repeat(self) -> None:
        """A new process goes on with this life: the current state is said once more, with its time.

        A process in between may have told the server of its own end, before it knew of this life.
        """
        if self._last is not None and not self._pending:
            self._pending.append(self._last)

    def reintroduce(self, wall_ns: int) -> None:
        """This process now is another agent, of which the server knows only `created` (quirk Q7).

        The current state is reported for it, as of now, after a `starting` that gives the server its start time.
        What was pending belonged to the former agent and is dropped.
        """
        self._pending.clear()
        if self.state >= State.STARTING:
            now = _microseconds(wall_ns)
            states = dict.fromkeys((State.STARTING, self.state))
            self._pending.extend(Transition(state, now) for state in states)


def _microseconds(wall_ns: int) -> int:
    return round(wall_ns / 1000)
