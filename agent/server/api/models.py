"""Bodies of the answers about agents (agent-api.md §2.3, §3.1), and how they are made from rows. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from agent.api.proto import tailnet_pb2 as pb
from agent.server.manifest import definition_of
from agent.server.status import presence, unhealthy_reason
from agent.server.store.agents import AgentRow
from agent.server.store.schema import Agent, App, Build, LogSource, Script, ScriptTiming
from agent.server.wire import Time, optional_time, rfc3339
from agent.tailnet.derp_map import DerpMap

DISPLAY_APPS = ["ssh_helper", "port_forwarding_helper", "web_terminal"]


class Healthcheck(msgspec.Struct, kw_only=True):
    """`interval` is in seconds."""

    url: str
    interval: int
    threshold: int


class WorkspaceApp(msgspec.Struct, kw_only=True):
    id: UUID
    url: str
    external: bool
    slug: str
    display_name: str
    command: str | UnsetType
    icon: str | UnsetType
    subdomain: bool
    sharing_level: str
    healthcheck: Healthcheck
    health: str
    group: str | UnsetType
    hidden: bool
    open_in: str
    statuses: list[Any] = []


class WorkspaceAgentLogSource(msgspec.Struct, kw_only=True):
    workspace_agent_id: UUID
    id: UUID
    created_at: Time
    display_name: str
    icon: str


class WorkspaceAgentScript(msgspec.Struct, kw_only=True):
    """`timeout` is in nanoseconds; `exit_code` and `status` are those of the last finished run."""

    id: UUID
    log_source_id: UUID
    log_path: str
    script: str
    cron: str
    run_on_start: bool
    run_on_stop: bool
    start_blocks_login: bool
    timeout: int
    display_name: str
    exit_code: int | UnsetType
    status: str | UnsetType


class Health(msgspec.Struct, kw_only=True):
    healthy: bool
    reason: str | UnsetType


class Latency(msgspec.Struct, kw_only=True):
    """From the agent to the relays of a region."""

    preferred: bool
    latency_ms: float


class InstanceProof(msgspec.Struct, kw_only=True):
    """The last time that a cloud vouched for the agent's instance. `cloud` is `aws`, `azure` or `google`."""

    cloud: str
    verified_at: Time


class WorkspaceAgent(msgspec.Struct, kw_only=True):
    """`instance_proof` is an addition to §3.1; it is missing where the agent never came as an instance."""

    id: UUID
    parent_id: UUID | None = None
    created_at: Time
    updated_at: Time
    first_connected_at: Time | UnsetType
    last_connected_at: Time | UnsetType
    disconnected_at: Time | UnsetType
    started_at: Time | UnsetType
    ready_at: Time | UnsetType
    status: str
    lifecycle_state: str
    name: str
    resource_id: UUID
    instance_id: str | UnsetType
    instance_proof: InstanceProof | UnsetType
    architecture: str
    environment_variables: dict[str, str] | None
    operating_system: str
    logs_length: int
    logs_overflowed: bool
    directory: str | UnsetType
    expanded_directory: str | UnsetType
    version: str
    api_version: str
    apps: list[WorkspaceApp]
    connection_timeout_seconds: int
    troubleshooting_url: str
    latency: dict[str, Latency] | UnsetType
    subsystems: list[str]
    health: Health
    display_apps: list[str]
    log_sources: list[WorkspaceAgentLogSource]
    scripts: list[WorkspaceAgentScript]
    startup_script_behavior: str


class BuildSummary(msgspec.Struct, kw_only=True):
    id: UUID
    number: int
    transition: str
    status: str
    error: str | UnsetType
    created_at: Time
    completed_at: Time | UnsetType


class AgentSummary(msgspec.Struct, kw_only=True):
    """An agent as the management endpoints list it. `name` is that of its workspace, unique for the owner."""

    id: UUID
    name: str
    agent_name: str
    workspace_id: UUID
    owner_id: UUID
    owner_name: str
    status: str
    lifecycle_state: str
    health: Health
    build: BuildSummary
    created_at: Time
    first_connected_at: Time | UnsetType
    last_connected_at: Time | UnsetType
    version: str
    api_version: str
    logs_length: int
    logs_overflowed: bool


class NewAgentAnswer(AgentSummary, kw_only=True):
    """`token` is shown this once; an agent that is bound to an instance needs none there."""

    token: str
    instance_id: str | UnsetType
    warnings: list[str]


class AgentList(msgspec.Struct, kw_only=True):
    agents: list[AgentSummary]


class BuildList(msgspec.Struct, kw_only=True):
    """Newest first."""

    builds: list[BuildSummary]


class NewToken(msgspec.Struct, kw_only=True):
    """`token` is shown this once."""

    token: str


def build_summary(build: Build) -> BuildSummary:
    return BuildSummary(
        id=build.id,
        number=build.number,
        transition=build.transition,
        status=build.status,
        error=build.error or UNSET,
        created_at=rfc3339(build.created_at),
        completed_at=optional_time(build.completed_at),
    )


def summary(row: AgentRow, latest: Build, now: int) -> AgentSummary:
    """`latest` is the newest build of the workspace; `now` in microseconds."""
    return AgentSummary(**_summary(row, latest, now))


def new_agent_answer(row: AgentRow, latest: Build, now: int, token: UUID, warnings: list[str]) -> NewAgentAnswer:
    instance_id = row.agent.instance_id or UNSET
    return NewAgentAnswer(**_summary(row, latest, now), token=str(token), instance_id=instance_id, warnings=warnings)


def _summary(row: AgentRow, latest: Build, now: int) -> dict[str, Any]:
    agent = row.agent
    status, _ = _presence(row, now)
    return {
        "id": agent.id,
        "name": row.workspace.name,
        "agent_name": agent.name,
        "workspace_id": row.workspace.id,
        "owner_id": row.owner.id,
        "owner_name": row.owner.username,
        "status": status,
        "lifecycle_state": agent.lifecycle_state,
        "health": _health(status, agent.lifecycle_state),
        "build": build_summary(latest),
        "created_at": rfc3339(agent.created_at),
        "first_connected_at": optional_time(agent.first_connected_at),
        "last_connected_at": optional_time(agent.last_connected_at),
        "version": agent.version,
        "api_version": agent.api_version,
        "logs_length": agent.logs_length,
        "logs_overflowed": agent.logs_overflowed,
    }


def workspace_agent(
    row: AgentRow,
    scripts: Iterable[Script],
    timings: Mapping[UUID, ScriptTiming],
    apps: Iterable[App],
    log_sources: Iterable[LogSource],
    latency: dict[str, Latency],
    now: int,
) -> WorkspaceAgent:
    """The answer of §3.1; `now` in microseconds."""
    agent = row.agent
    definition = definition_of(agent.definition)
    status, disconnected_at = _presence(row, now)
    blocking = any(script.run_on_start and script.start_blocks_login for script in definition.scripts)
    return WorkspaceAgent(
        id=agent.id,
        created_at=rfc3339(agent.created_at),
        updated_at=rfc3339(agent.updated_at),
        first_connected_at=optional_time(agent.first_connected_at),
        last_connected_at=optional_time(agent.last_connected_at),
        disconnected_at=optional_time(disconnected_at),
        started_at=optional_time(agent.started_at),
        ready_at=optional_time(agent.ready_at),
        status=status,
        lifecycle_state=agent.lifecycle_state,
        name=agent.name,
        resource_id=agent.resource_id,
        instance_id=agent.instance_id or UNSET,
        instance_proof=_proof(agent),
        architecture=definition.architecture,
        environment_variables=definition.env or None,
        operating_system=definition.os,
        logs_length=agent.logs_length,
        logs_overflowed=agent.logs_overflowed,
        directory=definition.directory or UNSET,
        expanded_directory=agent.expanded_directory or UNSET,
        version=agent.version,
        api_version=agent.api_version,
        apps=sorted((_app(app) for app in apps), key=lambda app: (app.display_name, app.slug)),
        connection_timeout_seconds=definition.connection_timeout,
        troubleshooting_url=definition.troubleshooting_url,
        latency=latency or UNSET,
        subsystems=list(map(str, agent.subsystems)),
        health=_health(status, agent.lifecycle_state),
        display_apps=DISPLAY_APPS,
        log_sources=[log_source(source) for source in log_sources],
        scripts=[_script(script, timings.get(script.id)) for script in scripts],
        startup_script_behavior="blocking" if blocking else "non-blocking",
    )


def _proof(agent: Agent) -> InstanceProof | UnsetType:
    if agent.identity_cloud is None or agent.identity_verified_at is None:
        return UNSET
    return InstanceProof(cloud=agent.identity_cloud, verified_at=rfc3339(agent.identity_verified_at))


def latencies(node: pb.Node | None, derp_map: DerpMap) -> dict[str, Latency]:
    """By the name of the region, from what the agent's node says (tailnet.md §3.9). Of two address families, which
    are told apart behind the first `-`, the faster one counts."""
    found: dict[str, Latency] = {}
    for key, seconds in sorted(node.derp_latency.items()) if node is not None else ():
        number = key.partition("-")[0]
        if not number.isascii() or not number.isdigit() or not math.isfinite(seconds):
            continue
        region = derp_map.regions.get(int(number[:20]))
        name = region.name if region is not None else f"Unnamed {number}"
        milliseconds = seconds * 1000
        if name not in found or milliseconds < found[name].latency_ms:
            preferred = node is not None and int(number[:20]) == node.preferred_derp
            found[name] = Latency(preferred=preferred, latency_ms=milliseconds)
    return found


def log_source(source: LogSource) -> WorkspaceAgentLogSource:
    return WorkspaceAgentLogSource(
        workspace_agent_id=source.agent_id,
        id=source.id,
        created_at=rfc3339(source.created_at),
        display_name=source.display_name,
        icon=source.icon,
    )


def status_of(row: AgentRow, now: int) -> str:
    """`connecting`, `connected`, `disconnected` or `timeout`; `now` in microseconds."""
    return _presence(row, now)[0]


def _presence(row: AgentRow, now: int) -> tuple[str, int | None]:
    agent = row.agent
    return presence(
        created_at=agent.created_at,
        first_connected_at=agent.first_connected_at,
        last_connected_at=agent.last_connected_at,
        disconnected_at=agent.disconnected_at,
        connection_timeout=definition_of(agent.definition).connection_timeout,
        now=now,
    )


def _health(status: str, lifecycle_state: str) -> Health:
    reason = unhealthy_reason(status, lifecycle_state)
    return Health(healthy=not reason, reason=reason or UNSET)


def _app(app: App) -> WorkspaceApp:
    return WorkspaceApp(
        id=app.id,
        url=app.url,
        external=app.external,
        slug=app.slug,
        display_name=app.display_name,
        command=app.command or UNSET,
        icon=app.icon or UNSET,
        subdomain=app.subdomain,
        sharing_level=app.sharing_level,
        healthcheck=Healthcheck(
            url=app.healthcheck_url, interval=app.healthcheck_interval, threshold=app.healthcheck_threshold
        ),
        health=app.health,
        group=app.group or UNSET,
        hidden=app.hidden,
        open_in=app.open_in,
    )


def _script(script: Script, timing: ScriptTiming | None) -> WorkspaceAgentScript:
    return WorkspaceAgentScript(
        id=script.id,
        log_source_id=script.log_source_id,
        log_path=script.log_path,
        script=script.script,
        cron=script.cron,
        run_on_start=script.run_on_start,
        run_on_stop=script.run_on_stop,
        start_blocks_login=script.start_blocks_login,
        timeout=script.timeout_ns,
        display_name=script.display_name,
        exit_code=UNSET if timing is None else timing.exit_code,
        status=UNSET if timing is None else timing.status,
    )
