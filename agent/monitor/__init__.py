"""What the agent reports while it is connected: metadata, health of apps, statistics, resources, connections."""

from agent.monitor.app_health import AppHealthChecker
from agent.monitor.connections import ConnectionReporter
from agent.monitor.metadata import CommandContext, MetadataCollector
from agent.monitor.resources import ResourceMonitor
from agent.monitor.stats import NO_LATENCY, StatsReporter, StatsSource

__all__ = [
    "NO_LATENCY",
    "AppHealthChecker",
    "CommandContext",
    "ConnectionReporter",
    "MetadataCollector",
    "ResourceMonitor",
    "StatsReporter",
    "StatsSource",
]
