"""What is counted and reported about SSH sessions (terminal-ssh-http.md §3.6, §3.13)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID


class Kind(enum.Enum):
    """Whose session it is, by what the client says; the value is the label `magic_type` of metrics."""

    SSH = "ssh"
    VSCODE = "vscode"
    JETBRAINS = "jetbrains"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Counters:
    """Numbers since the start, but for `live`. `errors` by the name that the metric has for them."""

    live: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    """What runs now; of JetBrains the forwarded connections, its sessions are not counted."""
    sessions: dict[tuple[Kind, bool], int] = field(default_factory=dict)
    """By kind, and whether there is a terminal."""
    errors: dict[tuple[Kind, bool, str], int] = field(default_factory=dict)
    failed_connections: int = 0
    sftp: int = 0
    sftp_errors: int = 0
    x11_errors: dict[str, int] = field(default_factory=dict)

    def session(self, kind: Kind, terminal: bool) -> None:
        self.sessions[kind, terminal] = self.sessions.get((kind, terminal), 0) + 1

    def error(self, kind: Kind, terminal: bool, what: str) -> None:
        key = (kind, terminal, what)
        self.errors[key] = self.errors.get(key, 0) + 1

    def x11_error(self, what: str) -> None:
        self.x11_errors[what] = self.x11_errors.get(what, 0) + 1


class SessionReports(Protocol):
    """Who is told about sessions. Must not block."""

    def connected(self, session: UUID, kind: Kind, address: str) -> None:
        """A session began; `address` is the peer's, as text."""

    def disconnected(self, session: UUID, status: int, reason: str) -> None:
        """It is over, with the exit status that the client was told."""


class NoReports:
    """Nobody is told."""

    def connected(self, session: UUID, kind: Kind, address: str) -> None: ...

    def disconnected(self, session: UUID, status: int, reason: str) -> None: ...
