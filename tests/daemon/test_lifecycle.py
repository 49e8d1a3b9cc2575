"""States move forward only, and each is told to the server once, in order (daemon.md §3.1, §3.2)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.api.proto import agent_pb2 as pb
from agent.daemon.lifecycle import Lifecycle, State, Transition


def test_numbers_are_those_of_the_wire() -> None:
    assert {state.name: int(state) for state in State} == {
        name: number for name, number in pb.Lifecycle.State.items() if number
    }


def test_created_is_never_pending() -> None:
    assert Lifecycle().pending == ()


def test_times_are_microseconds_at_entry() -> None:
    lifecycle = Lifecycle()
    assert lifecycle.enter(State.READY, 1_782_561_600_123_456_789) == Transition(State.READY, 1_782_561_600_123_457)


def test_a_late_start_result_is_dropped_after_shutdown_began() -> None:
    lifecycle = Lifecycle()
    lifecycle.enter(State.STARTING, 1000)
    lifecycle.enter(State.SHUTTING_DOWN, 2000)
    assert lifecycle.enter(State.START_ERROR, 3000) is None
    assert [item.state for item in lifecycle.pending] == [State.STARTING, State.SHUTTING_DOWN]


def test_another_agent_hears_starting_and_the_current_state() -> None:
    lifecycle = Lifecycle()
    lifecycle.enter(State.STARTING, 1000)
    lifecycle.enter(State.READY, 2000)
    first = lifecycle.pending[0]
    lifecycle.reintroduce(5000)
    assert lifecycle.pending == (Transition(State.STARTING, 5), Transition(State.READY, 5))
    assert not lifecycle.acknowledge(first), "the answer to a call for the former agent says nothing"
    assert len(lifecycle.pending) == 2


def test_another_agent_while_starting_hears_starting_once() -> None:
    lifecycle = Lifecycle()
    lifecycle.enter(State.STARTING, 1000)
    lifecycle.reintroduce(5000)
    assert lifecycle.pending == (Transition(State.STARTING, 5),)


class LifecycleMachine(RuleBasedStateMachine):
    """The server's view: it acknowledges the oldest pending transition, at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.lifecycle = Lifecycle()
        self.now = 0
        self.entered: list[Transition] = []
        self.told: list[Transition] = []

    @rule(state=st.sampled_from(State), step=st.integers(-10_000, 10_000))
    def enter(self, state: State, step: int) -> None:
        self.now += step
        accepted = self.lifecycle.enter(state, self.now)
        assert (accepted is not None) == (state > max([State.CREATED, *(item.state for item in self.entered)]))
        if accepted is not None:
            self.entered.append(accepted)

    @precondition(lambda self: self.lifecycle.pending)
    @rule()
    def acknowledge(self) -> None:
        oldest = self.lifecycle.pending[0]
        assert self.lifecycle.acknowledge(oldest)
        assert not self.lifecycle.acknowledge(oldest)
        self.told.append(oldest)

    @invariant()
    def nothing_is_lost_or_told_twice(self) -> None:
        assert self.told + list(self.lifecycle.pending) == self.entered


TestLifecycleMachine = LifecycleMachine.TestCase


@given(st.lists(st.sampled_from(State), max_size=20), st.integers(0, 20))
def test_a_new_agent_always_ends_at_the_current_state(states: list[State], acknowledged: int) -> None:
    lifecycle = Lifecycle()
    for at, state in enumerate(states):
        lifecycle.enter(state, at)
    for transition in lifecycle.pending[:acknowledged]:
        lifecycle.acknowledge(transition)
    lifecycle.reintroduce(10**9)
    if lifecycle.state is State.CREATED:
        assert lifecycle.pending == ()
    else:
        assert lifecycle.pending[0].state is State.STARTING
        assert lifecycle.pending[-1].state is lifecycle.state
