"""What the agent reports while it is connected: metadata, health of apps, statistics."""

from agent.monitor.app_health import AppHealthChecker
from agent.monitor.metadata import CommandContext, MetadataCollector
from agent.monitor.stats import NoTraffic, StatsReporter, StatsSource

__all__ = ["AppHealthChecker", "CommandContext", "MetadataCollector", "NoTraffic", "StatsReporter", "StatsSource"]
