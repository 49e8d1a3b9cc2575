"""From a definition to rows, and from rows to what the agent is told (agent-api.md §8.1, §12.5). No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from google.protobuf.duration_pb2 import Duration

from agent.api.proto import agent_pb2 as pb
from agent.server.definition import AgentDefinition
from agent.server.derp_map import DerpMaps
from agent.server.store.agents import AgentRow
from agent.server.store.schema import App, Metadata, Script
from agent.server.store.workspaces import NewAgent


def definition_of(stored: object) -> AgentDefinition:
    """What `new_agent` stored."""
    return msgspec.convert(stored, AgentDefinition)


def new_agent(definition: AgentDefinition, token_hash: bytes) -> NewAgent:
    """The rows of a new agent."""
    scripts, apps, monitors = [], [], []
    for script in definition.scripts:
        values = msgspec.structs.asdict(script)
        values["timeout_ns"] = values.pop("timeout")
        scripts.append(values)
    for app in definition.apps:
        values = msgspec.structs.asdict(app)
        check = values.pop("healthcheck")
        values["sharing_level"] = values.pop("share")
        values["display_name"] = app.display_name or app.slug
        values |= {
            "healthcheck_url": check.url if check else "",
            "healthcheck_interval": check.interval if check else 0,
            "healthcheck_threshold": check.threshold if check else 0,
            "health": "initializing" if check else "disabled",
        }
        apps.append(values)
    metadata = [
        {**msgspec.structs.asdict(item), "display_name": item.display_name or item.key} for item in definition.metadata
    ]
    if memory := definition.resources.memory:
        monitors.append({"path": "", "enabled": memory.enabled, "threshold": memory.threshold})
    monitors += [msgspec.structs.asdict(volume) for volume in definition.resources.volumes]
    return NewAgent(
        token_hash=token_hash,
        name=definition.agent_name,
        instance_id=definition.instance_id,
        definition=msgspec.to_builtins(definition),
        scripts=scripts,
        apps=apps,
        metadata=metadata,
        monitors=monitors,
    )


def to_manifest(
    row: AgentRow,
    scripts: Iterable[Script],
    apps: Iterable[App],
    metadata: Iterable[Metadata],
    *,
    derp_maps: DerpMaps,
    git_auth_configs: int,
) -> pb.Manifest:
    """The answer to GetManifest. Whatever the Go agent would trip over is set (§12.5)."""
    definition = definition_of(row.agent.definition)
    return pb.Manifest(
        agent_id=row.agent.id.bytes,
        agent_name=row.agent.name,
        owner_username=row.owner.username,
        workspace_id=row.workspace.id.bytes,
        workspace_name=row.workspace.name,
        git_auth_configs=git_auth_configs,
        environment_variables=definition.env,
        directory=definition.directory,
        motd_path=definition.motd_file,
        derp_map=derp_maps.message,
        derp_force_websockets=derp_maps.options.force_websockets,
        disable_direct_connections=derp_maps.options.disable_direct,
        scripts=[_script(script) for script in scripts],
        apps=[_app(app) for app in apps],
        metadata=[
            pb.WorkspaceAgentMetadata.Description(
                display_name=item.display_name,
                key=item.key,
                script=item.script,
                interval=quirk(item.interval),
                timeout=quirk(item.timeout),
            )
            for item in metadata
        ],
        secrets=[
            pb.WorkspaceSecret(env_name=secret.env, file_path=secret.file, value=secret.value.encode())
            for secret in definition.secrets
        ],
    )


def quirk(seconds: int) -> Duration:
    """Metadata durations carry seconds in their nanosecond count (§8.1, "Unit quirk")."""
    return Duration(seconds=seconds // 10**9, nanos=seconds % 10**9)


def _script(script: Script) -> pb.WorkspaceAgentScript:
    seconds, nanos = divmod(script.timeout_ns, 10**9)
    return pb.WorkspaceAgentScript(
        id=script.id.bytes,
        log_source_id=script.log_source_id.bytes,
        display_name=script.display_name,
        script=script.script,
        log_path=script.log_path,
        cron=script.cron,
        run_on_start=script.run_on_start,
        run_on_stop=script.run_on_stop,
        start_blocks_login=script.start_blocks_login,
        timeout=Duration(seconds=seconds, nanos=nanos),
    )


def _app(app: App) -> pb.WorkspaceApp:
    sharing: Any = pb.WorkspaceApp.SharingLevel.Value(app.sharing_level.upper())
    health: Any = pb.WorkspaceApp.Health.Value(app.health.upper())
    return pb.WorkspaceApp(
        id=app.id.bytes,
        url=app.url,
        external=app.external,
        slug=app.slug,
        display_name=app.display_name,
        command=app.command,
        icon=app.icon,
        subdomain=app.subdomain,
        sharing_level=sharing,
        healthcheck=pb.WorkspaceApp.Healthcheck(
            url=app.healthcheck_url,
            interval=Duration(seconds=app.healthcheck_interval),
            threshold=app.healthcheck_threshold,
        ),
        health=health,
        hidden=app.hidden,
    )
