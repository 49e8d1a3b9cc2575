"""The server's own node in the tailnet, by which it reaches agents as every other client does (tailnet.md §1.1).

One node serves all agents, and there is none before somebody wants an agent. Each process has its own: of several
servers on one database, one reaches only the agents that are connected to it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Final
from uuid import UUID, uuid4

import structlog
from yarl import URL

from agent.api.proto import tailnet_pb2 as pb
from agent.api.tailnet import TAILSCALE_PREFIX, address, write_key
from agent.backoff import Backoff
from agent.clock import Clock, deadline, wait_for
from agent.protocol.ip import endpoint_text
from agent.protocol.tcp import ConnectionRefusedTcpError, Limits, TcpError
from agent.server.coordinator import Connection, Coordinator
from agent.server.derp_map import TOPIC, DerpMaps
from agent.server.events import Events
from agent.server.jobs import keep_running
from agent.tailnet.derp_dial import DialOptions
from agent.tailnet.derp_map import NO_STUN, DerpMap
from agent.tailnet.peers import Peers, describe
from agent.tailnet.seldom import Seldom
from agent.tailnet.streams import TailnetStream
from agent.tailnet.tailnet import Tailnet, TailnetError

IDLE: Final = 1800.0
"""Seconds without use after which an agent's tunnel is closed …"""
IDLE_CHECK: Final = 60.0
"""… and how often that is looked at."""
DIAL_LIMIT: Final = 30.0
READY_LIMIT: Final = 1.0
"""Seconds that an agent gets to say that it has taken this node in. A handshake that comes before would be lost, and
the next one follows 5 s later; but agents need not say it to us."""
REACH_LIMIT: Final = 5.0
"""Seconds after which asking an agent's network begins anew, in quick steps: the agent may be another process now."""
MAX_AGENTS: Final = 16_384
BUFFER: Final = 1024 * 1024
"""Bytes of each direction of a stream. Browsers that take nothing may fill as many as they open."""
MAX_DIALS: Final = 4096
"""Dials that wait at the same time …"""
MAX_AGENT_DIALS: Final = 512
"""… and of these for one agent, so that one which does not answer takes no place from the others."""

Update = pb.CoordinateResponse.PeerUpdate

log = structlog.get_logger("agent.server.network")


class AgentUnreachableError(Exception):
    """There is no connection to the agent. The text is for people and for close frames (terminal-ssh-http.md §1.10)."""


class PortRefusedError(AgentUnreachableError):
    """The agent is there, and nothing listens on that port of its workspace."""


@dataclass(frozen=True, slots=True)
class AgentPath:
    """How an agent is reached: directly at `endpoint` (`ip:port`), or through the region called `relay`."""

    endpoint: str
    relay: str
    latency: float | None
    """The last round trip in seconds; None while none was measured."""

    @property
    def direct(self) -> bool:
        return bool(self.endpoint)


@dataclass(eq=False, slots=True)
class _Agent:
    """An agent that has a tunnel."""

    id: UUID
    address: bytes
    used: float
    holds: int = 0
    dials: int = 0
    known: asyncio.Event = field(default_factory=asyncio.Event)
    """Its node is among the peers."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """It has this node among its peers."""


class AgentNetwork:
    """Reaches agents through the coordinator, the relays and direct paths, like any peer.

    `own_url` is where this process finds its own listening socket: its relay is dialled there, without TLS, whatever
    proxies are before it. `idle` is in seconds.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        derp_maps: DerpMaps,
        events: Events,
        clock: Clock,
        *,
        own_url: str,
        idle: float = IDLE,
        make_node: Callable[..., Tailnet] = Tailnet,
    ) -> None:
        self._start = partial(_Node, coordinator, derp_maps, events, clock, URL(own_url), idle, make_node)
        self._derp_maps, self._clock = derp_maps, clock
        self._node: _Node | None = None
        self._closed = False
        self._dials = 0

    async def dial(
        self, agent: UUID, port: int, timeout: float = DIAL_LIMIT, allowed: int | None = None
    ) -> TailnetStream:
        """A connection to a port of the workspace, whose agent may come within `timeout` seconds. It may send as many
        bytes as `allowed` until `TailnetStream.allow` says more.

        Raises `AgentUnreachableError`, and as one of these `PortRefusedError`. As long as the stream is open, the
        tunnel to the agent stays.
        """
        with self._held(agent) as (node, held):
            if self._dials >= MAX_DIALS or held.dials >= MAX_AGENT_DIALS:
                raise AgentUnreachableError("dial workspace agent: too many connections are being made: try again")
            self._dials += 1
            held.dials += 1
            try:
                async with deadline(self._clock, timeout):
                    return await node.dial(held, port, allowed)
            except TimeoutError as error:
                text = f"dial workspace agent: {node.obstacle(held)} (waited {timeout:g} s)"
                raise AgentUnreachableError(text) from error
            except (TailnetError, TcpError) as error:
                if isinstance(error.__cause__, ConnectionRefusedTcpError):
                    raise PortRefusedError(f"dial: port {port} of the workspace refuses connections") from error
                raise AgentUnreachableError(f"dial workspace agent: {error}") from error
            finally:
                self._dials -= 1
                held.dials -= 1

    async def ping(self, agent: UUID, timeout: float = 5.0) -> AgentPath:
        """How the agent answers now. Raises `AgentUnreachableError`."""
        with self._held(agent) as (node, held):
            try:
                async with deadline(self._clock, timeout):
                    await node.known(held)
                    answer = await node.tailnet.ping(held.address, timeout)
            except TimeoutError as error:
                raise AgentUnreachableError(f"ping workspace agent: {node.obstacle(held)}") from error
            except TailnetError as error:
                raise AgentUnreachableError(f"ping workspace agent: {error}") from error
            if answer.endpoint is not None:
                return AgentPath(endpoint_text(answer.endpoint), "", answer.latency)
            return AgentPath("", self._region(answer.region), answer.latency)

    def path(self, agent: UUID) -> AgentPath | None:
        """How data to the agent would go now, without sending any; None where there is no tunnel to it."""
        peer = self._node.peers.node(agent.bytes) if self._node is not None else None
        if self._node is None or peer is None:
            return None
        paths = self._node.tailnet.engine.paths
        route = paths.current(peer.key, self._clock.now())
        # While a path is not trusted, data goes both ways, and the relay is the one that can be relied on.
        direct = route.endpoint is not None and not route.region
        return AgentPath(
            endpoint_text(route.endpoint) if direct and route.endpoint is not None else "",
            "" if direct else self._region(route.region),
            paths.latency(peer.key),
        )

    @contextmanager
    def hold(self, agent: UUID) -> Iterator[None]:
        """Keep the agent's tunnel while the body runs, with or without streams. Raises `AgentUnreachableError`."""
        with self._held(agent):
            yield

    async def aclose(self) -> None:
        """Reset all streams and leave the tailnet; nothing can be dialled from then on. Idempotent."""
        self._closed = True
        if self._node is not None:
            await self._node.aclose()

    @contextmanager
    def _held(self, agent: UUID) -> Iterator[tuple[_Node, _Agent]]:
        if self._closed:
            raise AgentUnreachableError("dial workspace agent: the server stops")
        if self._node is None:
            self._node = self._start()
        held = self._node.tunnel(agent)
        held.holds += 1
        try:
            yield self._node, held
        finally:
            held.holds -= 1
            held.used = self._clock.now()

    def _region(self, number: int) -> str:
        region = self._derp_maps.current.regions.get(number)
        return region.name or region.code if region is not None else f"region {number}"


class _Node:
    """The node, once there is one."""

    def __init__(
        self,
        coordinator: Coordinator,
        derp_maps: DerpMaps,
        events: Events,
        clock: Clock,
        own_url: URL,
        idle: float,
        make_node: Callable[..., Tailnet],
    ) -> None:
        self._coordinator, self._derp_maps, self._events, self._clock = coordinator, derp_maps, events, clock
        self._own_url, self._idle = own_url, idle
        self._id = uuid4()
        self.tailnet = make_node(
            [address(TAILSCALE_PREFIX, self._id)],
            clock,
            options=DialOptions(force_websockets=derp_maps.options.force_websockets),
            direct=not derp_maps.options.disable_direct,
            limits=Limits(receive_buffer=BUFFER, send_buffer=BUFFER),
        )
        self.peers = Peers(self.tailnet, clock)
        self._claims = Seldom(clock)
        self._agents: dict[UUID, _Agent] = {}
        self._connection: Connection | None = None
        self._told = asyncio.Event()
        self.tailnet.start()
        jobs = {
            "network: coordination": self._coordinate,
            "network: node": self._tell,
            "network: DERP map": self._follow_derp_map,
            "network: idle agents": self._forget_idle,
            "network: lost agents": self.peers.expire,
        }
        self._tasks = [asyncio.create_task(keep_running(name, job, clock), name=name) for name, job in jobs.items()]

    # ---- agents

    def tunnel(self, ident: UUID) -> _Agent:
        """The agent, whose tunnel is opened if there is none. Raises `AgentUnreachableError`."""
        agent = self._agents.get(ident)
        if agent is None:
            if len(self._agents) >= MAX_AGENTS:
                raise AgentUnreachableError(f"dial workspace agent: there are tunnels to {MAX_AGENTS} agents already")
            agent = self._agents[ident] = _Agent(ident, address(TAILSCALE_PREFIX, ident), self._clock.now())
            self._open_tunnel(agent)
        return agent

    async def known(self, agent: _Agent) -> None:
        """Until both nodes know each other, or the agent's does not say."""
        await self._told.wait()
        if self._key(agent) is None:
            agent.known.clear()  # it was lost for so long that it was forgotten
        await agent.known.wait()
        if not agent.ready.is_set():
            try:
                await wait_for(self._clock, agent.ready.wait(), READY_LIMIT)
            except TimeoutError:
                if agent.known.is_set():
                    agent.ready.set()  # it never says so: nobody waits for that again

    async def reach(self, agent: _Agent) -> None:
        """Until the agent's network answers."""
        while True:
            await self.known(agent)
            try:
                await self.tailnet.reach(agent.address, REACH_LIMIT)
            except TailnetError as error:
                if not isinstance(error.__cause__, TimeoutError):
                    raise
            else:
                return

    async def dial(self, agent: _Agent, port: int, allowed: int | None) -> TailnetStream:
        """Without an end of its own. Raises `TailnetError`, `TcpError`."""
        while True:
            await self.reach(agent)
            key = self._key(agent)
            try:
                return await self.tailnet.dial_tcp(agent.address, port, math.inf, allowed)
            except TailnetError:
                # An agent that restarts in the middle of this is another peer, and the next attempt is for that one.
                if self._key(agent) == key:
                    raise

    def _key(self, agent: _Agent) -> bytes | None:
        peer = self.peers.node(agent.id.bytes)
        return peer.key if peer is not None else None

    def obstacle(self, agent: _Agent) -> str:
        """Why the agent is not reached."""
        if self.tailnet.node is None:
            return "the server has no connection to a relay"
        if not agent.known.is_set():
            return "the agent is not connected to this server"
        return "the agent does not answer"

    async def _forget_idle(self) -> None:
        while True:
            await self._clock.sleep(IDLE_CHECK)
            now, connected = self._clock.now(), self.tailnet.engine.connected_addresses()
            for agent in list(self._agents.values()):
                if agent.holds or agent.address in connected:
                    agent.used = now
                elif now - agent.used >= self._idle:
                    del self._agents[agent.id]
                    self.peers.remove(agent.id.bytes)
                    self._ask(pb.CoordinateRequest(remove_tunnel=pb.CoordinateRequest.Tunnel(id=agent.id.bytes)))

    # ---- the coordinator

    async def _coordinate(self) -> None:
        """One stream after another, should one end; peers and streams outlive it."""
        backoff = Backoff(first=0.1, cap=10)
        while True:
            changed = asyncio.Event()
            # All agents may have news before this task has its turn; their newest news take at most two places each.
            connection = self._connection = self._coordinator.connect(self._id, changed.set, 2 * MAX_AGENTS)
            for agent in self._agents.values():
                self._open_tunnel(agent)
            self._tell_node()
            while True:
                changed.clear()
                while (response := connection.take()) is not None:
                    self._take(response)
                if connection.ended:
                    break
                await changed.wait()
            self.peers.lose_all()
            await self._clock.sleep(backoff.next())

    def _ask(self, request: pb.CoordinateRequest) -> None:
        """What is asked between two streams comes with the next one."""
        if self._connection is not None:
            self._coordinator.handle(self._connection, request)

    def _open_tunnel(self, agent: _Agent) -> None:
        self._ask(pb.CoordinateRequest(add_tunnel=pb.CoordinateRequest.Tunnel(id=agent.id.bytes)))

    async def _tell(self) -> None:
        state = None
        while True:
            state = await self.tailnet.node_changed(state)
            self._tell_node()

    def _tell_node(self) -> None:
        if self.tailnet.node is not None and self._connection is not None:
            node = describe(self.tailnet, self._id, self.tailnet.node, self._clock)
            self._ask(pb.CoordinateRequest(update_self=pb.CoordinateRequest.UpdateSelf(node=node)))
            self._told.set()

    def _take(self, response: pb.CoordinateResponse) -> None:
        if response.error:
            log.warning("the coordinator ends the stream of the server's own node", reason=response.error)
        for update in response.peer_updates:
            agent = self._agents.get(UUID(bytes=update.id))
            if agent is None:
                continue  # its tunnel was closed in the meantime
            match update.kind:
                case Update.NODE:
                    self._take_node(agent, update.node)
                case Update.READY_FOR_HANDSHAKE:
                    agent.ready.set()
                case Update.DISCONNECTED:
                    agent.known.clear()
                    agent.ready.clear()
                    self.peers.remove(update.id)
                case Update.LOST:
                    # Its streams may live on: it is reached as long as it answers.
                    agent.ready.clear()
                    self.peers.lose(update.id)

    def _take_node(self, agent: _Agent, message: pb.Node) -> None:
        # A key is one agent's own. Another one that claims it would take its datagrams away.
        for other in self._agents.values():
            known = self.peers.node(other.id.bytes)
            if other is not agent and known is not None and message.key == write_key(known.key):
                if times := self._claims.tell():
                    ids = {"agent": str(agent.id), "other": str(other.id)}
                    log.warning("an agent claims the node key of another one", **ids, times=times)
                return
        self.peers.set(agent.id.bytes, message)
        if self.peers.node(agent.id.bytes) is not None:
            agent.known.set()

    # ---- relays

    async def _follow_derp_map(self) -> None:
        with self._events.subscribe(TOPIC) as changes:
            while True:
                self.tailnet.update_derp_map(_as_found_here(self._derp_maps.current, self._own_url))
                await changes.wait()

    async def aclose(self) -> None:
        """Streams first: their ends go through the relay to agents that still know this node."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.tailnet.aclose()
        self._ask(pb.CoordinateRequest(disconnect=pb.CoordinateRequest.Disconnect()))


def _as_found_here(derp_map: DerpMap, own_url: URL) -> DerpMap:
    """The embedded relay at the listening socket. Its STUN responder would tell this process a loopback address, which
    is of no use to others."""
    found = derp_map.rewritten(own_url)
    regions = {
        number: replace(
            region,
            nodes=tuple(node if node.stun_only else replace(node, stun_port=NO_STUN) for node in region.nodes),
        )
        if region.embedded_relay
        else region
        for number, region in found.regions.items()
    }
    return replace(found, regions=MappingProxyType(regions))
