"""The metrics: their names are a promise, to dashboards, alert rules and the manual."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from agent.api.versions import CURRENT
from agent.daemon.lifecycle import State
from agent.daemon.metrics import (
    Metrics,
    ScriptCounts,
    control_metrics,
    lifecycle_metrics,
    log_metrics,
    node_metrics,
    peer_metrics,
    process_metrics,
    report_metrics,
    ssh_metrics,
    terminal_metrics,
)
from agent.logs.service import LogCounters
from agent.metrics import Metric, render
from agent.monitor import ConnectionReporter
from agent.scripts import PhaseResult
from agent.ssh.counters import Counters as SshCounters
from agent.ssh.counters import Kind
from agent.tailnet.engine import EngineCounters
from agent.terminal.counters import Counters as TerminalCounters
from agent.testing import ManualClock

ROOT = Path(__file__).parents[2]
FUNCTIONS = {"sum", "count", "max", "rate", "increase", "quantile", "by", "and", "on", "label_values"}
LABELS = {"instance", "state", "version", "success", "action", "connection_type", "magic_type", "job"}


def everything() -> list[Metric]:
    """Each metric that an agent can have, with all its parts at work."""
    peers = {b"near": (object(), 0.1), b"far": (None, 0.2), b"silent": (None, None)}
    paths = SimpleNamespace(
        active=lambda now: list(peers),
        latency=lambda key: peers[key][1],
        current=lambda key, now: SimpleNamespace(endpoint=peers[key][0]),
    )
    node = cast(Any, SimpleNamespace(engine=SimpleNamespace(counters=EngineCounters(), paths=paths)))
    terminals = cast(Any, SimpleNamespace(terminals=2, counters=TerminalCounters(connections=3, errors={"write": 1})))
    ssh = SshCounters(sftp=1)
    ssh.session(Kind.SSH, terminal=False)
    ssh.error(Kind.VSCODE, True, "close")
    ssh.x11_error("listen")
    scripts = ScriptCounts()
    scripts.ended(PhaseResult.OK)
    scripts.ended(PhaseResult.TIMEOUT)
    sources: list[Iterable[Metric]] = [
        node_metrics(node),
        peer_metrics(node, 0.0),
        control_metrics(cast(Any, SimpleNamespace(api=CURRENT, attempts=3, connections=1))),
        lifecycle_metrics(cast(Any, SimpleNamespace(state=State.READY))),
        scripts.metrics((2.5, PhaseResult.ERROR)),
        log_metrics(LogCounters(1, 2, 3, 4, 5, False)),
        report_metrics(ConnectionReporter(ManualClock())),
        terminal_metrics(terminals),
        ssh_metrics(ssh),
        process_metrics(),
    ]
    return [metric for source in sources for metric in source]


def named(expression: str) -> set[str]:
    """The metrics that an expression of PromQL asks for."""
    bare = re.sub(r'"[^"]*"|\[[^]]*\]', "", expression)
    return set(re.findall(r"[a-z_]+[a-z]", bare)) - FUNCTIONS - LABELS


def test_values_are_where_they_belong() -> None:
    text = render(everything())
    for line in (
        'coderd_agentstats_currently_reachable_peers{connection_type="p2p"} 1',
        'coderd_agentstats_currently_reachable_peers{connection_type="derp"} 1',
        "agent_control_connected 1",
        'agent_lifecycle_state{state="ready"} 1',
        'agent_lifecycle_state{state="starting"} 0',
        'agent_scripts_executed_total{success="true"} 1',
        'agent_scripts_executed_total{success="false"} 1',
        'coderd_agentstats_startup_script_seconds{success="false"} 2.5',
        "agent_log_lines_dropped_total 3",
        'agent_reconnecting_pty_errors_total{error_type="write"} 1',
        'agent_sessions_total{magic_type="ssh",pty="no"} 1',
        'agent_sessions_errors_total{magic_type="vscode",pty="yes",error_type="close"} 1',
        "agent_ssh_server_sftp_connections_total 1",
        'agent_x11_handler_errors_total{error_type="listen"} 1',
    ):
        assert f"{line}\n" in text


def test_a_metric_has_one_name_one_kind_and_ends_as_its_kind_wants() -> None:
    metrics = everything()
    names = [metric.name for metric in metrics]
    assert len(names) == len(set(names))
    for metric in metrics:
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric.name


def test_dashboard_and_alerts_ask_for_metrics_that_there_are() -> None:
    known = {metric.name for metric in everything()}
    dashboard = json.loads((ROOT / "dashboards/agents.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [item["query"] for item in dashboard["templating"]["list"] if item["type"] == "query"]
    alerts = yaml.safe_load((ROOT / "dashboards/alerts.yaml").read_text())["groups"][0]["rules"]
    expressions += [alert["expr"] for alert in alerts]
    for expression in expressions:
        asked = named(expression)
        assert asked, expression
        assert asked <= known, f"{expression} asks for {asked - known}"
    for alert in alerts:
        assert {"summary", "action"} <= alert["annotations"].keys(), alert["alert"]


def test_the_manual_lists_every_metric() -> None:
    manual = (ROOT / "docs/howto/operations.md").read_text()
    for metric in everything():
        assert f"`{metric.name}`" in manual, metric.name


async def test_parts_come_in_the_order_in_which_they_were_added() -> None:
    metrics = Metrics()
    metrics.add(lambda: [Metric("b", "gauge", [({}, 1)])], lambda: [Metric("a", "gauge", [({}, 1)])])
    assert [metric.name for metric in await metrics.collect()][:3] == ["b", "a", "agent_info"]


@pytest.mark.parametrize("text", ["", "x y\n"])
def test_a_system_that_hides_the_process_costs_only_those_figures(tmp_path: Path, text: str) -> None:
    (tmp_path / "statm").write_text(text)
    assert [metric.name for metric in process_metrics(tmp_path)] == ["agent_info", "process_cpu_seconds_total"]


def test_help_is_escaped() -> None:
    assert render([Metric("a", "gauge", (), "two\nlines\\")]) == "# HELP a two\\nlines\\\\\n# TYPE a gauge\n"
