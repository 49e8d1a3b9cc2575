"""What the first manifest begins, what later ones change, and what a killed agent's successor does not repeat."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from agent.api.manifest import Manifest
from agent.api.methods import AgentApi
from agent.api.proto import agent_pb2 as pb
from agent.daemon.connection import InShutdown, OnFailure, Routine
from agent.daemon.environment import CommandEnvironment
from agent.daemon.journal import Journal
from agent.daemon.lifecycle import State
from agent.daemon.manifest import ManifestRoutine
from agent.daemon.reconnect import Connector
from agent.daemon.reports import LifecycleReporter
from agent.daemon.workspace import Workspace
from agent.scripts import PhaseResult
from agent.testing import ManualClock
from agent.testing.control_plane import FakeControlPlane, simple_manifest

SCRIPT = UUID(int=1)


class FakeLogs:
    def __init__(self) -> None:
        self.opened = False
        self.closed = False
        self.secrets: set[str] = set()

    def open(self) -> None:
        self.opened = True

    def redact(self, values: Iterable[str]) -> None:
        self.secrets |= set(values)

    async def send(self, api: AgentApi) -> None:
        await asyncio.Event().wait()

    async def drained(self) -> None:
        return

    async def aclose(self) -> None:
        self.closed = True


class FakeScripts:
    """Start scripts end when `release` is called."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.already_done: Mapping[UUID, PhaseResult] | None = None
        self.start_result: asyncio.Future[PhaseResult] = asyncio.get_running_loop().create_future()
        self.stop_result = PhaseResult.OK
        self.fails_to_prepare = False

    async def prepare(self) -> None:
        self.events.append("prepare")
        if self.fails_to_prepare:
            raise OSError("no room")

    async def adopt(self) -> object:
        self.events.append("adopt")
        return []

    async def run_start(self, already_done: Mapping[UUID, PhaseResult] = MappingProxyType({})) -> PhaseResult:
        self.events.append("start")
        self.already_done = already_done
        return await self.start_result

    async def run_stop(self) -> PhaseResult:
        self.events.append("stop")
        return self.stop_result

    def start_cron(self) -> None:
        self.events.append("cron")

    async def interrupt_start(self) -> None:
        self.events.append("interrupt")
        if not self.start_result.done():
            self.start_result.set_result(PhaseResult.ERROR)

    async def aclose(self) -> None:
        self.events.append("close")


class Agent:
    """One process of the agent, with scripts and logs that are only played."""

    def __init__(self, tmp_path: Path, server: FakeControlPlane, clock: ManualClock) -> None:
        self.server = server
        self.journal = Journal()
        self.lifecycle = LifecycleReporter(self.journal, clock, lambda: self.workspace.logs_drained())
        self.process = {"HOME": str(tmp_path), "PATH": "/bin", "DEPLOY_TOKEN": "swordfish-1234"}
        self.context = CommandEnvironment(
            process=self.process, executable="/agent", bin_dir=tmp_path / "bin", token=lambda: "agent-token-1234"
        )
        self.scripts = FakeScripts()
        self.logs = FakeLogs()
        self.made_with: list[tuple[Manifest, Path | None, str]] = []
        self.workspace = Workspace(
            state_root=tmp_path / "state",
            journal=self.journal,
            lifecycle=self.lifecycle,
            context=self.context,
            make_logs=lambda path: self.logs,
            make_scripts=self._make_scripts,
            secret_values=lambda environment: {v for k, v in environment.items() if k.endswith("_TOKEN")},
            home=str(tmp_path),
            clock=clock,
        )
        manifest = ManifestRoutine(
            version="v2.33.0", subsystems=["envbox", "exectrace"], process=self.process, publish=self.workspace.publish
        )
        self.stopping = asyncio.Event()
        routines = [
            Routine("manifest", manifest.run, on_failure=OnFailure.RECONNECT),
            Routine("lifecycle", self.lifecycle.run, in_shutdown=InShutdown.STAY),
        ]
        self.connecting = asyncio.create_task(Connector(server, routines, self.stopping, clock).run())

    def _make_scripts(self, manifest: Manifest, path: Path | None, logs: FakeLogs) -> FakeScripts:
        self.made_with.append((manifest, path, self.journal.state.life))
        return self.scripts

    async def until_states(self, *states: str) -> None:
        await asyncio.wait_for(self.server.until(lambda: self.server.states[-len(states) :] == list(states)), 10)

    async def kill(self) -> None:
        """As SIGKILL would: nothing is said or tidied, only the lock goes with the process."""
        await self.journal.flush()
        self.connecting.cancel()
        for task in self.workspace._tasks:
            task.cancel()
        await asyncio.gather(self.connecting, *self.workspace._tasks, return_exceptions=True)
        while self.workspace._directories:
            self.workspace._directories.pop().close()

    async def aclose(self) -> None:
        self.connecting.cancel()
        await asyncio.wait({self.connecting})
        await self.workspace.aclose()


@pytest.fixture
async def server(clock: ManualClock) -> AsyncIterator[FakeControlPlane]:
    server = FakeControlPlane(clock, simple_manifest(pb.WorkspaceAgentScript(log_source_id=bytes(16), script="x")))
    yield server
    await server.aclose()


Start = Callable[[], Agent]


@pytest.fixture
async def start(tmp_path: Path, server: FakeControlPlane, clock: ManualClock) -> AsyncIterator[Start]:
    agents: list[Agent] = []

    def start() -> Agent:
        agents.append(Agent(tmp_path, server, clock))
        return agents[-1]

    yield start
    for agent in agents:
        await agent.aclose()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.spec("agent-api", 28)
@pytest.mark.parametrize(
    ("result", "state"),
    [(PhaseResult.OK, "ready"), (PhaseResult.TIMEOUT, "start_timeout"), (PhaseResult.ERROR, "start_error")],
)
async def test_the_start_phase(start: Start, server: FakeControlPlane, result: PhaseResult, state: str) -> None:
    agent = start()
    await agent.until_states("starting")
    await eventually(lambda: "start" in agent.scripts.events)
    names = [name for name, _ in server.calls]
    assert names[:2] == ["GetManifest", "UpdateStartup"]
    agent.scripts.start_result.set_result(result)
    await agent.until_states("starting", state)
    await eventually(lambda: "cron" in agent.scripts.events)
    assert agent.scripts.events == ["prepare", "adopt", "start", "cron"]
    startup = server.received("UpdateStartup")[0].startup
    assert startup.version == "v2.33.0"
    assert list(startup.subsystems) == [pb.Startup.ENVBOX, pb.Startup.EXECTRACE]


@pytest.mark.spec("daemon", 36)
async def test_no_cron_before_the_start_phase_has_ended(start: Start, clock: ManualClock) -> None:
    agent = start()
    await eventually(lambda: "start" in agent.scripts.events)
    await clock.advance(3600)
    assert "cron" not in agent.scripts.events


@pytest.mark.spec("daemon", 16)
@pytest.mark.parametrize(
    ("directory", "expanded"),
    [
        ("", ""),
        ("~", "{home}"),
        ("~/x/../y", "{home}/y"),
        ("~bob/x", "{home}/bob/x"),
        ("$HOME/x", "{home}/x"),
        ("proj", "{home}/proj"),
        ("/a/../b", "/a/../b"),
        ("${NOPE}/x", "/x"),
    ],
)
async def test_the_directory_is_told_expanded(
    start: Start, server: FakeControlPlane, tmp_path: Path, directory: str, expanded: str
) -> None:
    server.manifest.directory = directory
    agent = start()
    await agent.until_states("starting")
    startup = server.received("UpdateStartup")[0].startup
    assert startup.expanded_directory == expanded.format(home=tmp_path)


@pytest.mark.spec("agent-api", 30)
@pytest.mark.parametrize(
    "broken",
    [
        pb.Manifest(apps=[pb.WorkspaceApp(id=bytes(16), health=pb.WorkspaceApp.DISABLED)]),
        pb.Manifest(
            apps=[pb.WorkspaceApp(id=bytes(15), sharing_level=pb.WorkspaceApp.OWNER, health=pb.WorkspaceApp.DISABLED)]
        ),
        pb.Manifest(agent_id=bytes(16)),
    ],
    ids=["sharing level 0", "app id of 15 bytes", "nil agent id"],
)
async def test_a_malformed_manifest_is_fetched_again_and_runs_nothing(
    start: Start, server: FakeControlPlane, clock: ManualClock, broken: pb.Manifest
) -> None:
    good = pb.Manifest.FromString(server.manifest.SerializeToString())
    server.manifest.MergeFrom(broken)
    agent = start()
    for _ in range(3):
        await clock.advance(1)
    assert server.connections > 1
    assert agent.made_with == []
    assert [name for name, _ in server.calls if name != "GetManifest"] == []
    server.manifest = good
    await clock.advance(10)
    await agent.until_states("starting")


@pytest.mark.spec("daemon", 20)
@pytest.mark.spec("agent-api", 28)
async def test_a_later_manifest_changes_data_and_runs_no_script(
    start: Start, server: FakeControlPlane, clock: ManualClock
) -> None:
    agent = start()
    agent.scripts.start_result.set_result(PhaseResult.OK)
    await agent.until_states("starting", "ready")
    server.manifest.environment_variables["NEW"] = "1"
    server.manifest.metadata.add(key="k", script="true")
    del server.manifest.scripts[:]
    await server.drop()
    await clock.advance(2)
    await eventually(lambda: len(server.received("UpdateStartup")) == 2)
    await eventually(lambda: len(agent.workspace.manifest.metadata) == 1)
    assert agent.context.environment()["NEW"] == "1"
    assert agent.scripts.events == ["prepare", "adopt", "start", "cron"]
    assert server.states == ["starting", "ready"]


async def test_a_lost_connection_does_not_undo_the_beginning(
    start: Start, server: FakeControlPlane, clock: ManualClock
) -> None:
    agent = start()
    await server.until(lambda: "UpdateStartup" in [name for name, _ in server.calls])
    await eventually(lambda: agent.workspace._manifest is not None)  # taken in, but nothing has begun yet
    await server.cut()
    await eventually(lambda: "start" in agent.scripts.events)
    agent.scripts.start_result.set_result(PhaseResult.OK)
    await clock.advance(5)
    await agent.until_states("starting", "ready")
    assert agent.scripts.events.count("start") == 1


async def test_a_killed_agent_goes_on_and_runs_no_script_twice(
    start: Start, server: FakeControlPlane, clock: ManualClock
) -> None:
    first = start()
    await first.until_states("starting")
    await eventually(lambda: "start" in first.scripts.events)
    first.workspace.script_ended(SCRIPT, pb.Timing.START, PhaseResult.TIMEOUT)
    first.workspace.script_ended(UUID(int=2), pb.Timing.CRON, PhaseResult.OK)
    await eventually(lambda: not first.journal.state.lifecycle.pending)
    await first.kill()
    await clock.advance(100)

    second = start()
    await eventually(lambda: "start" in second.scripts.events)
    assert second.scripts.already_done == {SCRIPT: PhaseResult.TIMEOUT}
    assert second.made_with[0][2] == first.made_with[0][2], "it is the same life"
    second.scripts.start_result.set_result(PhaseResult.TIMEOUT)
    await second.until_states("starting", "start_timeout")
    await second.kill()

    third = start()
    await eventually(lambda: "cron" in third.scripts.events)
    assert third.scripts.events == ["prepare", "adopt", "cron"]
    assert list(dict.fromkeys(server.states)) == ["starting", "start_timeout"]


async def test_ready_that_was_never_told_is_told_with_its_original_time(
    start: Start, server: FakeControlPlane, clock: ManualClock
) -> None:
    first = start()
    await first.until_states("starting")
    await eventually(lambda: not first.journal.state.lifecycle.pending)
    server.hanging.add("UpdateLifecycle")
    first.scripts.start_result.set_result(PhaseResult.OK)
    await eventually(lambda: first.lifecycle.state is State.READY)
    entered = first.journal.state.lifecycle.pending[0].changed_at
    await first.kill()
    server.hanging.clear()
    clock.set_wall(1_000_000_000)  # set back, and far
    second = start()
    await eventually(lambda: "cron" in second.scripts.events)
    await eventually(lambda: not second.journal.state.lifecycle.pending)
    assert server.received("UpdateLifecycle")[-1].lifecycle.changed_at.ToMicroseconds() == entered


async def test_after_a_shutdown_everything_begins_anew(start: Start, server: FakeControlPlane) -> None:
    first = start()
    first.scripts.start_result.set_result(PhaseResult.OK)
    await first.until_states("ready")
    first.lifecycle.enter(State.SHUTTING_DOWN)
    await first.workspace.run_stop()
    await first.until_states("shutting_down", "off")
    await first.aclose()
    second = start()
    await second.until_states("starting")
    await eventually(lambda: "start" in second.scripts.events)
    assert second.scripts.already_done == {}
    assert second.made_with[0][2] != first.made_with[0][2]


@pytest.mark.spec("daemon", 23)
async def test_another_agent_id_is_told_the_current_state(
    start: Start, server: FakeControlPlane, clock: ManualClock, tmp_path: Path
) -> None:
    agent = start()
    agent.scripts.start_result.set_result(PhaseResult.OK)
    await agent.until_states("starting", "ready")
    server.manifest.agent_id = UUID(int=99).bytes
    await server.drop()
    await clock.advance(2)
    await agent.until_states("starting", "ready", "starting", "ready")
    assert agent.scripts.events.count("start") == 1
    assert (tmp_path / "state" / str(UUID(int=99)) / "journal").exists()
    await agent.kill()
    successor = start()
    await eventually(lambda: "cron" in successor.scripts.events)
    assert "start" not in successor.scripts.events


@pytest.mark.spec("daemon", 22)
@pytest.mark.parametrize(
    ("result", "state"),
    [(PhaseResult.OK, "off"), (PhaseResult.TIMEOUT, "shutdown_timeout"), (PhaseResult.ERROR, "shutdown_error")],
)
async def test_final_states(start: Start, result: PhaseResult, state: str) -> None:
    agent = start()
    agent.scripts.start_result.set_result(PhaseResult.OK)
    await agent.until_states("ready")
    agent.scripts.stop_result = result
    agent.lifecycle.enter(State.SHUTTING_DOWN)
    await agent.workspace.run_stop()
    await agent.until_states("ready", "shutting_down", state)


@pytest.mark.spec("daemon", 27)
async def test_a_stop_during_the_start_phase(start: Start, server: FakeControlPlane) -> None:
    agent = start()
    await eventually(lambda: "start" in agent.scripts.events)
    await agent.workspace.refuse_manifests()
    agent.lifecycle.enter(State.SHUTTING_DOWN)
    await agent.workspace.interrupt_start()
    await agent.workspace.run_stop()
    await agent.until_states("starting", "shutting_down", "off")
    assert agent.scripts.events == ["prepare", "adopt", "start", "interrupt", "stop"]


async def test_a_stop_while_the_manifest_is_taken_in(start: Start, server: FakeControlPlane) -> None:
    agent = start()
    await eventually(lambda: agent.workspace._manifest is not None)  # and nothing has begun yet
    agent.stopping.set()
    await agent.workspace.refuse_manifests()
    agent.lifecycle.enter(State.SHUTTING_DOWN)
    await agent.workspace.run_stop()
    await agent.until_states("starting", "shutting_down", "off")
    assert "start" not in agent.scripts.events


async def test_a_stop_before_any_manifest_is_an_error_and_no_hang(start: Start, server: FakeControlPlane) -> None:
    server.hanging.add("GetManifest")
    agent = start()
    agent.lifecycle.enter(State.SHUTTING_DOWN)
    with capture_logs() as logs:
        await agent.workspace.run_stop()
    assert agent.lifecycle.state is State.SHUTDOWN_ERROR
    assert "no stop script was run" in logs[0]["event"]


async def test_a_start_that_fails_altogether_is_a_start_error(start: Start) -> None:
    with capture_logs() as logs:
        agent = start()
        agent.scripts.fails_to_prepare = True
        await agent.until_states("starting", "start_error")
    assert "the start phase failed" in [entry["event"] for entry in logs]
    await eventually(lambda: "cron" in agent.scripts.events)


async def test_a_beginning_that_fails_half_way_is_made_again(
    start: Start, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with capture_logs() as logs:
        agent = start()
        failures = [RuntimeError("out of something")]

        def fails_once(manifest: Manifest, path: Path | None, made: FakeLogs) -> FakeScripts:
            if failures:
                raise failures.pop()
            return agent._make_scripts(manifest, path, made)

        monkeypatch.setattr(agent.workspace, "_make_scripts", fails_once)
        await eventually(lambda: not failures)
        await eventually(lambda: agent.server.connected == 0)
        await clock.advance(5)
        agent.scripts.start_result.set_result(PhaseResult.OK)
        await agent.until_states("starting", "ready")
    assert agent.made_with[0][1] is not None, "the state directory is still the same one"
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == [
        "disconnected: manifest: out of something"
    ]


async def test_a_second_agent_of_the_same_id_works_from_memory(start: Start) -> None:
    first = start()
    await first.until_states("starting")
    with capture_logs() as logs:
        second = start()
        await eventually(lambda: bool(second.made_with))
    assert second.made_with[0][1] is None
    warnings = [entry for entry in logs if entry["log_level"] == "warning"]
    assert len(warnings) == 1
    assert "another agent process is using it" in str(warnings[0]["error"])


@pytest.mark.spec("daemon", 19)
async def test_secrets_are_redacted_and_neither_values_nor_scripts_are_logged(
    start: Start, server: FakeControlPlane, tmp_path: Path
) -> None:
    server.manifest.secrets.add(env_name="S", file_path="~/s", value=b"open-sesame-now")
    server.manifest.environment_variables["PRIVATE"] = "some-private-value"
    server.manifest.scripts[0].script = "echo what-the-script-says"
    with capture_logs() as logs:
        agent = start()
        await agent.until_states("starting")
        await eventually(lambda: "open-sesame-now" in agent.logs.secrets)
    assert agent.logs.secrets == {"open-sesame-now", "swordfish-1234", "agent-token-1234"}
    assert (tmp_path / "s").read_bytes() == b"open-sesame-now"
    for value in ("open-sesame-now", "some-private-value", "what-the-script-says"):
        assert value not in str(logs)


async def test_closing_leaves_no_task_behind(start: Start) -> None:
    before = asyncio.all_tasks()
    agent = start()
    await agent.until_states("starting")
    await agent.aclose()
    await agent.server.aclose()
    await eventually(lambda: asyncio.all_tasks() == before)
    assert agent.logs.closed
