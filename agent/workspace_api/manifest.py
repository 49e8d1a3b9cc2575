"""The manifest as its JSON is shown to people who help (terminal-ssh-http.md §4.4, daemon.md §1.9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from agent.api.manifest import Manifest
from agent.api.proto import agent_pb2 as pb
from agent.tailnet.derp_map import from_message, to_json

REDACTED: Final = "[redacted]"
_HEALTHS: Final[dict[int, str]] = {number: name.lower() for name, number in pb.WorkspaceApp.Health.items()}
NO_ID: Final = "00000000-0000-0000-0000-000000000000"


def shown(manifest: Manifest, redact: Callable[[str], str]) -> dict[str, Any]:
    """Everything but the secrets; of environment variables only the names, since many hold one."""
    value = {
        "parent_id": str(manifest.parent_id) if manifest.parent_id is not None else NO_ID,
        "agent_id": str(manifest.agent_id),
        "agent_name": manifest.agent_name,
        "owner_name": manifest.owner_name,
        "workspace_id": str(manifest.workspace_id),
        "workspace_name": manifest.workspace_name,
        "git_auth_configs": manifest.git_auth_configs,
        "vscode_port_proxy_uri": manifest.vscode_proxy_uri,
        "apps": [
            {
                "id": str(app.id),
                "url": app.url,
                "slug": app.slug,
                "display_name": app.display_name,
                "health": _HEALTHS[app.health],
                "healthcheck": {
                    "url": app.health_check.url,
                    "interval": int(app.health_check.interval),
                    "threshold": app.health_check.threshold,
                },
            }
            for app in manifest.apps
        ],
        "derpmap": to_json(from_message(manifest.derp_map)),
        "derp_force_websockets": manifest.derp_force_websockets,
        "environment_variables": dict.fromkeys(manifest.environment, REDACTED),
        "directory": manifest.directory,
        "motd_file": manifest.motd_path,
        "disable_direct_connections": manifest.disable_direct_connections,
        "metadata": [
            {
                "display_name": item.display_name,
                "key": item.key,
                "script": item.script,
                "interval": item.interval,
                "timeout": item.timeout,
            }
            for item in manifest.metadata
        ],
        "scripts": [
            {
                "id": str(script.id),
                "log_source_id": str(script.log_source_id),
                "log_path": script.log_path,
                "script": script.text,
                "cron": script.cron,
                "run_on_start": script.run_on_start,
                "run_on_stop": script.run_on_stop,
                "start_blocks_login": script.start_blocks_login,
                "timeout": round(script.timeout * 1e9),  # nanoseconds
                "display_name": script.display_name,
            }
            for script in manifest.scripts
        ],
        "devcontainers": [],
    }
    return {key: _redacted(item, redact) for key, item in value.items()}


def _redacted(value: Any, redact: Callable[[str], str]) -> Any:
    match value:
        case str():
            return redact(value)
        case list():
            return [_redacted(item, redact) for item in value]
        case dict():
            return {key: _redacted(item, redact) for key, item in value.items()}
    return value
