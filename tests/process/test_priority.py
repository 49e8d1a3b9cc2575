from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.clock import SystemClock
from agent.process import build_command
from agent.process.bounded import Job, run_command
from agent.process.priority import NICE_VARIABLE, OOM_VARIABLE, SWITCH, Priority, default_oom, split, variables


@pytest.mark.spec("daemon", 8)
@pytest.mark.spec("terminal-ssh-http", 23)
@pytest.mark.parametrize(("own", "commands"), [(-1000, 0), (-1, 0), (0, 998), (997, 998), (998, 1000), (1000, 1000)])
def test_the_default_score_follows_the_agents(own: int, commands: int) -> None:
    assert default_oom(own) == commands
    assert variables({SWITCH: ""}, by_default=False, own_oom=own, own_nice=0)[OOM_VARIABLE] == str(commands)


@pytest.mark.spec("daemon", 8)
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({SWITCH: ""}, Priority(998, 5)),
        ({SWITCH: "1", OOM_VARIABLE: "-7", NICE_VARIABLE: "11"}, Priority(-7, 11)),
        ({SWITCH: "1", OOM_VARIABLE: "1001", NICE_VARIABLE: "x"}, Priority(998, 5)),
        ({OOM_VARIABLE: "3"}, Priority(None, None)),
        ({}, Priority(None, None)),
    ],
)
def test_the_owner_decides(environment: Mapping[str, str], expected: Priority) -> None:
    asked = variables(environment, by_default=False, own_oom=0, own_nice=0)
    assert split({**asked, "A": "b"}) == ({"A": "b"}, expected)


def test_by_default_commands_give_way_and_explicit_values_count() -> None:
    assert split(variables({}, by_default=True, own_oom=0, own_nice=17))[1] == Priority(998, 19)
    assert split(variables({OOM_VARIABLE: "3"}, by_default=True, own_oom=0, own_nice=0))[1] == Priority(3, 5)
    assert split(variables({}, by_default=True, own_oom=None, own_nice=0))[1] == Priority(None, 5)


@given(st.dictionaries(st.sampled_from([SWITCH, OOM_VARIABLE, NICE_VARIABLE, "A"]), st.text(max_size=6)))
def test_whatever_is_set_nothing_of_it_reaches_the_command(environment: dict[str, str]) -> None:
    rest, _ = split(environment)
    assert set(rest) <= {"A"}


def test_what_is_not_permitted_is_left_as_it_is() -> None:
    Priority(998, 5).apply(2**22 + 1)  # there is no such process


async def test_a_bounded_command_has_it_and_none_of_the_variables() -> None:
    environment = {**os.environ, **variables({}, by_default=True, own_oom=0, own_nice=0)}

    def job() -> Job:
        # It begins with a wait: the values are set right after its start.
        text = "sleep 0.2; nice; cat /proc/self/oom_score_adj; env | grep CODER_PROC"
        return Job(build_command(text, "/bin/sh"), environment)

    outcome = await asyncio.wait_for(run_command(job, limit=10, max_output=1000, clock=SystemClock()), 20)
    assert outcome.output == b"5\n998\n"
