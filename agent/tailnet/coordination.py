"""The agent's side of coordination: which peers there are, and what they are told of this node (tailnet.md §3.5)."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from agent.api import methods
from agent.api.proto import tailnet_pb2 as pb
from agent.api.tailnet import NodeError, PeerNode, address_text, node_id, read_node, write_disco, write_key
from agent.clock import Clock, deadline
from agent.protocol.ip import Endpoint, mapped
from agent.rpc import CallError, Duplex, RpcClient
from agent.tailnet import derp_map
from agent.tailnet.tailnet import NodeState, Tailnet

logger = logging.getLogger("agent.tailnet")

LOST_AFTER: Final = 900.0
"""Seconds without a handshake after which a lost peer is removed."""
LOST_CHECK: Final = 15.0
GOODBYE_LIMIT: Final = 5.0
"""Seconds that the server has to end the stream after a disconnect."""
MAX_PEERS: Final = 16_384
HARMLESS: Final = "ready for handshake error"


class CoordinationEndedError(Exception):
    """The server ended the coordination stream; the connection is of no use without it."""


@dataclass(slots=True)
class _Peer:
    node: PeerNode
    lost_at: float | None = None


class Coordinator:
    """Keeps a tailnet's peers as the control plane says. They outlive any number of connections to it."""

    def __init__(self, tailnet: Tailnet, agent: UUID, clock: Clock) -> None:
        self._tailnet = tailnet
        self._agent = agent
        self._clock = clock
        self._peers: dict[bytes, _Peer] = {}
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._stopped.set()

    @property
    def peers(self) -> int:
        """How many peers are known."""
        return len(self._peers)

    async def run(self, client: RpcClient) -> None:
        """The coordination routine of one connection. Raises `CoordinationEndedError`, `CallError`.

        However it ends, all peers count as lost from then on: the data path goes on without the control plane.
        """
        self._stopped.clear()
        try:
            async with await client.duplex(methods.COORDINATE.path) as call, asyncio.TaskGroup() as group:
                writing = asyncio.Lock()
                telling = group.create_task(self._tell(call, writing), name="tell of this node")
                stopping = group.create_task(self._say_goodbye(call, writing), name="leave the tailnet")
                while (message := await call.receive()) is not None:
                    await self._take(pb.CoordinateResponse.FromString(message), call, writing)
                telling.cancel()
                stopping.cancel()
        except* CallError as errors:
            raise errors.exceptions[0] from None
        finally:
            self._stopped.set()
            now = self._clock.now()
            for peer in self._peers.values():
                peer.lost_at = peer.lost_at if peer.lost_at is not None else now
        if not self._stopping.is_set():
            raise CoordinationEndedError("the control plane ended the coordination stream")

    async def leave(self) -> None:
        """Tell the peers that this node goes, and wait for the server to have taken it: at most some seconds."""
        self._stopping.set()
        try:
            async with deadline(self._clock, GOODBYE_LIMIT):
                await self._stopped.wait()
        except TimeoutError:
            logger.info("the control plane did not confirm the farewell within %g s", GOODBYE_LIMIT)

    async def expire(self) -> None:
        """Remove lost peers in time, until cancelled (§3.5)."""
        while True:
            await self._clock.sleep(LOST_CHECK)
            now = self._clock.now()
            for ident, peer in list(self._peers.items()):
                if peer.lost_at is None:
                    continue
                session = self._tailnet.engine.device.peer(peer.node.key)
                shaken = session.last_handshake if session is not None else None
                if shaken is None or now - shaken >= LOST_AFTER:
                    self._remove(ident)

    async def _tell(self, call: Duplex, writing: asyncio.Lock) -> None:
        """Send this node's state when there is one, and whenever it changes."""
        sent: NodeState | None = None
        while True:
            sent = await self._tailnet.node_changed(sent)
            request = pb.CoordinateRequest(update_self=pb.CoordinateRequest.UpdateSelf(node=self._node(sent)))
            async with writing:
                await call.send(request.SerializeToString())

    async def _say_goodbye(self, call: Duplex, writing: asyncio.Lock) -> None:
        await self._stopping.wait()
        request = pb.CoordinateRequest(disconnect=pb.CoordinateRequest.Disconnect())
        async with writing:
            # The stream is not closed here: the close might overtake the message.
            await call.send(request.SerializeToString())

    def _node(self, state: NodeState) -> pb.Node:
        wall = self._clock.wall() // 1000
        addresses = [address_text(address) for address in self._tailnet.engine.addresses]
        return pb.Node(
            id=node_id(self._agent),
            as_of=Timestamp(seconds=wall // 1_000_000, nanos=wall % 1_000_000 * 1000),
            key=write_key(self._tailnet.node_key),
            disco=write_disco(self._tailnet.disco_key),
            preferred_derp=state.home,
            derp_latency=state.latencies,
            derp_forced_websocket=state.forced_websockets,
            addresses=addresses,
            allowed_ips=addresses,
            endpoints=state.endpoints,
        )

    async def _take(self, response: pb.CoordinateResponse, call: Duplex, writing: asyncio.Lock) -> None:
        if response.error:
            level = logging.INFO if response.error.startswith(HARMLESS) else logging.WARNING
            logger.log(level, "the control plane says of coordination: %s", response.error[:500])
        ready = []
        for update in response.peer_updates:
            if len(update.id) != 16:
                continue
            if update.kind == pb.CoordinateResponse.PeerUpdate.NODE:
                self._set(update.id, update.node)
                ready.append(pb.CoordinateRequest.ReadyForHandshake(id=update.id))
            elif update.kind == pb.CoordinateResponse.PeerUpdate.DISCONNECTED:
                self._remove(update.id)
            elif update.kind == pb.CoordinateResponse.PeerUpdate.LOST and (peer := self._peers.get(update.id)):
                peer.lost_at = self._clock.now()
        if ready:
            # Only now: the peers must be known here before they are told to begin.
            async with writing:
                await call.send(pb.CoordinateRequest(ready_for_handshake=ready).SerializeToString())

    def _set(self, ident: bytes, message: pb.Node) -> None:
        try:
            node = read_node(message)
            if not node.home:
                return
            if ident not in self._peers and len(self._peers) >= MAX_PEERS:
                raise NodeError(f"there are {MAX_PEERS} peers already")
            known = self._peers.get(ident)
            if known is not None and known.node.key != node.key:
                self._remove(ident)
            self._tailnet.set_peer(node.key, node.disco, _owned(node), node.home, _endpoints(node))
        except ValueError as error:  # a NodeError, or a key that cannot be used
            logger.warning("a peer was ignored: %s", error)
            return
        self._peers[ident] = _Peer(node)

    def _remove(self, ident: bytes) -> None:
        peer = self._peers.pop(ident, None)
        if peer is not None and all(other.node.key != peer.node.key for other in self._peers.values()):
            self._tailnet.remove_peer(peer.node.key)


async def follow_derp_map(client: RpcClient, changed: Callable[[derp_map.DerpMap], None]) -> None:
    """The DERP map routine of one connection. Raises `CoordinationEndedError`, `CallError`."""
    request = pb.StreamDERPMapsRequest().SerializeToString()
    async for message in client.stream(methods.STREAM_DERP_MAPS.path, request):
        changed(derp_map.from_message(pb.DERPMap.FromString(message)))
    raise CoordinationEndedError("the control plane ended the stream of DERP maps")


def _owned(node: PeerNode) -> list[bytes]:
    """Single addresses that are both announced and allowed (§7.7)."""
    announced = set(node.addresses)
    return [
        allowed.network_address.packed
        for allowed in node.allowed_ips
        if allowed in announced and allowed.version == 6 and allowed.prefixlen == 128
    ]


def _endpoints(node: PeerNode) -> list[Endpoint]:
    found = []
    for text in node.endpoints:
        host, _, port = text.rpartition(":")
        try:
            address = ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            continue  # one that is odd costs the others nothing
        if port.isascii() and port.isdigit() and 0 < int(port) < 65536:
            found.append((mapped(address.packed), int(port)))
    return found
