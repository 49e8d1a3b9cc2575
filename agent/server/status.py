"""What the times of an agent's connection mean (agent-api.md §3.1). Pure functions."""

from __future__ import annotations

from typing import NamedTuple

INACTIVE = 30_000_000
"""Microseconds without a sign of life after which an agent counts as gone."""


class Presence(NamedTuple):
    """`status` is `connecting`, `connected`, `disconnected` or `timeout`; `disconnected_at` is what is shown."""

    status: str
    disconnected_at: int | None


def presence(
    *,
    created_at: int,
    first_connected_at: int | None,
    last_connected_at: int | None,
    disconnected_at: int | None,
    connection_timeout: int,
    now: int,
    inactive: int = INACTIVE,
) -> Presence:
    """All times in microseconds, `connection_timeout` in seconds (0: none)."""
    if first_connected_at is None or last_connected_at is None:
        late = connection_timeout > 0 and now - created_at > connection_timeout * 1_000_000
        return Presence("timeout" if late else "connecting", disconnected_at)
    if disconnected_at is not None and disconnected_at >= last_connected_at:
        return Presence("disconnected", disconnected_at)
    if now - last_connected_at > inactive:
        return Presence("disconnected", last_connected_at)
    return Presence("connected", disconnected_at)


def unhealthy_reason(status: str, lifecycle_state: str) -> str:
    """Why the agent is not healthy; empty when it is."""
    if status != "connected" and lifecycle_state == "off":
        return "agent is not running"
    by_status = {
        "connecting": "agent has not yet connected",
        "timeout": "agent is taking too long to connect",
        "disconnected": "agent has lost connection",
    }
    if status in by_status:
        return by_status[status]
    if lifecycle_state == "start_error":
        return "agent startup script exited with an error"
    if lifecycle_state in ("shutting_down", "shutdown_timeout", "shutdown_error", "off"):
        return "agent is shutting down"
    return ""
