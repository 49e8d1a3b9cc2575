"""What the HTTP API of the agent's node shows, and where it comes from (terminal-ssh-http.md §4).

Everything is made when somebody first connects: many agents are never asked.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from agent.api.manifest import Manifest
from agent.clock import Clock
from agent.daemon.config import AgentConfig

if TYPE_CHECKING:
    from aiohttp import web

    from agent.metrics import Metric
    from agent.ports import ListeningPort, PortService
    from agent.tailnet.streams import TailnetStream
    from agent.tailnet.tailnet import Tailnet
    from agent.workspace_api import Views, WorkspaceApi

PORT = 4
"""Where the tailnet has this service."""


class HttpApi:
    """`manifest` and `node` give those of now, None before there is one; `redact` blanks out known secrets."""

    def __init__(
        self,
        config: AgentConfig,
        clock: Clock,
        *,
        home: str,
        manifest: Callable[[], Manifest | None],
        node: Callable[[], Tailnet | None],
        metrics: Callable[[], Awaitable[Iterable[Metric]]],
        redact: Callable[[str], str],
    ) -> None:
        self._config = config
        self._clock = clock
        self._home = home
        self._manifest = manifest
        self._node = node
        self._metrics = metrics
        self._redact = redact
        self._making: asyncio.Task[WorkspaceApi] | None = None

    async def serve(self, stream: TailnetStream) -> None:
        """One connection to port 4."""
        if self._making is None:
            self._making = asyncio.create_task(self._make(), name="HTTP API")
        api = await asyncio.shield(self._making)
        await api.serve(stream)

    async def aclose(self) -> None:
        """Stop, once the node is closed. Idempotent."""
        if self._making is not None:
            making, self._making = self._making, None
            api = await making
            await api.aclose()

    async def _make(self) -> WorkspaceApi:
        for name in ("agent.ports", "agent.workspace_api"):
            await asyncio.to_thread(importlib.import_module, name)
        from agent.workspace_api import WorkspaceApi

        return WorkspaceApi(self._views(), self._clock)

    def debug_routes(self, router: web.UrlDispatcher) -> None:
        """The debug pages for a local server; `agent.workspace_api` is imported for them."""
        from agent.workspace_api import debug

        debug.add_routes(router, self._views())

    def _views(self) -> Views:
        from agent.ports import PortService, Scanner
        from agent.workspace_api import Views

        # Not listed: what the agent itself listens on, and where its helpers are configured to listen.
        ports = PortService(Scanner(own_pid=os.getpid()).scan, self._clock, hidden=helper_ports(self._config))
        return Views(
            ports=lambda: _listed(ports),
            watch_ports=lambda: _watched(ports),
            manifest=self._manifest,
            log_dir=self._config.log_dir,
            home=self._home,
            net_info=lambda: net_info(self._node()),
            node=lambda: node_rows(self._node(), self._clock),
            metrics=self._metrics,
            set_network_debug=_set_network_debug,
            redact=self._redact,
        )


async def _listed(ports: PortService) -> Sequence[ListeningPort]:
    from agent.ports import ScanError
    from agent.workspace_api import PortScanError

    try:
        return await ports.ports()
    except ScanError as error:
        raise PortScanError(str(error)) from error


async def _watched(ports: PortService) -> AsyncGenerator[Sequence[ListeningPort]]:
    from agent.ports import ScanError
    from agent.workspace_api import PortScanError

    try:
        async with aclosing(ports.watch()) as changes:
            async for found in changes:
                yield found
    except ScanError as error:
        raise PortScanError(str(error)) from error


def helper_ports(config: AgentConfig) -> frozenset[int]:
    """Ports of the profiling, metrics and debug servers' addresses; an address without one hides nothing."""
    ports = set()
    for address in (config.pprof_address, config.prometheus_address, config.debug_address):
        try:
            port = urlsplit(address if "://" in address else f"http://{address}").port
        except ValueError:
            continue  # no address at all; whoever is to listen there says so
        if port:
            ports.add(port)
    return frozenset(ports)


def net_info(node: Tailnet | None) -> Mapping[str, Any] | None:
    """The node's last network check (terminal-ssh-http.md §4.3); None before the first."""
    found = node.net_info() if node is not None else None
    return found.to_json() if found is not None else None


def node_rows(node: Tailnet | None, clock: Clock) -> list[tuple[str, str]] | None:
    """The node and its active peers in words: public keys and addresses only."""
    if node is None:
        return None
    from agent.api.tailnet import address_text
    from agent.protocol.ip import endpoint_text

    state, paths, now = node.node, node.engine.paths, clock.now()
    rows = [
        ("node key", node.node_key.hex()),
        ("disco key", node.disco_key.hex()),
        ("addresses", ", ".join(map(address_text, node.engine.addresses))),
        ("direct connections", "allowed" if paths.direct else "off"),
        ("home relay", f"region {state.home}" if state is not None else "none yet"),
    ]
    if state is not None:
        rows.append(("endpoints", ", ".join(state.endpoints) or "none"))
        rows += [(f"latency of {region}", f"{seconds * 1e3:.1f} ms") for region, seconds in state.latencies.items()]
    for key in paths.active(now):
        route, latency = paths.current(key, now), paths.latency(key)
        ways = [endpoint_text(route.endpoint)] if route.endpoint is not None else []
        ways += [f"relay region {route.region}"] if route.region else []
        took = f", {latency * 1e3:.1f} ms" if latency is not None else ""
        rows.append((f"peer {key.hex()[:16]}", " and ".join(ways) + took))
    return rows


def _set_network_debug(debug: bool) -> None:
    logging.getLogger("agent.tailnet").setLevel(logging.DEBUG if debug else logging.NOTSET)
