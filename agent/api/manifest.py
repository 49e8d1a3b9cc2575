"""The manifest as the rest of the program sees it: validated, in plain types, without the secrets (agent-api.md §8.1).

`from_proto` refuses what the Go agent refuses: a UUID field that is not 16 bytes, a sharing level or health of 0, a
nil agent id (daemon.md §2.1 step 3). Such a manifest fails the connection, which is then tried again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from google.protobuf.duration_pb2 import Duration

from agent.api.proto import agent_pb2 as pb
from agent.api.proto import tailnet_pb2


class ManifestError(ValueError):
    """The server sent a manifest that cannot be used; the text names the field."""


@dataclass(frozen=True, slots=True)
class Script:
    """One script of the manifest. `timeout` is in seconds, 0 means none."""

    id: UUID
    log_source_id: UUID
    text: str
    display_name: str = ""
    log_path: str = ""
    cron: str = ""
    run_on_start: bool = False
    run_on_stop: bool = False
    start_blocks_login: bool = False
    timeout: float = 0.0


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """`interval` is in seconds; `threshold` counts failures that are forgiven."""

    url: str = ""
    interval: float = 0.0
    threshold: int = 0


@dataclass(frozen=True, slots=True)
class App:
    """What health checking needs of a workspace app. `health` is a value of `pb.AppHealth`."""

    id: UUID
    slug: str
    display_name: str
    url: str
    health: int
    health_check: HealthCheck


@dataclass(frozen=True, slots=True)
class MetadataDescription:
    """One metadata item. `interval` and `timeout` are whole seconds; 0 means once, and no limit of its own."""

    key: str
    display_name: str
    script: str
    interval: int
    timeout: int


@dataclass(frozen=True, slots=True)
class Secret:
    """A user secret: an environment variable, a file, or both. The value never appears in `repr`."""

    env_name: str
    file_path: str
    value: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One manifest; `secrets` are kept apart from it, so that it may be shown."""

    agent_id: UUID
    agent_name: str
    owner_name: str
    workspace_id: UUID
    workspace_name: str
    parent_id: UUID | None
    git_auth_configs: int
    environment: dict[str, str]
    directory: str
    vscode_proxy_uri: str
    motd_path: str
    derp_map: tailnet_pb2.DERPMap
    """As it came: the daemon makes a map of it that relays are dialled with."""
    disable_direct_connections: bool
    derp_force_websockets: bool
    scripts: tuple[Script, ...]
    apps: tuple[App, ...]
    metadata: tuple[MetadataDescription, ...]


def from_proto(message: pb.Manifest) -> tuple[Manifest, tuple[Secret, ...]]:
    """The manifest and, apart from it, the secrets. Raises `ManifestError`."""
    agent_id = _uuid("agent_id", message.agent_id)
    if agent_id.int == 0:
        raise ManifestError("agent_id is nil")
    manifest = Manifest(
        agent_id=agent_id,
        agent_name=message.agent_name,
        owner_name=message.owner_username,
        workspace_id=_uuid("workspace_id", message.workspace_id),
        workspace_name=message.workspace_name,
        parent_id=_uuid("parent_id", message.parent_id) if message.HasField("parent_id") else None,
        git_auth_configs=message.git_auth_configs,
        environment=dict(message.environment_variables),
        directory=message.directory,
        vscode_proxy_uri=message.vs_code_port_proxy_uri,
        motd_path=message.motd_path,
        derp_map=message.derp_map,
        disable_direct_connections=message.disable_direct_connections,
        derp_force_websockets=message.derp_force_websockets,
        scripts=tuple(_script(index, script) for index, script in enumerate(message.scripts)),
        apps=tuple(_app(index, app) for index, app in enumerate(message.apps)),
        metadata=tuple(
            MetadataDescription(
                key=item.key,
                display_name=item.display_name,
                script=item.script,
                interval=quirk_seconds(item.interval),
                timeout=quirk_seconds(item.timeout),
            )
            for item in message.metadata
        ),
    )
    secrets = tuple(Secret(secret.env_name, secret.file_path, secret.value) for secret in message.secrets)
    return manifest, secrets


def quirk_seconds(duration: Duration) -> int:
    """Metadata durations carry seconds in their nanosecond count (agent-api.md §8.1, "Unit quirk")."""
    return duration.seconds * 1_000_000_000 + duration.nanos


def _script(index: int, script: pb.WorkspaceAgentScript) -> Script:
    where = f"scripts[{index}]"
    return Script(
        # Servers before API 2.3 send no script id; it is needed only to report timings.
        id=_uuid(f"{where}.id", script.id) if script.id else UUID(int=0),
        log_source_id=_uuid(f"{where}.log_source_id", script.log_source_id),
        text=script.script,
        display_name=script.display_name,
        log_path=script.log_path,
        cron=script.cron,
        run_on_start=script.run_on_start,
        run_on_stop=script.run_on_stop,
        start_blocks_login=script.start_blocks_login,
        timeout=max(_seconds(script.timeout), 0.0),
    )


def _app(index: int, app: pb.WorkspaceApp) -> App:
    where = f"apps[{index}]"
    if app.sharing_level not in _KNOWN_SHARING_LEVELS:
        raise ManifestError(f"{where}.sharing_level is {app.sharing_level}, which is no sharing level")
    if app.health not in _KNOWN_HEALTHS:
        raise ManifestError(f"{where}.health is {app.health}, which is no health")
    return App(
        id=_uuid(f"{where}.id", app.id),
        slug=app.slug,
        display_name=app.display_name,
        url=app.url,
        health=app.health,
        health_check=HealthCheck(app.healthcheck.url, _seconds(app.healthcheck.interval), app.healthcheck.threshold),
    )


_KNOWN_SHARING_LEVELS = frozenset(pb.WorkspaceApp.SharingLevel.values()) - {0}
_KNOWN_HEALTHS = frozenset(pb.WorkspaceApp.Health.values()) - {0}


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _uuid(name: str, value: bytes) -> UUID:
    if len(value) != 16:
        raise ManifestError(f"{name} has {len(value)} bytes, a UUID has 16")
    return UUID(bytes=value)
