"""Statistics of the agent's traffic and sessions (agent-api.md §11.1)."""

from __future__ import annotations

import logging
from typing import Protocol

from agent.api.methods import UPDATE_STATS, AgentApi
from agent.api.proto import agent_pb2 as pb
from agent.clock import Clock

NO_LATENCY = -0.001
"""Milliseconds that are reported when there is no peer to measure."""
REPORT_LIMIT = 30.0
MIN_PERIOD = 1.0
"""Seconds; a shorter `report_interval` would keep agent and server busy with nothing else."""

_log = logging.getLogger("agent.stats")


class StatsSource(Protocol):
    """Where the figures come from."""

    async def collect(self) -> pb.Stats:
        """Counters since the previous call, and the sessions and the latency of now."""


class StatsReporter:
    """Reports what a source counted. Counters of a report that failed are part of the next one, on any connection."""

    def __init__(self, clock: Clock, source: StatsSource) -> None:
        self._clock = clock
        self._source = source
        self._unsent: pb.Stats | None = None

    async def run(self, api: AgentApi) -> None:
        """The body of a routine: one report per period, which the server's answers set.

        Returns when the server asks for no reports (an interval of zero or less).
        """
        response = await api.call(UPDATE_STATS, pb.UpdateStatsRequest(), timeout=REPORT_LIMIT)
        while (interval := response.report_interval.ToNanoseconds() / 1e9) > 0:
            await self._clock.sleep(max(interval, MIN_PERIOD))
            self._unsent = merge(self._unsent, await self._source.collect())
            request = pb.UpdateStatsRequest(stats=self._unsent)
            response = await api.call(UPDATE_STATS, request, timeout=REPORT_LIMIT)
            self._unsent = None
        _log.info("the server wants no statistics")


_COUNTERS = ("connection_count", "rx_packets", "rx_bytes", "tx_packets", "tx_bytes")


def merge(unsent: pb.Stats | None, newer: pb.Stats) -> pb.Stats:
    """One report for both periods: counters add up, everything else is as it is now."""
    if unsent is None:
        return newer
    merged = pb.Stats()
    merged.CopyFrom(newer)
    for name in _COUNTERS:
        setattr(merged, name, getattr(unsent, name) + getattr(newer, name))
    for protocol, count in unsent.connections_by_proto.items():
        merged.connections_by_proto[protocol] += count
    return merged
