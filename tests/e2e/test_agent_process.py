"""The agent as a process, against a control plane that does what the test says."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import UUID

import pytest
from google.protobuf.duration_pb2 import Duration

from agent.api.proto import agent_pb2 as pb
from agent.api.versions import ApiVersion
from agent.clock import SystemClock
from agent.control import RefusedError
from agent.daemon.shutdown import ECHO
from agent.testing.control_plane import FakeControlPlane, simple_manifest
from agent.testing.processes import Component

TOKEN = "b7f3c8e2-1111-4222-8333-a5a5a5a5a5a5"


def script(
    number: int, text: str, *, timeout: float = 0, run_on_start: bool = False, run_on_stop: bool = False
) -> pb.WorkspaceAgentScript:
    message = pb.WorkspaceAgentScript(
        id=UUID(int=number).bytes,
        log_source_id=UUID(int=number + 100).bytes,
        script=text,
        run_on_start=run_on_start,
        run_on_stop=run_on_stop,
    )
    if timeout:
        limit = Duration()
        limit.FromNanoseconds(round(timeout * 1e9))
        message.timeout.CopyFrom(limit)
    return message


class World:
    """One agent process, its directories, and its server."""

    def __init__(self, tmp_path: Path, plane: FakeControlPlane, url: str) -> None:
        self.plane = plane
        self.path = tmp_path
        self.home = tmp_path / "home"
        self.home.mkdir()
        environment = {
            **os.environ,
            "HOME": str(self.home),
            "SHELL": "/bin/sh",
            "CODER_AGENT_URL": url,
            "CODER_AGENT_TOKEN": TOKEN,
            "CODER_AGENT_LOG_DIR": str(tmp_path / "log"),
            "CODER_AGENT_SCRIPT_DATA_DIR": str(tmp_path / "data"),
            "CODER_AGENT_STATE_DIR": str(tmp_path / "state"),
            "CODER_AGENT_STATUS_SOCKET": str(tmp_path / "status.sock"),
            # The default addresses are there once on a machine, which may have other agents.
            "CODER_AGENT_PPROF_ADDRESS": "",
            "CODER_AGENT_PROMETHEUS_ADDRESS": "",
            "CODER_AGENT_DEBUG_ADDRESS": "",
        }
        self.agent = Component("agent", ["agent"], directory=tmp_path, environment=environment)

    @property
    def log(self) -> str:
        return (self.path / "log" / "coder-agent.log").read_text()

    async def until(self, condition: Callable[[], bool], seconds: float = 15) -> None:
        try:
            await asyncio.wait_for(self.plane.until(condition), seconds)
        except TimeoutError:
            pytest.fail(f"it did not happen; states {self.plane.states}, lines {self.plane.lines}{self.agent.tail()}")

    async def start(self, *scripts: pb.WorkspaceAgentScript, until: str = "ready") -> None:
        self.plane.manifest = simple_manifest(*scripts)
        await self.agent.start()
        await self.until(lambda: until in self.plane.states)

    async def stopped(self, seconds: float = 15) -> float:
        """Stop it; how long that took."""
        began = time.monotonic()
        assert await self.agent.stop(seconds) == 0
        return time.monotonic() - began


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    plane = FakeControlPlane(SystemClock())
    async with plane.listening() as url:
        world = World(tmp_path, plane, url)
        yield world
        await world.agent.kill()


@pytest.mark.spec("agent-api", 28, 29)
@pytest.mark.spec("daemon", 4, 22)
async def test_a_life_from_start_to_stop(world: World) -> None:
    await world.start(
        script(1, "echo hello; echo oops >&2", run_on_start=True), script(2, "echo bye", run_on_stop=True)
    )
    names = [name for name, _ in world.plane.calls]
    assert names.index("UpdateStartup") < names.index("UpdateLifecycle")
    assert world.plane.received("UpdateStartup")[0].startup.version.startswith("v2.")
    assert world.plane.tokens == [TOKEN]
    await world.stopped()
    assert world.plane.states == ["starting", "ready", "shutting_down", "off"]
    assert sorted(world.plane.lines) == ["bye", "hello", "oops"]
    assert os.stat(world.path / "log" / "coder-agent.log").st_mode & 0o777 == 0o600
    for text in (TOKEN, "echo hello"):
        assert text not in world.log
        assert text not in world.agent.printed()


@pytest.mark.spec("daemon", 22)
@pytest.mark.parametrize(
    ("scripts", "states"),
    [
        ([], ["starting", "ready"]),
        ([script(1, "false", run_on_start=True)], ["starting", "start_error"]),
        ([script(1, "sleep 3", run_on_start=True, timeout=0.001)], ["starting", "start_timeout"]),
    ],
    ids=["no scripts", "false", "too slow"],
)
async def test_start_states(world: World, scripts: list[pb.WorkspaceAgentScript], states: list[str]) -> None:
    await world.start(*scripts, until=states[-1])
    assert world.plane.states == states


@pytest.mark.spec("daemon", 22)
@pytest.mark.parametrize(
    ("stop", "state"),
    [
        (script(2, "exit 3", run_on_stop=True), "shutdown_error"),
        (script(2, "sleep 30", run_on_stop=True, timeout=0.1), "shutdown_timeout"),
        (script(2, "true", run_on_stop=True), "off"),
    ],
    ids=["fails", "too slow", "good"],
)
async def test_stop_states(world: World, stop: pb.WorkspaceAgentScript, state: str) -> None:
    await world.start(stop)
    await world.stopped()
    assert world.plane.states == ["starting", "ready", "shutting_down", state]


@pytest.mark.spec("daemon", 7)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_stop_signals_end_it_with_0(world: World, number: signal.Signals) -> None:
    await world.start()
    world.agent.send_signal(number)
    assert await asyncio.wait_for(world.agent.wait(), 10) == 0
    assert world.plane.states[-1] == "off"


@pytest.mark.spec("daemon", 7)
async def test_a_stop_while_the_header_command_runs(world: World) -> None:
    world.agent.arguments = ["agent", f"--agent-header-command=echo $$ > {world.home}/pid; sleep 1000"]
    await world.agent.start()
    pid = world.home / "pid"
    async with asyncio.timeout(10):
        while not (pid.exists() and pid.read_text().strip()):
            await asyncio.sleep(0.02)
    await world.stopped(5)
    async with asyncio.timeout(5):
        while Path(f"/proc/{pid.read_text().strip()}").exists():
            await asyncio.sleep(0.02)


@pytest.mark.spec("daemon", 7)
async def test_dumps(world: World) -> None:
    pattern = re.compile(r"coder-agent-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z\.dump")
    await world.start(script(2, "touch stopped", run_on_stop=True))
    world.agent.send_signal(signal.SIGTRAP)
    await world.agent.wait_for_output("Task.*connector|connector", 10)
    dumps = os.listdir(world.home)
    assert len(dumps) == 1
    assert pattern.fullmatch(dumps[0])
    text = (world.home / dumps[0]).read_text()
    assert "thread MainThread" in text
    assert "routine lifecycle" in text
    assert world.agent.running
    await asyncio.sleep(0.01)  # the name has milliseconds
    world.agent.send_signal(signal.SIGQUIT)
    assert await asyncio.wait_for(world.agent.wait(), 10) == 1
    assert len([name for name in os.listdir(world.home) if pattern.fullmatch(name)]) == 2
    assert not (world.home / "stopped").exists(), "no shutdown happens"
    assert world.plane.states == ["starting", "ready"]


@pytest.mark.spec("daemon", 11)
async def test_refusals_of_all_kinds_are_outlived(world: World) -> None:
    statuses = [400, 401, 403, 404, 426, 500, 502]
    world.plane.refusals.extend(RefusedError("", status, f"no, {status}") for status in statuses)
    await world.start()
    assert len(world.plane.attempts) == len(statuses) + 1
    for status in statuses:
        assert f"{status} no, {status}" in world.log


@pytest.mark.spec("daemon", 12)
@pytest.mark.spec("agent-api", 26)
async def test_an_old_server(world: World) -> None:
    world.plane.version = ApiVersion(2, 2)
    await world.start(script(1, "echo hi", run_on_start=True))
    await world.until(lambda: "hi" in world.plane.lines)
    called = {name for name, _ in world.plane.calls}
    assert not called & {"ScriptCompleted", "GetResourcesMonitoringConfiguration", "ReportConnection"}
    assert await world.stopped() < 4, "timings that nobody takes must not hold up the exit"
    assert world.plane.states[-1] == "off"


@pytest.mark.spec("daemon", 13, 23)
async def test_five_lost_connections(world: World) -> None:
    await world.start(script(1, "echo once", run_on_start=True))
    for lost in range(1, 6):
        await world.plane.drop()
        await world.until(lambda lost=lost: len(world.plane.received("UpdateStartup")) == lost + 1)  # type: ignore[misc]
    assert len(world.plane.attempts) == 6
    await world.stopped()
    assert world.plane.states == ["starting", "ready", "shutting_down", "off"]
    assert world.plane.lines == ["once"]


@pytest.mark.spec("daemon", 16, 17, 18)
async def test_what_commands_see(world: World) -> None:
    await world.agent.kill()
    manifest = simple_manifest(script(1, "pwd; env", run_on_start=True))
    manifest.directory = "~/missing"
    manifest.environment_variables["FROM_MANIFEST"] = "$HOME/x"
    manifest.environment_variables["GIT_SSH_COMMAND"] = "mine"
    manifest.secrets.add(env_name="FROM_SECRET", value=b"$HOME")
    world.plane.manifest = manifest
    await world.agent.start()
    await world.until(lambda: "ready" in world.plane.states)
    seen = dict(line.split("=", 1) for line in world.plane.lines if "=" in line)
    assert world.plane.lines[0] == str(world.home), "a missing directory means home"
    assert not (world.home / "missing").exists()
    assert world.plane.received("UpdateStartup")[0].startup.expanded_directory == f"{world.home}/missing"
    assert seen["PATH"].startswith(f"{world.path}/data/coder-script-data/bin:")
    assert seen["CODER"] == "true"
    assert (seen["CODER_WORKSPACE_NAME"], seen["CODER_WORKSPACE_AGENT_NAME"]) == ("dev", "main")
    assert seen["CODER_WORKSPACE_OWNER_NAME"] == "alice"
    assert seen["FROM_MANIFEST"] == f"{world.home}/x"
    assert seen["GIT_SSH_COMMAND"] == "mine"
    assert (seen["SSH_CLIENT"], seen["SSH_CONNECTION"]) == ("0.0.0.0 0 0", "0.0.0.0 0 0.0.0.0 0")
    assert "VSCODE_PROXY_URI" not in seen
    assert TOKEN not in str(world.plane.lines), "secret values are redacted on their way to the server"


@pytest.mark.spec("daemon", 24)
async def test_started_without_a_server(world: World) -> None:
    """The server is there, but takes no states: they arrive later, in order, with their own times."""
    world.plane.hanging.add("UpdateLifecycle")
    world.plane.manifest = simple_manifest(script(1, "sleep 0.3", run_on_start=True))
    await world.agent.start()
    await world.agent.wait_for_output("state=ready", 15)
    await world.plane.drop()
    world.plane.hanging.clear()
    await world.until(lambda: world.plane.states[-1:] == ["ready"])
    told = world.plane.received("UpdateLifecycle")[-2:]
    assert [pb.Lifecycle.State.Name(request.lifecycle.state) for request in told] == ["STARTING", "READY"]
    began, ended = (request.lifecycle.changed_at.ToNanoseconds() / 1e9 for request in told)
    assert 0.3 <= ended - began < 5


@pytest.mark.spec("daemon", 25)
async def test_all_lines_of_a_stop_script_arrive(world: World) -> None:
    await world.start(script(2, "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done", run_on_stop=True))
    await world.stopped(30)
    assert world.plane.lines == [f"line {number}" for number in range(1, 3001)]
    assert world.plane.states[-1] == "off"


@pytest.mark.spec("daemon", 26)
async def test_stopping_without_a_server_takes_five_seconds(world: World) -> None:
    await world.start()
    world.plane.refusals.extend(RefusedError("", 503, "away") for _ in range(1000))
    await world.plane.drop()
    assert 4.5 < await world.stopped() < 8
    assert "not delivered to the server  left=lifecycle" in world.log


@pytest.mark.spec("daemon", 27)
async def test_a_stop_during_the_start_script(world: World) -> None:
    text = "trap 'echo interrupted; exit 1' HUP; echo running; while :; do sleep 0.05; done"
    await world.start(script(1, text, run_on_start=True), until="starting")
    await world.until(lambda: "running" in world.plane.lines)
    await world.stopped()
    assert world.plane.states == ["starting", "shutting_down", "off"]
    assert (world.plane.lines[0], world.plane.lines[-1]) == ("running", "interrupted")


async def test_a_second_signal_ends_a_stop_script_that_never_would(world: World) -> None:
    await world.start(script(2, "echo $$; trap '' HUP; sleep 1000", run_on_stop=True))
    world.agent.send_signal(signal.SIGTERM)
    await world.until(lambda: bool(world.plane.lines))
    await asyncio.sleep(ECHO)
    world.agent.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert await asyncio.wait_for(world.agent.wait(), 10) == 0
    assert time.monotonic() - began < 4
    async with asyncio.timeout(5):
        while Path(f"/proc/{world.plane.lines[0]}").exists():  # killed, but not reaped yet
            await asyncio.sleep(0.02)


async def test_killed_during_the_start_script_and_started_again(world: World) -> None:
    text = "echo run >> ~/runs; for i in 1 2 3 4 5 6 7 8 9 10; do echo line $i; sleep 0.2; done"
    await world.start(script(1, text, run_on_start=True), until="starting")
    await world.until(lambda: "line 3" in world.plane.lines)
    await world.agent.kill()
    await asyncio.sleep(0.5)
    await world.agent.start()
    await world.until(lambda: "ready" in world.plane.states)
    assert (world.home / "runs").read_text() == "run\n"
    assert list(dict.fromkeys(world.plane.lines)) == [f"line {number}" for number in range(1, 11)]
    assert list(dict.fromkeys(world.plane.states)) == ["starting", "ready"]
    reports = world.plane.received("UpdateLifecycle")
    assert len({request.lifecycle.changed_at.ToMicroseconds() for request in reports}) == 2, (
        "times are the original ones"
    )
    began, ended = reports[0].lifecycle.changed_at, reports[-1].lifecycle.changed_at
    assert ended.ToMilliseconds() - began.ToMilliseconds() >= 1900
    timing = world.plane.received("ScriptCompleted")[0].timing
    assert (timing.exit_code, timing.status) == (0, pb.Timing.OK)
    await world.agent.kill()
    await world.agent.start()
    await world.until(lambda: len(world.plane.received("UpdateStartup")) == 3)
    await world.stopped()
    # Each process says once more where it is.
    assert list(dict.fromkeys(world.plane.states)) == ["starting", "ready", "shutting_down", "off"]
    assert (world.home / "runs").read_text() == "run\n"


async def test_stopped_before_the_manifest_and_started_again(world: World) -> None:
    await world.start()
    await world.agent.kill()
    world.plane.hanging.add("GetManifest")
    await world.agent.start()
    await world.until(lambda: len(world.plane.received("GetManifest")) == 2)
    await world.stopped()
    assert world.plane.states[-2:] == ["shutting_down", "shutdown_error"]
    world.plane.hanging.clear()
    await world.agent.start()
    await world.until(lambda: world.plane.states[-1] == "ready")


async def test_an_unusable_state_directory_costs_one_warning(world: World) -> None:
    (world.path / "state").write_text("in the way")
    await world.start(script(1, "echo hello", run_on_start=True))
    await world.until(lambda: "hello" in world.plane.lines)
    await world.stopped()
    assert world.plane.states == ["starting", "ready", "shutting_down", "off"]
    warnings = [line for line in world.log.splitlines() if "[warning]" in line]
    assert len(warnings) == 1, warnings
    assert "--state-dir" in warnings[0]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CODER_AGENT_TOKEN": "", "CODER_AGENT_TOKEN_FILE": "/missing/token"}, '"/missing/token"'),
        ({"CODER_AGENT_LOGGING_JSON": "/missing/log"}, 'open log sink "/missing/log"'),
        ({"CODER_AGENT_HEADER_COMMAND": "echo nonsense"}, "CODER_AGENT_HEADER_COMMAND"),
        ({"CODER_AGENT_AUTH": "magic"}, "CODER_AGENT_AUTH"),
    ],
)
async def test_what_keeps_it_from_starting(world: World, variables: dict[str, str], message: str) -> None:
    world.agent = Component(
        "refusing",
        ["agent"],
        directory=world.path,
        environment={
            **os.environ,
            "CODER_AGENT_URL": "http://127.0.0.1:9",
            "CODER_AGENT_TOKEN": TOKEN,
            "CODER_AGENT_LOG_DIR": str(world.path / "log"),
            "CODER_AGENT_STATE_DIR": str(world.path / "state"),
            **variables,
        },
    )
    await world.agent.start()
    assert await asyncio.wait_for(world.agent.wait(), 15) == 1
    errors = [line for line in world.agent.printed().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
