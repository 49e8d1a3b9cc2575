"""Who is told about connections to terminals and SSH sessions: the reports to the server (agent-api.md §11.8).

The services do not know how reports look; here their words for things become the server's.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from uuid import UUID

from agent.api.proto import agent_pb2 as pb
from agent.monitor import ConnectionReporter

if TYPE_CHECKING:
    from agent.monitor.connections import Kind
    from agent.ssh.counters import Kind as SshKind
    from agent.terminal.counters import Ending


class _Visitors:
    """Remembers what a connection was: the report of its end says it again."""

    def __init__(self, reporter: ConnectionReporter) -> None:
        self._reporter = reporter
        self._open: dict[UUID, tuple[Kind, str]] = {}

    def _begin(self, connection: UUID, kind: Kind, ip: str) -> None:
        self._open[connection] = kind, ip
        self._reporter.connected(connection, kind, ip)

    def _end(self, connection: UUID, code: int, reason: str) -> None:
        if (known := self._open.pop(connection, None)) is not None:
            self._reporter.disconnected(connection, *known, code, reason)


class TerminalVisitors(_Visitors):
    """The `ConnectionReports` of terminals (terminal-ssh-http.md §1.9)."""

    def connected(self, connection: UUID, address: bytes) -> None:
        """`address` is 16 bytes."""
        self._begin(connection, pb.Connection.RECONNECTING_PTY, str(ipaddress.IPv6Address(address)))

    def disconnected(self, connection: UUID, ending: Ending) -> None:
        """How it ended is the report's status and reason."""
        self._end(connection, ending.code, ending.reason)


class SshVisitors(_Visitors):
    """The `SessionReports` of SSH (terminal-ssh-http.md §3.13)."""

    def connected(self, session: UUID, kind: SshKind, address: str) -> None:
        """A client that does not say what it is is a plain one."""
        kinds = {"vscode": pb.Connection.VSCODE, "jetbrains": pb.Connection.JETBRAINS}
        self._begin(session, kinds.get(kind.value, pb.Connection.SSH), address)

    def disconnected(self, session: UUID, status: int, reason: str) -> None:
        """`status` is what the client was told."""
        self._end(session, status, reason)
