"""The agent's composition root: makes the parts, joins them, and runs them until a signal (daemon.md §1.3)."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import NoReturn
from uuid import UUID

from yarl import URL

from agent.api.manifest import Manifest
from agent.clock import Clock, SystemClock
from agent.control import ControlHttp, ControlPlane, HeaderError, run_header_command
from agent.daemon.config import AgentConfig
from agent.daemon.connection import InShutdown, OnFailure, Routine
from agent.daemon.credentials import credential_source
from agent.daemon.environment import CommandEnvironment, executable_path
from agent.daemon.http_api import PORT as HTTP_API_PORT
from agent.daemon.http_api import HttpApi
from agent.daemon.journal import Journal
from agent.daemon.lifecycle import State
from agent.daemon.logfile import (
    LogOutput,
    LogOutputError,
    RotatingFile,
    Sink,
    StreamSink,
    as_json,
    get_logger,
    human,
    install,
    stackdriver,
)
from agent.daemon.manifest import ManifestRoutine
from agent.daemon.metrics import (
    Metrics,
    ScriptCounts,
    control_metrics,
    lifecycle_metrics,
    log_metrics,
    node_metrics,
    peer_metrics,
    report_metrics,
    ssh_metrics,
    terminal_metrics,
)
from agent.daemon.network import Network
from agent.daemon.operations import LocalServers, LogLevel, Shutdown, Status, socket_path
from agent.daemon.reconnect import Connector
from agent.daemon.reports import Banners, LifecycleReporter, TimingReporter
from agent.daemon.sdnotify import VARIABLES as NOTIFY_VARIABLES
from agent.daemon.sdnotify import Notifier
from agent.daemon.shutdown import Stage, StopRequest, all_of, shut_down
from agent.daemon.signals import handle_signals
from agent.daemon.ssh import PORTS as SSH_PORTS
from agent.daemon.ssh import Ssh
from agent.daemon.terminals import PORT as TERMINAL_PORT
from agent.daemon.terminals import Terminals
from agent.daemon.traffic import Traffic
from agent.daemon.visitors import SshVisitors, TerminalVisitors
from agent.daemon.workspace import Workspace
from agent.identity import CredentialSource, IdentityError
from agent.logs import LogService, secret_values
from agent.monitor import AppHealthChecker, ConnectionReporter, MetadataCollector, ResourceMonitor, StatsReporter
from agent.process import home_directory, priority
from agent.scripts import PhaseResult, ScriptRunner
from agent.scripts import Stage as ScriptStage
from agent.tailnet.speedtest import PORT as SPEEDTEST_PORT
from agent.tailnet.speedtest import SpeedtestService
from agent.version import VERSION

DELIVERY_LIMIT = 5.0
"""Seconds for the last states, timings and log lines to reach the server (daemon.md §3.4, steps 9 to 12)."""
EXIT_LIMIT = 10.0
"""Seconds after the shutdown until the process ends in any case, also when a thread hangs on a dead disk."""


class StartError(Exception):
    """The process cannot start: exit code 1. The text names what is wrong."""


def run(config: AgentConfig) -> int:
    """Run the agent until it is told to stop; the exit code (daemon.md §1.4)."""
    try:
        output = LogOutput(_sinks(config))
    except LogOutputError as error:
        return _cannot_start(error)
    output.start()
    install(output)
    try:
        asyncio.run(_run(config, output))
    except StartError as error:
        return _cannot_start(error)
    finally:
        output.close()
    return 0


def _exit_anyway() -> None:
    """End the process `EXIT_LIMIT` seconds from now if it has not ended: the interpreter waits for its threads."""
    timer = threading.Timer(EXIT_LIMIT, os._exit, (0,))
    timer.daemon = True
    timer.start()


def _cannot_start(error: Exception) -> int:
    sys.stderr.write(f"error: {error}\n")
    return 1


def _sinks(config: AgentConfig) -> list[Sink]:
    sinks: list[Sink] = [RotatingFile(config.log_dir)]
    for path, render in ((config.log_human, human), (config.log_json, as_json), (config.log_stackdriver, stackdriver)):
        if path:
            sinks.append(StreamSink(path, render))
    return sinks


async def _run(config: AgentConfig, output: LogOutput) -> None:
    clock = SystemClock()
    environment = os.environ
    request = StopRequest(clock)
    # Before anything that may take its time: a stop is a graceful one from the start (daemon.md §1.3, step 5).
    level = LogLevel(output)

    def vanish() -> NoReturn:
        """End without the clean-up that would end scripts, too."""
        output.close()
        os._exit(0)

    with handle_signals(request.receive, environment, level.toggle, request.make_way):
        executable = _join_path(environment)
        get_logger("agent").info("agent is starting now", url=config.url, auth=config.auth, version=VERSION)
        headers = await _headers(config, environment, request, clock)
        if headers is not None:
            http = ControlHttp(URL(config.url), headers, clock)
            # Proofs are exchanged without a token; the session is opened by the first of them.
            tokenless = ControlHttp(URL(config.url), headers, clock)
            try:
                credentials = await credential_source(config, tokenless, environment, clock)
                plane = ControlPlane(http, _Unwritten(credentials, output), clock)
                network = Network(URL(config.url), clock, headers=headers, port=config.tailnet_listen_port)
                await _live(config, plane, network, executable, request, level, output.clean, vanish, clock)
            except IdentityError as error:
                raise StartError(str(error)) from error
            finally:
                await tokenless.aclose()
                await http.aclose()
    get_logger("agent").info("stopped")


async def _headers(
    config: AgentConfig, environment: Mapping[str, str], request: StopRequest, clock: Clock
) -> tuple[tuple[str, str], ...] | None:
    """The extra headers, the command's included; None when the agent was told to stop while the command ran."""
    if not config.header_command:
        return config.header
    command = asyncio.create_task(run_header_command(config.header_command, config.url, environment, clock))
    stopping = asyncio.create_task(request.stopping.wait())
    try:
        await asyncio.wait({command, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return (*config.header, *command.result()) if command.done() else None
    except HeaderError as error:
        raise StartError(str(error)) from error
    finally:
        for task in (command, stopping):
            task.cancel()
        await asyncio.wait({command, stopping})


async def _live(
    config: AgentConfig,
    plane: ControlPlane,
    network: Network,
    executable: str,
    request: StopRequest,
    level: LogLevel,
    redact: Callable[[str], str],
    vanish: Callable[[], NoReturn],
    clock: Clock,
) -> None:
    # Programs in the workspace find the server by it, also where the agent was told by a flag.
    environment = {**os.environ, "CODER_AGENT_URL": config.url}
    if (socket := socket_path(config.status_socket, config.state_dir)) is not None:
        environment["CODER_AGENT_STATUS_SOCKET"] = str(socket)
    if not config.token_in_environment:
        environment.pop("CODER_AGENT_TOKEN", None)
        if config.token_file:  # where helpers, which have this user's rights, find it
            environment["CODER_AGENT_TOKEN_FILE"] = os.path.abspath(config.token_file)
    notifier = Notifier(environment)
    for name in NOTIFY_VARIABLES:
        environment.pop(name, None)
    journal = Journal()
    context = CommandEnvironment(
        process=environment,
        executable=executable,
        bin_dir=config.script_data_dir / "coder-script-data" / "bin",
        token=(lambda: plane.token) if config.token_in_environment else None,
        priority=priority.variables(
            environment,
            by_default=config.lower_priority,
            own_oom=priority.own_oom_score(),
            own_nice=os.getpriority(os.PRIO_PROCESS, 0),
        ),
    )
    timings = TimingReporter(journal)
    network.serve(SPEEDTEST_PORT, SpeedtestService(clock).serve)
    connections = ConnectionReporter(clock)
    terminals = Terminals(
        context,
        clock,
        idle=config.terminal_idle,
        history=config.terminal_history,
        reports=TerminalVisitors(connections),
    )
    network.serve(TERMINAL_PORT, terminals.serve)

    def make_logs(state: Path | None) -> LogService:
        terminals.open(state)  # here, because it is here that the state directory is known
        return LogService(state, clock)

    def make_scripts(manifest: Manifest, state: Path | None, logs: LogService) -> ScriptRunner:
        return ScriptRunner(
            manifest.scripts,
            runs_dir=state / "runs" if state is not None else None,
            data_dir=config.script_data_dir,
            log_dir=config.log_dir,
            captures=logs,
            context=context,
            completed=timings.add,
            clock=clock,
            life=journal.state.life,
            on_result=remember,
            written=journal.flush,
        )

    def remember(script: UUID, stage: ScriptStage, result: PhaseResult) -> None:
        counts.ended(result)
        workspace.script_ended(script, stage, result)

    counts = ScriptCounts()
    lifecycle = LifecycleReporter(journal, clock, lambda: workspace.logs_drained())
    workspace = Workspace(
        state_root=config.state_dir,
        journal=journal,
        lifecycle=lifecycle,
        context=context,
        make_logs=make_logs,
        make_scripts=make_scripts,
        secret_values=secret_values,
        home=home_directory(environment),
        clock=clock,
    )
    metrics = Metrics()
    http_api = HttpApi(
        config,
        clock,
        home=home_directory(environment),
        manifest=lambda: workspace.known_manifest,
        node=lambda: network.tailnet,
        metrics=metrics.collect,
        redact=redact,
    )
    network.serve(HTTP_API_PORT, http_api.serve)
    banners = Banners(clock)
    ssh = Ssh(
        config,
        context,
        clock,
        home=home_directory(environment),
        manifest=lambda: workspace.manifest,
        banners=lambda: [banner.message for banner in banners.current],
        reports=SshVisitors(connections),
    )
    for port in SSH_PORTS:
        network.serve(port, ssh.serve)

    async def join_network() -> None:
        ssh.named(workspace.manifest)
        await network.update(workspace.manifest)

    manifest = ManifestRoutine(
        version=VERSION, subsystems=config.subsystems, process=environment, publish=workspace.publish
    )
    metadata = MetadataCollector(context, clock)
    health = AppHealthChecker(clock)
    traffic = Traffic(lambda: network.tailnet, lambda: terminals.viewers, ssh.sessions, metrics.counted)
    routines = [
        Routine("manifest", manifest.run, on_failure=OnFailure.RECONNECT),
        Routine("logs", workspace.send_logs, in_shutdown=InShutdown.STAY),
        Routine("lifecycle", lifecycle.run, in_shutdown=InShutdown.STAY),
        Routine("timings", timings.run, in_shutdown=InShutdown.STAY),
        Routine("connection reports", connections.run, in_shutdown=InShutdown.STAY),
        Routine("resources", ResourceMonitor(clock).run),
        Routine("metadata", lambda api: metadata.run(api, workspace.manifest), after="manifest"),
        Routine("app health", lambda api: health.run(api, workspace.manifest), after="manifest"),
        Routine("network", lambda _: join_network(), after="manifest"),
        Routine(
            "coordination",
            network.coordinate,
            on_failure=OnFailure.RECONNECT,
            in_shutdown=InShutdown.STAY,
            after="network",
        ),
        Routine("derp map", network.follow_derp_map, on_failure=OnFailure.RECONNECT, after="network"),
        Routine("stats", StatsReporter(clock, traffic).run, after="manifest"),
        Routine("banners", banners.run),
    ]

    async def announce() -> None:
        lifecycle.enter(State.SHUTTING_DOWN)
        await journal.flush()

    async def deliver() -> None:
        await all_of(
            lifecycle=lifecycle.acknowledged(),
            goodbye=network.left(),
            logs=workspace.logs_drained(),
            timings=timings.sent(),
            connections=connections.sent(),
        )

    def unsent() -> dict[str, int]:
        return {
            "lifecycle_states": len(journal.state.lifecycle.pending),
            "script_timings": len(journal.state.timings),
            "connection_reports": connections.queued,
            "log_lines": workspace.logs.counters.queued_lines if workspace.logs is not None else 0,
        }

    stages = [
        Stage("manifest", workspace.refuse_manifests, 2.0),
        Stage("announcement", announce, 2.0),
        Stage("start scripts", workspace.interrupt_start, 2.0),
        Stage("SSH sessions", ssh.aclose, 5.0),
        Stage("terminals", terminals.aclose, 5.0),
        Stage("network", network.leave, 2.0),
        Stage("stop scripts", workspace.run_stop, None),
        Stage("other scripts", workspace.close_scripts, 60.0),
        Stage("delivery", deliver, DELIVERY_LIMIT),
    ]
    # Scripts and terminals have keepers, what the server does not know yet is on disk: a later agent goes on from there
    # as it does after a crash, which is why nothing but this may end here.
    handover = [
        Stage("terminals", terminals.leave, 5.0),
        Stage("journal", journal.flush, 2.0),
    ]
    connector = Connector(plane, routines, request.stopping, clock, notifier.status)
    metrics.add(
        lambda: node_metrics(network.tailnet),
        lambda: peer_metrics(network.tailnet, clock.now()),
        lambda: control_metrics(connector),
        lambda: lifecycle_metrics(lifecycle),
        lambda: counts.metrics(workspace.start_phase),
        lambda: log_metrics(workspace.logs.counters if workspace.logs is not None else None),
        lambda: report_metrics(connections),
        lambda: terminal_metrics(terminals.service),
        lambda: ssh_metrics(ssh.counters),
    )
    shutdown = Shutdown(request)
    servers = LocalServers(
        config,
        metrics=metrics.collect,
        status=Status(config, clock, lifecycle, connector, lambda: workspace.known_manifest, level),
        shutdown=shutdown,
        level=level,
        debug_routes=http_api.debug_routes,
    )
    servers.open()
    connecting = asyncio.create_task(connector.run(), name="connector")
    watchdog = asyncio.create_task(notifier.feed_watchdog(clock), name="watchdog")
    try:
        notifier.ready()
        await request.ending.wait()
        if request.making_way:
            await shut_down(handover, request.stopping, clock)
        if request.making_way:
            await servers.aclose()
            vanish()
        notifier.stopping()
        unfinished = await shut_down(stages, request.skip, clock)
        shutdown.ended(unfinished, unsent())
        _exit_anyway()
    finally:
        for task in (connecting, watchdog):
            task.cancel()
        await asyncio.wait({connecting, watchdog})
        try:
            await servers.aclose()
            await network.aclose()
            await http_api.aclose()
        finally:
            await workspace.aclose()


def _join_path(environment: MutableMapping[str, str]) -> str:
    """Let commands find the agent's program: its directory ends PATH (daemon.md §1.3, step 11)."""
    executable = executable_path(sys.argv[0])
    if not executable:
        get_logger("agent").warning("git gets no help: the program workspace-agent is not beside its Python")
        return executable
    directory = os.path.dirname(executable)
    environment["PATH"] = f"{environment['PATH']}:{directory}" if environment.get("PATH") else directory
    return executable


class _Unwritten:
    """Credentials whose tokens are kept out of the log, rotated ones included."""

    def __init__(self, source: CredentialSource, output: LogOutput) -> None:
        self._source = source
        self._output = output

    async def obtain(self) -> str:
        token = await self._source.obtain()
        self._output.redact([token])
        return token
