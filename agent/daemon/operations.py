"""The agent's local servers: metrics, debug pages, profiling, and the socket of `workspace-agent status` and `drain`.

Each is a socket until somebody connects. One that cannot listen is a warning: the workspace is worth more than the
figures about it (daemon.md §1.9).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.clock import Clock
from agent.daemon.config import AgentConfig
from agent.daemon.lifecycle import State
from agent.daemon.logfile import LogOutput, get_logger
from agent.daemon.shutdown import StopRequest
from agent.daemon.signals import stacks
from agent.metrics import Metric
from agent.ops import AddressError, Drained, ListenError, LocalAddress, LocalServer, Operations, parse_address
from agent.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from aiohttp import web

    from agent.api.manifest import Manifest
    from agent.daemon.reconnect import Connector
    from agent.daemon.reports import LifecycleReporter

SOCKET_NAME = "status.sock"


def socket_path(text: str, state_dir: Path) -> Path | None:
    """Where the control socket is: beside the state unless it was named; None for none."""
    if text == "none":
        return None
    return (Path(text) if text else state_dir / SOCKET_NAME).absolute()


class LogLevel:
    """How much the agent logs, except for the log file, which has everything (daemon.md §1.8)."""

    def __init__(self, output: LogOutput) -> None:
        self._output = output
        self.name = "info"

    def set(self, name: str) -> None:
        """One of `agent.ops.LOG_LEVELS`."""
        level = logging.getLevelNamesMapping()[name.upper()]
        self._output.set_level(level)
        # Parts that use the standard library's logging ask it whether a line is worth making.
        logging.getLogger("agent").setLevel(level if level < logging.INFO else logging.NOTSET)
        get_logger("agent.log").info("log level changed", level=name, former=self.name)
        self.name = name

    def toggle(self) -> None:
        """Between `debug` and `info`: what SIGUSR1 does."""
        self.set("info" if self.name == "debug" else "debug")


class Shutdown:
    """The way from whoever asks for a drain to the shutdown, and back to him with what became of it."""

    def __init__(self, request: StopRequest) -> None:
        self._request = request
        self._drained: asyncio.Future[Drained] = asyncio.get_running_loop().create_future()

    async def drain(self) -> Drained:
        """Do as SIGTERM does, and wait for the end."""
        self._request.receive("drain")
        return await asyncio.shield(self._drained)

    def ended(self, unfinished: Iterable[str], unsent: Mapping[str, int]) -> None:
        """It is over."""
        left = {kind: count for kind, count in unsent.items() if count}
        if left:
            get_logger("agent.shutdown").warning("the server has not been told everything", **left)
        if not self._drained.done():
            self._drained.set_result(Drained(tuple(unfinished), left))


class Status:
    """How things stand, as `workspace-agent status --json` prints it. No secret is in it."""

    def __init__(
        self,
        config: AgentConfig,
        clock: Clock,
        lifecycle: LifecycleReporter,
        connector: Connector,
        manifest: Callable[[], Manifest | None],
        level: LogLevel,
    ) -> None:
        self._config = config
        self._clock = clock
        self._lifecycle = lifecycle
        self._connector = connector
        self._manifest = manifest
        self._level = level
        self._started = clock.wall()

    def to_json(self) -> dict[str, Any]:
        """See the class. Times are seconds since 1970."""
        connector, manifest = self._connector, self._manifest()
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "started_at": self._started / 1e9,
            "url": self._config.url,
            "agent_id": str(manifest.agent_id) if manifest is not None else None,
            "agent_name": manifest.agent_name if manifest is not None else None,
            "workspace_name": manifest.workspace_name if manifest is not None else None,
            "lifecycle": self._lifecycle.state.name.lower(),
            "connected": connector.api is not None,
            "api_version": str(connector.api) if connector.api is not None else None,
            "trouble": connector.trouble,
            "attempts": connector.attempts,
            "ready": not self.not_ready(),
            "log_level": self._level.name,
            "log_dir": str(self._config.log_dir),
            "state_dir": str(self._config.state_dir),
        }

    def not_ready(self) -> str:
        """Ready means connected, and that the start scripts have ended, also in failure: people can work then."""
        state = self._lifecycle.state
        if state >= State.SHUTTING_DOWN:
            return "the agent is shutting down"
        if self._connector.api is None:
            return f"not connected: {self._connector.trouble}"
        return "" if state > State.STARTING else "the start scripts have not ended"


class LocalServers:
    """All of them, for the life of the process."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        metrics: Callable[[], Awaitable[Iterable[Metric]]],
        status: Status,
        shutdown: Shutdown,
        level: LogLevel,
        debug_routes: Callable[[web.UrlDispatcher], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self._operations = Operations(
            metrics=metrics,
            status=status.to_json,
            not_ready=status.not_ready,
            stacks=lambda: stacks(loop),
            drain=shutdown.drain,
            set_log_level=level.set,
            debug_routes=debug_routes,
        )
        self._config = config
        self._servers: list[LocalServer] = []

    def open(self) -> None:
        """Listen wherever the configuration says. Touches the file system: call it before there is work to hold up."""
        config = self._config
        self._add("metrics", config.prometheus_address, self._metrics)
        self._add("debug", config.debug_address, self._debug)
        self._add("profiling", config.pprof_address, self._stacks)
        path = socket_path(config.status_socket, config.state_dir)
        if path is not None:
            self._open(LocalServer("status", LocalAddress(path=path), self._control))

    async def aclose(self) -> None:
        """Stop all. Idempotent."""
        await asyncio.gather(*(server.aclose() for server in self._servers))
        self._servers.clear()

    def _add(self, name: str, text: str, make_app: Callable[[LocalAddress], web.Application]) -> None:
        if not text:
            return
        try:
            address = parse_address(text)
        except AddressError as error:
            get_logger("agent.ops").warning(f"no {name} server", error=error)
            return
        self._open(LocalServer(name, address, lambda: make_app(address)))

    def _open(self, server: LocalServer) -> None:
        try:
            server.open()
        except ListenError as error:
            get_logger("agent.ops").warning("a local server is missing", error=error)
            return
        self._servers.append(server)

    # ---- called when `agent.ops.app` is loaded

    def _metrics(self, address: LocalAddress) -> web.Application:
        from agent.ops.app import metrics_app

        return metrics_app(self._operations, by_name=_has_names(address))

    def _debug(self, address: LocalAddress) -> web.Application:
        from agent.ops.app import debug_app

        return debug_app(self._operations, by_name=_has_names(address))

    def _stacks(self, address: LocalAddress) -> web.Application:
        from agent.ops.app import stacks_app

        return stacks_app(self._operations, by_name=_has_names(address))

    def _control(self) -> web.Application:
        from agent.ops.app import control_app

        return control_app(self._operations)


def _has_names(address: LocalAddress) -> bool:
    """Whether the name in a request says anything: elsewhere than at loopback the owner may have given any name."""
    return address.path is None and address.is_loopback
