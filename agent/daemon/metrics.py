"""Everything that the agent counts, under the names of daemon.md §1.9 where it has one.

The values go to Prometheus, to the debug pages and into the reports of statistics; docs/howto/operations.md lists
them.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from agent.daemon.lifecycle import State
from agent.metrics import Metric, by_label, counter, gauge
from agent.scripts import PhaseResult
from agent.version import VERSION

if TYPE_CHECKING:
    from agent.daemon.reconnect import Connector
    from agent.daemon.reports import LifecycleReporter
    from agent.logs.service import LogCounters
    from agent.monitor import ConnectionReporter
    from agent.ssh.counters import Counters as SshCounters
    from agent.ssh.counters import Kind
    from agent.tailnet.tailnet import Tailnet
    from agent.terminal import TerminalService

Source = Callable[[], Iterable[Metric]]


class Metrics:
    """`add` takes what a part of the agent counts; everything is given as it is now, in that order."""

    def __init__(self) -> None:
        self._sources: list[Source] = []

    def add(self, *sources: Source) -> None:
        """Each is called on the loop whenever somebody asks, and must not wait."""
        self._sources += sources

    def counted(self) -> list[Metric]:
        """What the parts count, for reports to the server. The process's own figures are none of its business, and
        would have the names of the server's own in its metrics."""
        return [metric for source in self._sources for metric in source()]

    async def collect(self) -> list[Metric]:
        """The same and then the process's own figures, which are read from files."""
        return self.counted() + await asyncio.to_thread(process_metrics)


class ScriptCounts:
    """What scripts leave behind in figures."""

    def __init__(self) -> None:
        self.executed = {"true": 0, "false": 0}

    def ended(self, result: PhaseResult) -> None:
        """One run of a script has ended."""
        self.executed["true" if result is PhaseResult.OK else "false"] += 1

    def metrics(self, start_phase: tuple[float, PhaseResult] | None) -> Iterable[Metric]:
        """`start_phase`: seconds that the start scripts took, and how they ended."""
        yield by_label(
            "agent_scripts_executed_total", "counter", "success", self.executed, "Runs of scripts that have ended."
        )
        if start_phase is not None:
            seconds, result = start_phase
            yield by_label(
                "coderd_agentstats_startup_script_seconds",
                "gauge",
                "success",
                {"true" if result is PhaseResult.OK else "false": seconds},
                "How long the start scripts took.",
            )


def node_metrics(node: Tailnet | None) -> Iterable[Metric]:
    """The node's counters."""
    if node is None:
        return
    counters = node.engine.counters
    for name, value in (
        ("received_packets", counters.rx_packets),
        ("received_bytes", counters.rx_bytes),
        ("sent_packets", counters.tx_packets),
        ("sent_bytes", counters.tx_bytes),
        ("unbound_datagrams", counters.unbound),
        ("unknown_relayed_datagrams", counters.unknown_relayed),
        ("malformed_packets", counters.malformed),
        ("foreign_packets", counters.foreign),
    ):
        yield counter(f"agent_tailnet_{name}_total", value)


def peer_metrics(node: Tailnet | None, now: float) -> Iterable[Metric]:
    """Peers that something was sent to lately and that have answered, by the way that leads to them."""
    ways = {"p2p": 0, "derp": 0}
    if node is not None:
        paths = node.engine.paths
        for key in paths.active(now):
            if paths.latency(key) is not None:
                ways["p2p" if paths.current(key, now).endpoint is not None else "derp"] += 1
    yield by_label(
        "coderd_agentstats_currently_reachable_peers",
        "gauge",
        "connection_type",
        ways,
        "Peers that are talked with and answer, by the way that leads to them.",
    )


def ssh_metrics(counters: SshCounters | None) -> Iterable[Metric]:
    """SSH (terminal-ssh-http.md §3.13); the plain counters are there before anybody has connected."""
    for name, value in (
        ("failed_connections", counters.failed_connections if counters is not None else 0),
        ("sftp_connections", counters.sftp if counters is not None else 0),
        ("sftp_server_errors", counters.sftp_errors if counters is not None else 0),
    ):
        yield counter(f"agent_ssh_server_{name}_total", value)
    if counters is None:
        return

    def labels(kind: Kind, terminal: bool) -> dict[str, str]:
        return {"magic_type": kind.value, "pty": "yes" if terminal else "no"}

    if counters.x11_errors:
        yield by_label("agent_x11_handler_errors_total", "counter", "error_type", counters.x11_errors)
    if counters.sessions:
        samples = [(labels(*key), float(count)) for key, count in counters.sessions.items()]
        yield Metric("agent_sessions_total", "counter", samples, "SSH sessions that were opened.")
    if counters.errors:
        failed = [
            ({**labels(kind, terminal), "error_type": what}, float(count))
            for (kind, terminal, what), count in counters.errors.items()
        ]
        yield Metric("agent_sessions_errors_total", "counter", failed)


def terminal_metrics(service: TerminalService | None) -> Iterable[Metric]:
    """Terminals and their viewers; without the service there are none."""
    counters = service.counters if service is not None else None
    yield counter(
        "agent_reconnecting_pty_connections_total",
        counters.connections if counters is not None else 0,
        "Connections to terminals that were accepted.",
    )
    if counters is not None and counters.errors:
        yield by_label("agent_reconnecting_pty_errors_total", "counter", "error_type", counters.errors)
    yield gauge("agent_terminals", service.terminals if service is not None else 0, "Terminals that there are now.")
    yield gauge("agent_terminal_viewers", counters.active if counters is not None else 0, "Connections to them now.")
    yield counter(
        "agent_terminal_resyncs_total",
        counters.resyncs if counters is not None else 0,
        "Viewers that did not keep up and were given the restored screen.",
    )


def control_metrics(connector: Connector) -> Iterable[Metric]:
    """The connection to the control plane."""
    yield gauge("agent_control_connected", connector.api is not None, "Whether there is a connection to the server.")
    yield counter("agent_control_attempts_total", connector.attempts, "Attempts to connect to the server.")
    yield counter("agent_control_connections_total", connector.connections, "Attempts that succeeded.")


def lifecycle_metrics(lifecycle: LifecycleReporter) -> Iterable[Metric]:
    """Which state the agent is in: 1 for that one, 0 for the others."""
    states = {state.name.lower(): float(state is lifecycle.state) for state in State}
    yield by_label("agent_lifecycle_state", "gauge", "state", states, "1 for the state that the agent is in.")


def log_metrics(counters: LogCounters | None) -> Iterable[Metric]:
    """Log lines of scripts on their way to the server."""
    if counters is None:
        return
    yield gauge("agent_log_lines_queued", counters.queued_lines, "Lines that the server does not have yet.")
    yield gauge("agent_log_bytes_queued", counters.queued_bytes)
    yield counter("agent_log_lines_sent_total", counters.sent_lines)
    yield counter("agent_log_lines_dropped_total", counters.dropped_lines, "Lines that no server will ever see.")
    yield gauge("agent_log_memory_only", counters.memory_only, "1 while lines are kept in memory for want of a disk.")


def report_metrics(connections: ConnectionReporter) -> Iterable[Metric]:
    """Reports of connections on their way to the server."""
    yield gauge("agent_connection_reports_queued", connections.queued)
    yield by_label("agent_connection_reports_dropped_total", "counter", "action", connections.dropped)


def process_metrics(root: Path = Path("/proc/self")) -> list[Metric]:
    """The agent's own process; reads files. What the system does not tell is left out."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    metrics = [
        Metric("agent_info", "gauge", [({"version": VERSION}, 1)], "The version that runs."),
        counter("process_cpu_seconds_total", usage.ru_utime + usage.ru_stime),
    ]
    try:
        pages = int((root / "statm").read_text().split()[1])
        after_name = (root / "stat").read_text().rpartition(")")[2].split()
        booted = time.time() - float((root.parent / "uptime").read_text().split()[0])
        open_files = len(os.listdir(root / "fd"))
    except (OSError, ValueError, IndexError):  # no Linux, or a sandbox that hides it
        return metrics
    started = booted + int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    return [
        *metrics,
        gauge("process_resident_memory_bytes", pages * os.sysconf("SC_PAGE_SIZE")),
        gauge("process_start_time_seconds", round(started, 2)),
        gauge("process_threads", int(after_name[17])),
        gauge("process_open_fds", open_files),
        gauge("process_max_fds", resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    ]
