"""Views of workspaces, and what turns one into the next."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api.proto import tailnet_pb2 as pb
from agent.server.store.schema import Build
from agent.server.tailnet_rpc.workspaces import View, difference, status

ids = st.integers(0, 5).map(lambda number: UUID(int=number))
views = st.builds(
    View,
    st.dictionaries(ids, st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([3, 4, 5]))),
    st.dictionaries(ids, st.tuples(st.sampled_from(["x", "y"]), ids)),
)


@given(views, views)
def test_a_difference_turns_one_view_into_the_other(old: View, new: View) -> None:
    update = difference(old, new)
    workspaces, agents = dict(old.workspaces), dict(old.agents)
    for workspace in update.deleted_workspaces:
        del workspaces[UUID(bytes=workspace.id)]
    for agent in update.deleted_agents:
        del agents[UUID(bytes=agent.id)]
    workspaces |= {UUID(bytes=one.id): (one.name, one.status) for one in update.upserted_workspaces}
    agents |= {UUID(bytes=one.id): (one.name, UUID(bytes=one.workspace_id)) for one in update.upserted_agents}
    assert View(workspaces, agents) == new
    assert bool(update.ByteSize()) == (old != new)


@pytest.mark.parametrize(
    ("transition", "state", "expected"),
    [
        ("start", "pending", pb.Workspace.PENDING),
        ("start", "succeeded", pb.Workspace.RUNNING),
        ("start", "failed", pb.Workspace.FAILED),
        ("stop", "running", pb.Workspace.STOPPING),
        ("stop", "succeeded", pb.Workspace.STOPPED),
        ("delete", "succeeded", pb.Workspace.DELETED),
        ("start", "else", pb.Workspace.UNKNOWN),
    ],
)
def test_statuses(transition: str, state: str, expected: int) -> None:
    assert status(Build(transition=transition, status=state)) == expected
