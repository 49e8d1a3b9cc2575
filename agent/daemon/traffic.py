"""What the agent's node carried, for the reports of statistics (agent-api.md §11.1, tailnet.md §8.7)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.api.proto import agent_pb2 as pb
from agent.metrics import Metric
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
    `viewers` how many connections to terminals there are now, `sessions` how many SSH sessions, and `metrics`
    everything that the agent counts."""

    def __init__(
        self,
        node: Callable[[], Tailnet | None],
        viewers: Callable[[], int] = lambda: 0,
        sessions: Callable[[], SshSessions] = lambda: SshSessions(),
        metrics: Callable[[], Iterable[Metric]] = tuple,
    ) -> None:
        self._node = node
        self._viewers = viewers
        self._sessions = sessions
        self._metrics = metrics
        self._counted: Tailnet | None = None
        self._before = (0, 0, 0, 0)

    async def collect(self) -> pb.Stats:
        """Counters since the previous call, and how long peers that are talked with take to answer."""
        node = self._node()
        latencies = await node.latencies(PING_LIMIT) if node is not None else []
        # Nothing waits from here on: who cancels this must not lose what was counted.
        sessions = self._sessions()
        stats = pb.Stats(
            connection_median_latency_ms=statistics.median(latencies) * 1e3 if latencies else NO_LATENCY,
            session_count_reconnecting_pty=self._viewers(),
            session_count_ssh=sessions.ssh,
            session_count_vscode=sessions.vscode,
            session_count_jetbrains=sessions.jetbrains,
            metrics=[sample for metric in self._metrics() for sample in _samples(metric)],
        )
        if node is not None:
            self._count(node, stats)
        return stats

    def _count(self, node: Tailnet, stats: pb.Stats) -> None:
        counters = node.engine.counters
        now = counters.rx_packets, counters.rx_bytes, counters.tx_packets, counters.tx_bytes
        before = self._before if node is self._counted else (0, 0, 0, 0)
        self._counted, self._before = node, now
        stats.rx_packets, stats.rx_bytes, stats.tx_packets, stats.tx_bytes = (
            count - counted for count, counted in zip(now, before, strict=True)
        )
        for protocol, count in node.engine.flows.take().items():
            stats.connections_by_proto[protocol] = count
            stats.connection_count += count


def _samples(metric: Metric) -> Iterable[pb.Stats.Metric]:
    kind = pb.Stats.Metric.COUNTER if metric.kind == "counter" else pb.Stats.Metric.GAUGE
    for labels, value in metric.samples:
        names = [pb.Stats.Metric.Label(name=name, value=text) for name, text in labels.items()]
        yield pb.Stats.Metric(name=metric.name, type=kind, value=value, labels=names)
