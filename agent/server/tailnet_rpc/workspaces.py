"""What a user's clients are told of workspaces: a snapshot, then what changed (tailnet.md §3.4, §3.7)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple, TypeVar
from uuid import UUID

from agent.api.proto import tailnet_pb2 as pb
from agent.server.events import Events, owner_topic, workspace_topic
from agent.server.store import Database, agents, workspaces
from agent.server.store.schema import Build

Status = pb.Workspace
V = TypeVar("V")

_STATUSES = {
    ("start", "running"): Status.STARTING,
    ("start", "succeeded"): Status.RUNNING,
    ("stop", "running"): Status.STOPPING,
    ("stop", "succeeded"): Status.STOPPED,
    ("delete", "running"): Status.DELETING,
    ("delete", "succeeded"): Status.DELETED,
}


class View(NamedTuple):
    """The workspaces of one owner and the agents in them, by id."""

    workspaces: Mapping[UUID, tuple[str, Status.Status.ValueType]] = {}
    agents: Mapping[UUID, tuple[str, UUID]] = {}


def status(build: Build) -> Status.Status.ValueType:
    """Of a workspace, by its latest build."""
    if build.status in ("pending", "failed"):
        return Status.PENDING if build.status == "pending" else Status.FAILED
    return _STATUSES.get((build.transition, build.status), Status.UNKNOWN)


def difference(old: View, new: View) -> pb.WorkspaceUpdate:
    """What turns one view into the other."""
    return pb.WorkspaceUpdate(
        upserted_workspaces=[_workspace(one, value) for one, value in _news(old.workspaces, new.workspaces)],
        upserted_agents=[_agent(one, value) for one, value in _news(old.agents, new.agents)],
        deleted_workspaces=[_workspace(one, value) for one, value in _gone(old.workspaces, new.workspaces)],
        deleted_agents=[_agent(one, value) for one, value in _gone(old.agents, new.agents)],
    )


async def view(database: Database, owner: UUID) -> View:
    """As it is now. An agent is there while it may be connected: until the stop of its workspace has ended."""
    async with database.reading() as session:
        rows = await agents.newest(session, owner)
        latest = await workspaces.latest_builds(session, [row.workspace.id for row in rows])
    found, there = {}, {}
    for row in rows:
        build = latest[row.workspace.id]
        found[row.workspace.id] = (row.workspace.name, status(build))
        if build.transition == "start" or (build.transition == "stop" and build.status in ("pending", "running")):
            there[row.agent.id] = (row.agent.name, row.workspace.id)
    return View(found, there)


async def follow(database: Database, events: Events, owner: UUID) -> AsyncIterator[pb.WorkspaceUpdate]:
    """First everything, even if that is nothing, then every change, without an end."""
    told, first = View(), True
    while True:
        topics = [owner_topic(owner), *map(workspace_topic, told.workspaces)]
        with events.subscribe(*topics) as changes:
            while True:
                now = await view(database, owner)
                update = difference(told, now)
                resubscribe = now.workspaces.keys() != told.workspaces.keys()
                told = now
                if first or update.ByteSize():
                    first = False
                    yield update
                if resubscribe:
                    break
                await changes.wait()


def _news(old: Mapping[UUID, V], new: Mapping[UUID, V]) -> list[tuple[UUID, V]]:
    return [(key, value) for key, value in new.items() if old.get(key) != value]


def _gone(old: Mapping[UUID, V], new: Mapping[UUID, V]) -> list[tuple[UUID, V]]:
    return [(key, value) for key, value in old.items() if key not in new]


def _workspace(workspace: UUID, value: tuple[str, Status.Status.ValueType]) -> pb.Workspace:
    return pb.Workspace(id=workspace.bytes, name=value[0], status=value[1])


def _agent(agent: UUID, value: tuple[str, UUID]) -> pb.Agent:
    return pb.Agent(id=agent.bytes, name=value[0], workspace_id=value[1].bytes)
