"""What the HTTP API of port 4 is given of this agent."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.api.tailnet import TAILSCALE_PREFIX
from agent.daemon.http_api import HttpApi, helper_ports, net_info, node_rows
from agent.daemon.metrics import Metrics, node_metrics
from agent.tailnet.derp_dial import DialOptions
from agent.tailnet.tailnet import Tailnet
from agent.testing import ManualClock
from agent.testing.streams import stream_pair


def config(**addresses: str) -> Any:
    """The part of a configuration that matters here."""
    names = ("pprof_address", "prometheus_address", "debug_address")
    return SimpleNamespace(log_dir=Path("/nonexistent"), **{name: addresses.get(name, "") for name in names})


@pytest.mark.parametrize(
    ("address", "ports"),
    [
        ("127.0.0.1:6060", {6060}),
        ("http://[::1]:7000/x", {7000}),
        (":2112", {2112}),
        ("localhost", set()),
        ("", set()),
        ("x:99999", set()),
        ("[", set()),
    ],
)
def test_ports_of_helpers(address: str, ports: set[int]) -> None:
    assert helper_ports(config(debug_address=address)) == ports


async def test_a_node_in_words(clock: ManualClock) -> None:
    assert node_rows(None, clock) is None
    assert net_info(None) is None
    assert list(node_metrics(None)) == []
    node = Tailnet([TAILSCALE_PREFIX + bytes(9) + b"\x01"], clock, options=DialOptions(), direct=False)
    rows = dict(node_rows(node, clock) or ())
    assert rows["node key"] == node.node_key.hex()
    assert rows["home relay"] == "none yet"
    assert rows["direct connections"] == "off"
    assert net_info(node) is None
    assert {metric.kind for metric in node_metrics(node)} == {"counter"}
    await node.aclose()


async def test_connections_share_one_api_and_closing_ends_it(clock: ManualClock) -> None:
    api = HttpApi(
        config(), clock, home="/", manifest=lambda: None, node=lambda: None, metrics=Metrics().collect, redact=str
    )
    serving = []
    for _ in range(3):
        near, far = stream_pair()
        serving.append(asyncio.create_task(api.serve(cast(Any, far))))
        await near.write(b"GET /api/v0/listening-ports HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
        assert (await near.read()).startswith(b"HTTP/1.1 200 OK\r\n")
    await asyncio.gather(*serving)
    await api.aclose()
    await api.aclose()
