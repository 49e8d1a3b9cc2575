"""Workspaces as clients of the Coder API know them: one agent each, built from the one template. No I/O.

There are no templates, organizations and provisioners here. What clients want to know of them is the same for every
workspace: the constants below, and empty values. A build is its own job.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from agent.server.api.models import WorkspaceAgent
from agent.server.store.agents import AgentRow
from agent.server.store.schema import Build
from agent.server.wire import ZERO_TIME, Time, optional_time, rfc3339

ORGANIZATION = UUID("6b6f7765-0000-4000-8000-000000000001")
"""There is one organization; clients want to see its id."""
TEMPLATE = UUID("6b6f7765-0000-4000-8000-000000000002")
TEMPLATE_VERSION = UUID("6b6f7765-0000-4000-8000-000000000003")
NOBODY = UUID(int=0)
ORGANIZATION_NAME = "default"
TEMPLATE_NAME = "agent"
VERSION_NAME = "built-in"
_STATUSES = {"start": ("starting", "running"), "stop": ("stopping", "stopped"), "delete": ("deleting", "deleted")}


class JobMetadata(msgspec.Struct, kw_only=True):
    template_version_name: str = ""
    template_id: UUID = NOBODY
    template_name: str = ""
    template_display_name: str = ""
    template_icon: str = ""


class Job(msgspec.Struct, kw_only=True):
    """`status` is `pending`, `running`, `succeeded` or `failed`."""

    id: UUID
    created_at: Time
    started_at: Time | UnsetType
    completed_at: Time | UnsetType
    error: str | UnsetType = UNSET
    status: str
    file_id: UUID = NOBODY
    tags: dict[str, str] = msgspec.field(default_factory=lambda: {"owner": "", "scope": "organization"})
    queue_position: int = 0
    queue_size: int = 0
    organization_id: UUID = ORGANIZATION
    input: dict[str, UUID]
    type: str
    metadata: JobMetadata = msgspec.field(default_factory=JobMetadata)


class Resource(msgspec.Struct, kw_only=True):
    """What a start build made: the place of the agent."""

    id: UUID
    created_at: Time
    job_id: UUID
    workspace_transition: str
    type: str = "workspace"
    name: str
    hide: bool = False
    icon: str = ""
    agents: list[WorkspaceAgent]
    daily_cost: int = 0


class MatchedProvisioners(msgspec.Struct, kw_only=True):
    count: int = 0
    available: int = 0
    most_recently_seen: Time | None = None


class WorkspaceBuild(msgspec.Struct, kw_only=True):
    """`status` is the workspace's: `running` after a start build that succeeded."""

    id: UUID
    created_at: Time
    updated_at: Time
    workspace_id: UUID
    workspace_name: str
    workspace_owner_id: UUID
    workspace_owner_name: str
    workspace_owner_avatar_url: str = ""
    template_version_id: UUID = TEMPLATE_VERSION
    template_version_name: str = VERSION_NAME
    build_number: int
    transition: str
    initiator_id: UUID
    initiator_name: str
    job: Job
    reason: str = "initiator"
    resources: list[Resource]
    deadline: Time | None = None
    max_deadline: Time | None = None
    status: str
    daily_cost: int = 0
    matched_provisioners: MatchedProvisioners = msgspec.field(default_factory=MatchedProvisioners)
    template_version_preset_id: UUID | None = None


class WorkspaceHealth(msgspec.Struct, kw_only=True):
    healthy: bool
    failing_agents: list[UUID]


class Workspace(msgspec.Struct, kw_only=True):
    id: UUID
    created_at: Time
    updated_at: Time
    owner_id: UUID
    owner_name: str
    owner_avatar_url: str = ""
    organization_id: UUID = ORGANIZATION
    organization_name: str = ORGANIZATION_NAME
    template_id: UUID = TEMPLATE
    template_name: str = TEMPLATE_NAME
    template_display_name: str = ""
    template_icon: str = ""
    template_allow_user_cancel_workspace_jobs: bool = False
    template_active_version_id: UUID = TEMPLATE_VERSION
    template_require_active_version: bool = False
    latest_build: WorkspaceBuild
    latest_app_status: Any = None
    outdated: bool = False
    name: str
    last_used_at: Time
    deleting_at: Time | None = None
    dormant_at: Time | None = None
    health: WorkspaceHealth
    automatic_updates: str = "never"
    allow_renames: bool = False
    favorite: bool = False
    next_start_at: Time | None = None


class WorkspaceList(msgspec.Struct, kw_only=True):
    """`count` is that of all that match, of which `workspaces` may be a part."""

    workspaces: list[Workspace]
    count: int


class MinimalUser(msgspec.Struct, kw_only=True):
    id: UUID
    username: str
    avatar_url: str = ""


class TemplateVersion(msgspec.Struct, kw_only=True):
    id: UUID
    template_id: UUID
    organization_id: UUID
    created_at: Time
    updated_at: Time
    name: str
    message: str = ""
    job: Job
    readme: str = ""
    created_by: MinimalUser
    archived: bool = False


def status_of(build: Build) -> str:
    """What a workspace with this latest build is."""
    going, done = _STATUSES[build.transition]
    return {"pending": "pending", "running": going, "succeeded": done}.get(build.status, "failed")


def workspace(row: AgentRow, latest: Build, agent: WorkspaceAgent, last_used: int) -> Workspace:
    """`row` has the last agent and `latest` the last build, which is another one where the workspace was stopped.
    `last_used` is in microseconds."""
    failing = [agent.id] if latest.transition == "start" and not agent.health.healthy else []
    return Workspace(
        id=row.workspace.id,
        created_at=rfc3339(row.workspace.created_at),
        updated_at=rfc3339(row.workspace.updated_at),
        owner_id=row.owner.id,
        owner_name=row.owner.username,
        latest_build=_build(row, latest, [agent] if latest.id == row.build.id else []),
        name=row.workspace.name,
        last_used_at=rfc3339(last_used),
        health=WorkspaceHealth(healthy=not failing, failing_agents=failing),
    )


def _build(row: AgentRow, build: Build, agents: Sequence[WorkspaceAgent]) -> WorkspaceBuild:
    created = rfc3339(build.created_at)
    return WorkspaceBuild(
        id=build.id,
        created_at=created,
        updated_at=rfc3339(build.updated_at),
        workspace_id=row.workspace.id,
        workspace_name=row.workspace.name,
        workspace_owner_id=row.owner.id,
        workspace_owner_name=row.owner.username,
        build_number=build.number,
        transition=build.transition,
        initiator_id=row.owner.id,
        initiator_name=row.owner.username,
        job=Job(
            id=build.id,
            created_at=created,
            started_at=UNSET if build.status == "pending" else created,
            completed_at=optional_time(build.completed_at),
            error=build.error or UNSET,
            status=build.status,
            input={"workspace_build_id": build.id},
            type="workspace_build",
        ),
        resources=[
            Resource(
                id=agent.resource_id,
                created_at=created,
                job_id=build.id,
                workspace_transition=build.transition,
                name=row.workspace.name,
                agents=[agent],
            )
            for agent in agents
        ],
        status=status_of(build),
    )


def template_version() -> TemplateVersion:
    """The only one, which nobody made."""
    job = Job(
        id=TEMPLATE_VERSION,
        created_at=ZERO_TIME,
        started_at=ZERO_TIME,
        completed_at=ZERO_TIME,
        status="succeeded",
        input={"template_version_id": TEMPLATE_VERSION},
        type="template_version_import",
    )
    return TemplateVersion(
        id=TEMPLATE_VERSION,
        template_id=TEMPLATE,
        organization_id=ORGANIZATION,
        created_at=ZERO_TIME,
        updated_at=ZERO_TIME,
        name=VERSION_NAME,
        job=job,
        created_by=MinimalUser(id=NOBODY, username=""),
    )
