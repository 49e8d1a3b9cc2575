"""What the times of a connection mean (agent-api.md §3.1)."""

from __future__ import annotations

import pytest

from agent.server.status import presence, unhealthy_reason

SECOND = 1_000_000


@pytest.mark.parametrize(
    ("first", "last", "gone", "timeout", "now", "expected"),
    [
        (None, None, None, 60, 60, ("connecting", None)),
        (None, None, None, 60, 61, ("timeout", None)),
        (None, None, None, 0, 10**6, ("connecting", None)),
        (1, 10, None, 60, 40, ("connected", None)),
        (1, 10, 5, 60, 40, ("connected", 5)),
        (1, 10, 10, 60, 11, ("disconnected", 10)),
        (1, 10, 12, 60, 13, ("disconnected", 12)),
        (1, 10, None, 60, 41, ("disconnected", 10)),
        (1, 10, 5, 60, 41, ("disconnected", 10)),
    ],
)
def test_presence(
    first: int | None,
    last: int | None,
    gone: int | None,
    timeout: int,
    now: int,
    expected: tuple[str, int | None],
) -> None:
    def micros(value: int | None) -> int | None:
        return None if value is None else value * SECOND

    found = presence(
        created_at=0,
        first_connected_at=micros(first),
        last_connected_at=micros(last),
        disconnected_at=micros(gone),
        connection_timeout=timeout,
        now=now * SECOND,
    )
    assert found == (expected[0], micros(expected[1]))


@pytest.mark.parametrize(
    ("status", "state", "reason"),
    [
        ("connected", "ready", ""),
        ("connected", "starting", ""),
        ("connected", "start_timeout", ""),
        ("connecting", "created", "agent has not yet connected"),
        ("timeout", "created", "agent is taking too long to connect"),
        ("disconnected", "ready", "agent has lost connection"),
        ("disconnected", "off", "agent is not running"),
        ("connected", "start_error", "agent startup script exited with an error"),
        ("connected", "shutting_down", "agent is shutting down"),
        ("connected", "off", "agent is shutting down"),
    ],
)
def test_health(status: str, state: str, reason: str) -> None:
    assert unhealthy_reason(status, state) == reason
