"""The peers of a node as coordination tells of them, and what it tells of the node (tailnet.md §3.4, §3.5)."""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from agent.api.proto import tailnet_pb2 as pb
from agent.api.tailnet import NodeError, PeerNode, address_text, node_id, read_node, write_disco, write_key
from agent.clock import Clock
from agent.protocol.ip import Endpoint, mapped
from agent.tailnet.paths import MAX_ENDPOINTS
from agent.tailnet.seldom import Seldom
from agent.tailnet.tailnet import NodeState, Tailnet

logger = logging.getLogger("agent.tailnet")

LOST_AFTER: Final = 900.0
"""Seconds without a handshake after which a lost peer is removed."""
LOST_CHECK: Final = 15.0
MAX_PEERS: Final = 16_384


@dataclass(slots=True)
class _Peer:
    node: PeerNode
    lost_at: float | None = None


class Peers:
    """The peers by their ids in coordination, 16 bytes each; the tailnet always knows the same ones."""

    def __init__(self, tailnet: Tailnet, clock: Clock) -> None:
        self._tailnet = tailnet
        self._clock = clock
        self._peers: dict[bytes, _Peer] = {}
        self._ignored = Seldom(clock)

    def __len__(self) -> int:
        return len(self._peers)

    def node(self, ident: bytes) -> PeerNode | None:
        """What is known of a peer."""
        peer = self._peers.get(ident)
        return peer.node if peer is not None else None

    def set(self, ident: bytes, message: pb.Node) -> None:
        """Make a peer known or replace what is known of it; a node that is of no use is ignored."""
        try:
            node = read_node(message)
            if not node.home:
                return
            if ident not in self._peers and len(self._peers) >= MAX_PEERS:
                raise NodeError(f"there are {MAX_PEERS} peers already")
            known = self._peers.get(ident)
            if known is not None and known.node.key != node.key:
                self.remove(ident)
            self._tailnet.set_peer(node.key, node.disco, _owned(node), node.home, _endpoints(node))
        except ValueError as error:  # a NodeError, or a key that cannot be used
            if times := self._ignored.tell():
                logger.warning("a peer was ignored: %s (%d times since this was last told)", error, times)
            return
        self._peers[ident] = _Peer(node)

    def remove(self, ident: bytes) -> None:
        """Forget a peer at once."""
        peer = self._peers.pop(ident, None)
        if peer is not None and all(other.node.key != peer.node.key for other in self._peers.values()):
            self._tailnet.remove_peer(peer.node.key)

    def lose(self, ident: bytes) -> None:
        """The control plane has lost sight of a peer, which may live on."""
        if (peer := self._peers.get(ident)) is not None:
            peer.lost_at = self._clock.now()

    def lose_all(self) -> None:
        """This node has lost sight of the control plane."""
        now = self._clock.now()
        for peer in self._peers.values():
            peer.lost_at = peer.lost_at if peer.lost_at is not None else now

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
                    self.remove(ident)


def describe(tailnet: Tailnet, ident: UUID, state: NodeState, clock: Clock) -> pb.Node:
    """The message about a node of this process; `ident` only makes its number."""
    wall = clock.wall() // 1000
    addresses = [address_text(address) for address in tailnet.engine.addresses]
    return pb.Node(
        id=node_id(ident),
        as_of=Timestamp(seconds=wall // 1_000_000, nanos=wall % 1_000_000 * 1000),
        key=write_key(tailnet.node_key),
        disco=write_disco(tailnet.disco_key),
        preferred_derp=state.home,
        derp_latency=state.latencies,
        derp_forced_websocket=state.forced_websockets,
        addresses=addresses,
        allowed_ips=addresses,
        endpoints=state.endpoints,
    )


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
    for text in node.endpoints[:MAX_ENDPOINTS]:
        host, _, port = text.rpartition(":")
        try:
            address = ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            continue  # one that is odd costs the others nothing
        if port.isascii() and port.isdigit() and 0 < int(port) < 65536:
            found.append((mapped(address.packed), int(port)))
    return found
