"""What the local servers show and do, without any server."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from agent.api.manifest import Manifest
from agent.api.proto import agent_pb2 as pb
from agent.api.versions import CURRENT
from agent.daemon.config import AgentConfig, parse_config
from agent.daemon.lifecycle import State
from agent.daemon.logfile import LogOutput, Record, human
from agent.daemon.operations import LogLevel, Shutdown, Status, socket_path
from agent.daemon.shutdown import StopRequest
from agent.daemon.traffic import Traffic
from agent.daemon.visitors import SshVisitors, TerminalVisitors
from agent.metrics import Metric
from agent.monitor import ConnectionReporter
from agent.ops import Drained
from agent.ssh.counters import Kind
from agent.terminal.counters import Ending
from agent.testing import ManualClock, settle
from tests.monitor.fakes import FakeApi

TOKEN = "b7f3c8e2-1111-4222-8333-a5a5a5a5a5a5"
ONE = UUID(int=1)


def config() -> AgentConfig:
    environment = {"CODER_AGENT_URL": "https://coder.example.com", "CODER_AGENT_TOKEN": TOKEN, "HOME": "/h"}
    return parse_config({}, environment)


async def reported(reporter: ConnectionReporter) -> list[pb.Connection]:
    api = FakeApi()
    task = asyncio.create_task(reporter.run(api))
    await reporter.sent()
    task.cancel()
    return [request.connection for request in api.requests]


@pytest.mark.spec("agent-api", 37)
async def test_terminals_are_reported_with_the_peers_address(clock: ManualClock) -> None:
    reporter = ConnectionReporter(clock)
    visitors = TerminalVisitors(reporter)
    visitors.connected(ONE, bytes.fromhex("fd7a115ca1e0" + "0" * 19 + "1"))
    visitors.disconnected(ONE, Ending.NETWORK_ERROR)
    visitors.disconnected(UUID(int=2), Ending.GRACEFUL)  # nobody knows of it
    begun, ended = await reported(reporter)
    assert begun.type == ended.type == pb.Connection.RECONNECTING_PTY
    assert begun.ip == ended.ip == "fd7a:115c:a1e0::1"
    assert (ended.status_code, ended.reason) == (1, "network_error")


@pytest.mark.spec("agent-api", 37)
@pytest.mark.parametrize(
    ("kind", "wire"),
    [
        (Kind.SSH, pb.Connection.SSH),
        (Kind.UNKNOWN, pb.Connection.SSH),
        (Kind.VSCODE, pb.Connection.VSCODE),
        (Kind.JETBRAINS, pb.Connection.JETBRAINS),
    ],
)
async def test_sessions_are_reported_by_kind(clock: ManualClock, kind: Kind, wire: int) -> None:
    reporter = ConnectionReporter(clock)
    visitors = SshVisitors(reporter)
    visitors.connected(ONE, kind, "fd00::1")
    visitors.disconnected(ONE, 3, "process exited with error status: 3")
    begun, ended = await reported(reporter)
    assert begun.type == ended.type == wire
    assert (ended.status_code, ended.reason) == (3, "process exited with error status: 3")


async def test_statistics_carry_what_is_counted() -> None:
    def metrics() -> list[Metric]:
        return [Metric("a_total", "counter", [({"x": "y"}, 2.0), ({}, 3.0)]), Metric("b", "gauge", [({}, 0.5)])]

    stats = await Traffic(lambda: None, metrics=metrics).collect()
    assert [(metric.name, metric.type, metric.value) for metric in stats.metrics] == [
        ("a_total", pb.Stats.Metric.COUNTER, 2.0),
        ("a_total", pb.Stats.Metric.COUNTER, 3.0),
        ("b", pb.Stats.Metric.GAUGE, 0.5),
    ]
    assert [(label.name, label.value) for label in stats.metrics[0].labels] == [("x", "y")]


async def test_a_drain_is_a_stop_and_everybody_who_asked_hears_of_its_end(clock: ManualClock) -> None:
    request = StopRequest(clock)
    shutdown = Shutdown(request)
    asking = [asyncio.create_task(shutdown.drain()) for _ in range(2)]
    gone = asyncio.create_task(shutdown.drain())
    await settle()
    assert request.stopping.is_set()
    assert not request.skip.is_set()
    gone.cancel()  # he went away; the others still wait
    shutdown.ended(["delivery"], {"log_lines": 3, "script_timings": 0})
    shutdown.ended([], {})
    assert [await task for task in asking] == [Drained(("delivery",), {"log_lines": 3})] * 2


class Stream:
    """A sink whose level may be changed, or not."""

    def __init__(self, level: int, adjustable: bool) -> None:
        self.level = level
        self.adjustable = adjustable
        self.written: list[bytes] = []

    def render(self, record: Record) -> str:
        return human(record)

    def write(self, text: bytes) -> None:
        self.written.append(text)

    def close(self) -> None: ...


def test_a_level_is_for_streams_and_the_file_keeps_everything() -> None:
    file, stream = Stream(logging.DEBUG, False), Stream(logging.INFO, True)
    output = LogOutput([file, stream])
    output.start()
    level = LogLevel(output)
    said = []
    for change in (None, level.toggle, lambda: level.set("error"), lambda: level.set("info")):
        if change is not None:
            change()
        said.append((level.name, stream.level, file.level, logging.getLogger("agent").level))
    assert said == [
        ("info", logging.INFO, logging.DEBUG, logging.NOTSET),
        ("debug", logging.DEBUG, logging.DEBUG, logging.DEBUG),
        ("error", logging.ERROR, logging.DEBUG, logging.NOTSET),
        ("info", logging.INFO, logging.DEBUG, logging.NOTSET),
    ]
    output.put(Record(0, logging.DEBUG, "agent", "a detail", ()))
    output.close()
    assert len(file.written) == 1
    assert not stream.written


@pytest.mark.parametrize(
    ("state", "api", "trouble", "reason"),
    [
        (State.READY, CURRENT, "", ""),
        (State.START_ERROR, CURRENT, "", ""),
        (State.STARTING, CURRENT, "", "the start scripts have not ended"),
        (State.READY, None, "the server is away", "not connected: the server is away"),
        (State.SHUTTING_DOWN, CURRENT, "", "the agent is shutting down"),
    ],
)
def test_ready_means_that_people_can_work(
    clock: ManualClock, state: State, api: object, trouble: str, reason: str
) -> None:
    output = LogOutput([])
    connector = SimpleNamespace(api=api, trouble=trouble, attempts=2)
    manifest: Manifest | None = None
    status = Status(
        config(),
        clock,
        cast(Any, SimpleNamespace(state=state)),
        cast(Any, connector),
        lambda: manifest,
        LogLevel(output),
    )
    assert status.not_ready() == reason
    shown = status.to_json()
    assert shown["ready"] is (not reason)
    assert shown["lifecycle"] == state.name.lower()
    assert TOKEN not in str(shown)


def test_where_the_socket_is() -> None:
    state = config().state_dir
    assert socket_path("", state) == state / "status.sock"
    assert str(socket_path("/run/a.sock", state)) == "/run/a.sock"
    assert socket_path("none", state) is None
