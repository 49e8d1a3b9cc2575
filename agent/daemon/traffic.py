"""What the agent's node carried, for the reports of statistics (agent-api.md §11.1, tailnet.md §8.7)."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.api.proto import agent_pb2 as pb
from agent.monitor import NO_LATENCY

if TYPE_CHECKING:
    from agent.tailnet.tailnet import Tailnet

PING_LIMIT = 5.0
"""Seconds that a peer has to answer when latencies are measured."""


@dataclass(frozen=True, slots=True)
class SshSessions:
    """How many sessions of each kind of client there are; of JetBrains it is forwarded connections."""

    ssh: int = 0
    vscode: int = 0
    jetbrains: int = 0


class Traffic:
    """The source of a `StatsReporter`. `node` gives the node of now: None before there is one, another one later;
    `viewers` how many connections to terminals there are now, `sessions` how many SSH sessions."""

    def __init__(
        self,
        node: Callable[[], Tailnet | None],
        viewers: Callable[[], int] = lambda: 0,
        sessions: Callable[[], SshSessions] = lambda: SshSessions(),
    ) -> None:
        self._node = node
        self._viewers = viewers
        self._sessions = sessions
        self._counted: Tailnet | None = None
        self._before = (0, 0, 0, 0)

    async def collect(self) -> pb.Stats:
        """Counters since the previous call, and how long peers that are talked with take to answer."""
        node = self._node()
        if node is None:
            return pb.Stats(connection_median_latency_ms=NO_LATENCY)
        latencies = await node.latencies(PING_LIMIT)
        # Nothing waits from here on: who cancels this must not lose what was counted.
        counters = node.engine.counters
        now = counters.rx_packets, counters.rx_bytes, counters.tx_packets, counters.tx_bytes
        before = self._before if node is self._counted else (0, 0, 0, 0)
        self._counted, self._before = node, now
        rx_packets, rx_bytes, tx_packets, tx_bytes = (
            count - counted for count, counted in zip(now, before, strict=True)
        )
        flows = node.engine.flows.take()
        sessions = self._sessions()
        return pb.Stats(
            connections_by_proto=flows,
            connection_count=sum(flows.values()),
            connection_median_latency_ms=statistics.median(latencies) * 1e3 if latencies else NO_LATENCY,
            rx_packets=rx_packets,
            rx_bytes=rx_bytes,
            tx_packets=tx_packets,
            tx_bytes=tx_bytes,
            session_count_reconnecting_pty=self._viewers(),
            session_count_ssh=sessions.ssh,
            session_count_vscode=sessions.vscode,
            session_count_jetbrains=sessions.jetbrains,
        )
