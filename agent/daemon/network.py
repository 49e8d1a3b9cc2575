"""The agent's node in the tailnet, for the life of the process (tailnet.md §1.2, daemon.md §2.1).

The first manifest makes it, later ones change it, and connections to the control plane come and go while its own go on.
Without a node the agent does everything else: whatever keeps it from having one is a line in the log.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from yarl import URL

from agent.api.manifest import Manifest
from agent.clock import Clock
from agent.daemon.logfile import get_logger
from agent.rpc import RpcAgentApi

if TYPE_CHECKING:
    # At run time the node is imported when there is a manifest: it would hold up the start of the process.
    from agent.tailnet.coordination import Coordinator
    from agent.tailnet.tailnet import Handler, Tailnet


@dataclass(frozen=True, slots=True)
class _Node:
    agent: UUID
    tailnet: Tailnet
    coordinator: Coordinator
    expiring: asyncio.Task[None]

    async def aclose(self) -> None:
        self.expiring.cancel()
        await asyncio.gather(self.expiring, return_exceptions=True)
        await self.tailnet.aclose()


class Network:
    """`url` is where this agent finds the control plane, `headers` go with every request to a relay; UDP uses `port`,
    0 for any."""

    def __init__(self, url: URL, clock: Clock, *, headers: Sequence[tuple[str, str]] = (), port: int = 0) -> None:
        self._url = url
        self._clock = clock
        self._headers = tuple(headers)
        self._port = port
        self._services: dict[int, Handler] = {}
        self._node: _Node | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._leaving: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def tailnet(self) -> Tailnet | None:
        """The node; None before the first manifest."""
        return self._node.tailnet if self._node is not None else None

    def serve(self, port: int, handler: Handler) -> None:
        """Serve TCP connections to `port` from the moment there is a node. Other ports are the workspace's."""
        self._services[port] = handler
        if self._node is not None:
            self._node.tailnet.listen_tcp(port, handler)

    # ---- routines of a connection

    async def update(self, manifest: Manifest) -> None:
        """The "network" routine: make the node as the manifest says, or change it at run time."""
        # Not on the loop: it takes some ten milliseconds, in which the start scripts are already under way.
        await asyncio.to_thread(importlib.import_module, "agent.tailnet.coordination")
        from agent.tailnet.derp_map import from_message

        if self._closed:
            return
        if self._node is not None and self._node.agent != manifest.agent_id:
            # Another agent has other addresses and is another peer (daemon.md §9, Q7).
            self._end(self._node)
            self._node = None
        if self._node is None:
            self._node = self._make(manifest)
            get_logger("agent.network").info("the node is up", direct=not manifest.disable_direct_connections)
        tailnet = self._node.tailnet
        tailnet.set_direct(not manifest.disable_direct_connections)
        tailnet.set_force_websockets(manifest.derp_force_websockets)
        tailnet.update_derp_map(from_message(manifest.derp_map).rewritten(self._url))

    async def coordinate(self, api: RpcAgentApi) -> None:
        """The "coordination" routine. Raises `CoordinationEndedError`, `CallError`."""
        if self._node is not None:
            await self._node.coordinator.run(api.client)

    async def follow_derp_map(self, api: RpcAgentApi) -> None:
        """The "derp map" routine. Raises `CoordinationEndedError`, `CallError`."""
        if self._node is not None:
            from agent.tailnet.coordination import follow_derp_map

            tailnet = self._node.tailnet
            await follow_derp_map(api.client, lambda derp_map: tailnet.update_derp_map(derp_map.rewritten(self._url)))

    # ---- the end

    async def leave(self) -> None:
        """Reset every connection and begin to say goodbye, once; `left` waits for it (daemon.md §3.4, step 4)."""
        self._closed = True
        if self._node is not None and self._leaving is None:
            self._node.tailnet.refuse_all()
            self._leaving = asyncio.create_task(self._node.coordinator.leave(), name="leave the tailnet")

    async def left(self) -> None:
        """Wait until the control plane has taken the goodbye, some seconds at most (step 11)."""
        if self._leaving is not None:
            await self._leaving

    async def aclose(self) -> None:
        """Close the node. Idempotent."""
        self._closed = True
        if self._leaving is not None:
            self._leaving.cancel()
        if self._node is not None:
            self._end(self._node)
            self._node = None
        if self._ending:
            await asyncio.wait(self._ending)

    def _end(self, node: _Node) -> None:
        # A task: that a connection is lost meanwhile must not leave half a node behind.
        task = asyncio.create_task(node.aclose(), name="close the tailnet")
        self._ending.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            get_logger("agent.network").error("the node did not close as it should", exc_info=error)

    def _make(self, manifest: Manifest) -> _Node:
        from agent.api.tailnet import agent_addresses
        from agent.tailnet.coordination import Coordinator
        from agent.tailnet.derp_dial import DialOptions
        from agent.tailnet.tailnet import Tailnet

        tailnet = Tailnet(
            agent_addresses(manifest.agent_id),
            self._clock,
            options=DialOptions(headers=self._headers, force_websockets=manifest.derp_force_websockets),
            direct=not manifest.disable_direct_connections,
            port=self._port,
            forward=True,
        )
        for port, handler in self._services.items():
            tailnet.listen_tcp(port, handler)
        coordinator = Coordinator(tailnet, manifest.agent_id, self._clock)
        tailnet.start()
        expiring = asyncio.create_task(coordinator.expire(), name="lost peers")
        return _Node(manifest.agent_id, tailnet, coordinator, expiring)
