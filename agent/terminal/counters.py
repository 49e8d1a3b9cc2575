"""What is counted and reported about terminals (terminal-ssh-http.md §1.9)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID


@dataclass(slots=True)
class Counters:
    """`errors` by the names that the metric `agent_reconnecting_pty_errors_total` has for them."""

    connections: int = 0
    """Ever accepted."""
    active: int = 0
    """Being handled now."""
    resyncs: int = 0
    """Viewers that did not keep up and were given the restored screen."""
    errors: dict[str, int] = field(default_factory=dict)

    def error(self, kind: str) -> None:
        self.errors[kind] = self.errors.get(kind, 0) + 1


class Ending(enum.Enum):
    """How a connection ended: status code and reason of the report."""

    GRACEFUL = (0, "graceful")
    SHUTDOWN = (1, "server_shutdown")
    NETWORK_ERROR = (1, "network_error")
    HARD_SHUTDOWN = (1, "server shut down")

    @property
    def code(self) -> int:
        return self.value[0]

    @property
    def reason(self) -> str:
        return self.value[1]


class ConnectionReports(Protocol):
    """Who is told about connections. Must not block."""

    def connected(self, connection: UUID, address: bytes) -> None:
        """A connection was accepted; `address` are the 16 bytes of the peer's."""

    def disconnected(self, connection: UUID, ending: Ending) -> None:
        """It is over."""


class NoReports:
    """Nobody is told."""

    def connected(self, connection: UUID, address: bytes) -> None: ...

    def disconnected(self, connection: UUID, ending: Ending) -> None: ...
