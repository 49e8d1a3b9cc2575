"""Who connected to the workspace, and how that ended (agent-api.md §11.8)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final, TypeAlias
from uuid import UUID

from agent.api.methods import REPORT_CONNECTION, AgentApi
from agent.api.proto import agent_pb2 as pb
from agent.clock import Clock
from agent.rpc import RpcError, StreamBrokenError, UnsupportedError

MAX_QUEUED: Final = 2048
"""Reports that wait for a server; newer ones are dropped and counted."""
MAX_REASON: Final = 1024
"""Characters of a reason."""
REPORT_LIMIT: Final = 30.0

Kind: TypeAlias = "pb.Connection.Type.ValueType"
Action: TypeAlias = "pb.Connection.Action.ValueType"

_log = logging.getLogger("agent.connections")


class ConnectionReporter:
    """Takes reports at any time, without waiting, and sends them in order on whatever connection there is."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queue: deque[pb.Connection] = deque()
        self._changed = asyncio.Event()
        self.dropped = {"connect": 0, "disconnect": 0}
        """How many found the queue full, by action."""

    @property
    def queued(self) -> int:
        """Reports that the server has not had yet."""
        return len(self._queue)

    def connected(self, connection: UUID, kind: Kind, ip: str) -> None:
        """A connection was accepted. `ip` may have a port, and may be empty."""
        self._add(connection, pb.Connection.CONNECT, kind, ip)

    def disconnected(self, connection: UUID, kind: Kind, ip: str, code: int, reason: str) -> None:
        """The connection `connection` is over; `code` is its exit status."""
        report = self._add(connection, pb.Connection.DISCONNECT, kind, ip)
        report.status_code = min(max(code, -(2**31)), 2**31 - 1)
        # Protobuf strings are UTF-8, and databases take no NUL.
        report.reason = reason[:MAX_REASON].encode("utf-8", "replace").decode().replace("\0", "\ufffd")

    async def sent(self) -> None:
        """Wait until nothing is queued."""
        while self._queue:
            self._changed.clear()
            await self._changed.wait()

    async def run(self, api: AgentApi) -> None:
        """The body of a routine. What the server refuses is dropped: repeating it would not help.

        A report whose connection breaks is sent again on the next one; servers merge what they get twice.
        """
        while True:
            while self._queue:
                report = self._queue[0]
                try:
                    await api.call(
                        REPORT_CONNECTION, pb.ReportConnectionRequest(connection=report), timeout=REPORT_LIMIT
                    )
                except UnsupportedError:
                    _log.debug("report of a connection dropped: the server does not take any")
                except (RpcError, StreamBrokenError) as error:
                    _log.warning("report of a connection dropped: %s", error)
                self._queue.popleft()
                self._changed.set()
            self._changed.clear()
            await self._changed.wait()

    def _add(self, connection: UUID, action: Action, kind: Kind, ip: str) -> pb.Connection:
        report = pb.Connection(id=connection.bytes, action=action, type=kind, ip=host(ip))
        report.timestamp.FromNanoseconds(self._clock.wall())
        if len(self._queue) < MAX_QUEUED:
            self._queue.append(report)
            self._changed.set()
        else:
            name = pb.Connection.Action.Name(action).lower()
            if not self.dropped[name]:
                _log.warning("%d reports of connections wait for the server: newer ones are dropped", MAX_QUEUED)
            self.dropped[name] += 1
        return report


def host(address: str) -> str:
    """The host of `host`, `host:port`, `[v6]:port` or a bare IPv6 address; `localhost` is 127.0.0.1."""
    if address.startswith("["):
        name = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        name = address.partition(":")[0]
    else:
        name = address
    return "127.0.0.1" if name == "localhost" else name
