"""Who hears of whom: the coordinator as pure state (tailnet.md §3.8).

Peers connect under an id, tell their node, and open tunnels to other ids; the coordinator tells both ends of a tunnel
about each other. It does no I/O, and does not know who may do what: that is `agent.server.tailnet_rpc.policies`.
Whoever drives it hands in requests, and takes responses from the `Connection` when its `wake` was called.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from uuid import UUID

from agent.api.proto import tailnet_pb2 as pb

MAX_PENDING: Final = 512
"""Responses that a connection may leave lying; a peer that lets more pile up is removed."""
MAX_BATCH: Final = 1024
"""Updates of one response."""
MAX_NODE: Final = 32 * 1024
"""Bytes of a node. Real ones have less than 2 KiB; every byte is sent to, and kept for, every tunnel peer."""
MAX_READY: Final = 4 * MAX_BATCH
"""Peers of one ready_for_handshake; an agent names those that one response told it of."""

Update = pb.CoordinateResponse.PeerUpdate


class RequestError(Exception):
    """A request that breaks the protocol and ends its stream; the text is for the peer."""


class _Node(NamedTuple):
    message: pb.Node
    encoded: bytes


@dataclass(eq=False, slots=True)
class Connection:
    """One peer's stream. `wake` is called when there is something to take, or the stream is to end."""

    id: UUID
    wake: Callable[[], None]
    limit: int = MAX_PENDING
    """Responses that may lie here."""
    node: _Node | None = None
    ended: bool = False
    """No more responses come than those that lie here: the stream is to be closed once they are sent."""
    _pending: deque[pb.CoordinateResponse] = field(default_factory=deque)
    _waiting: dict[tuple[UUID, bool], Update] = field(default_factory=dict)
    """The updates that lie here, by peer and by whether they say that it is ready."""
    _sent: dict[UUID, bytes] = field(default_factory=dict)
    """The nodes that this peer was told of, as they were told."""

    def take(self) -> pb.CoordinateResponse | None:
        """The oldest response that was not taken."""
        if not self._pending:
            return None
        response = self._pending.popleft()
        for update in response.peer_updates:
            del self._waiting[_slot(update)]
        return response

    @property
    def pending(self) -> int:
        """How many responses lie here."""
        return len(self._pending)

    # ---- called by the coordinator

    def filter(self, update: Update, encoded: bytes = b"") -> bool:
        """Whether this peer needs the update: nothing twice, and no end of what it never heard of."""
        peer = UUID(bytes=update.id)
        if update.kind == Update.NODE:
            if self._sent.get(peer) == encoded:
                return False
            self._sent[peer] = encoded
            return True
        if update.kind in (Update.LOST, Update.DISCONNECTED):
            return self._sent.pop(peer, None) is not None
        return True

    def push(self, response: pb.CoordinateResponse) -> bool:
        """False: there is no room, and the response is not kept.

        What says something newer about a peer takes the place of an update that still lies here. So nobody fills the
        queue of another by saying much, however slowly that one reads.
        """
        if len(response.peer_updates) == 1:
            update = response.peer_updates[0]
            older = self._waiting.get(_slot(update))
            if older is not None:
                older.CopyFrom(update)
                return True
        if len(self._pending) >= self.limit:
            return False
        self._pending.append(response)
        for update in response.peer_updates:
            self._waiting[_slot(update)] = update
        self.wake()
        return True

    def end(self, error: str = "") -> None:
        """The error goes past a full queue: it is the last response."""
        if error:
            self._pending.append(pb.CoordinateResponse(error=error))
        self.ended = True
        self.wake()


class _Tunnels:
    """Pairs of source and destination, found from both ends."""

    def __init__(self) -> None:
        self._from: defaultdict[UUID, set[UUID]] = defaultdict(set)
        self._to: defaultdict[UUID, set[UUID]] = defaultdict(set)

    def add(self, source: UUID, destination: UUID) -> None:
        self._from[source].add(destination)
        self._to[destination].add(source)

    def remove(self, source: UUID, destination: UUID) -> bool:
        """Whether there was one."""
        if destination not in self._from.get(source, ()):
            return False
        for table, key, value in ((self._from, source, destination), (self._to, destination, source)):
            table[key].discard(value)
            if not table[key]:
                del table[key]
        return True

    def remove_from(self, source: UUID) -> None:
        for destination in tuple(self._from.get(source, ())):
            self.remove(source, destination)

    def peers(self, peer: UUID) -> list[UUID]:
        """The other ends, each once, in the order of their ids, so that the same happens every time."""
        return sorted(self._from.get(peer, set()) | self._to.get(peer, set()))

    def joins(self, one: UUID, other: UUID) -> bool:
        return other in self._from.get(one, ()) or one in self._from.get(other, ())


class Coordinator:
    """All peers of one server. Not thread-safe; every call is short, and none of them waits."""

    def __init__(self) -> None:
        self._peers: dict[UUID, Connection] = {}
        self._tunnels = _Tunnels()
        self._closed = False
        self._full: deque[tuple[Connection, str]] = deque()
        self.overflows = 0
        """Peers that were removed because they did not take their responses."""
        self.refused = 0
        """Streams that were broken off for what their peers asked."""

    def __len__(self) -> int:
        return len(self._peers)

    def node(self, peer: UUID) -> pb.Node | None:
        """What a connected peer told of itself last."""
        connection = self._peers.get(peer)
        return None if connection is None or connection.node is None else connection.node.message

    def connect(self, peer: UUID, wake: Callable[[], None], limit: int = MAX_PENDING) -> Connection:
        """A new stream. An older one of the same id ends, without its tunnel peers hearing anything.

        A peer that leaves more than `limit` responses lying is removed.
        """
        old = self._peers.get(peer)
        if old is not None:
            old.end("peer ID overwritten by new connection")
        connection = Connection(peer, wake, limit)
        if self._closed:
            connection.end("coordinator closed")
            return connection
        self._peers[peer] = connection
        known = [(other, self._peers[other].node) for other in self._tunnels.peers(peer) if other in self._peers]
        updates = []
        for other, node in known:
            if node is not None and connection.filter(update := _announce(other, node, "init"), node.encoded):
                updates.append(update)
        for first in range(0, len(updates), MAX_BATCH):
            if not connection.push(pb.CoordinateResponse(peer_updates=updates[first : first + MAX_BATCH])):
                self._overflow(connection, "failed to update tunnel peer mapping")
                break
        return connection

    def handle(self, connection: Connection, request: pb.CoordinateRequest) -> None:
        """One request, which its peer may make. After the end of a connection nothing happens any more.

        Raises `RequestError` for what breaks the protocol; the caller then calls `lose` with its text.
        """
        steps = (
            ("update_self", self._update_self),
            ("add_tunnel", self._add_tunnel),
            ("remove_tunnel", self._remove_tunnel),
            ("disconnect", self._disconnect),
        )
        for name, step in steps:
            if self._is_current(connection) and request.HasField(name):  # type: ignore[arg-type]
                step(connection, request)
        self._ready(connection, request.ready_for_handshake)

    def lose(self, connection: Connection, error: str = "") -> None:
        """The stream broke, or is to be broken off with an error. Does nothing where it has ended already."""
        if self._is_current(connection):
            self.refused += bool(error)
            self._leave(connection, Update.LOST, "lost")
            connection.end(error)

    def close(self) -> None:
        """The server stops. Every peer hears that the others are lost, and why its stream ends."""
        self._closed = True
        peers = list(self._peers.values())
        for connection in peers:
            for other in self._tunnels.peers(connection.id):
                self._tell(other, Update(id=connection.id.bytes, kind=Update.LOST, reason="coordinator close"), "peer")
        self._peers.clear()
        self._tunnels = _Tunnels()
        for connection in peers:
            if not connection.ended:
                connection.end("coordinator closed")

    # ---- requests

    def _update_self(self, connection: Connection, request: pb.CoordinateRequest) -> None:
        if not request.update_self.HasField("node"):
            raise RequestError("update self: node is missing")
        message = request.update_self.node
        encoded = message.SerializeToString(deterministic=True)
        if len(encoded) > MAX_NODE:
            raise RequestError(f"update self: a node of {len(encoded)} bytes is larger than {MAX_NODE}")
        connection.node = _Node(message, encoded)
        for other in self._tunnels.peers(connection.id):
            self._announce(connection, other, "node update", "peer")

    def _add_tunnel(self, connection: Connection, request: pb.CoordinateRequest) -> None:
        destination = _uuid(request.add_tunnel.id, "add tunnel")
        self._tunnels.add(connection.id, destination)
        other = self._peers.get(destination)
        if other is not None:
            self._announce(other, connection.id, "add tunnel", "src")
            self._announce(connection, destination, "add tunnel", "dest")

    def _remove_tunnel(self, connection: Connection, request: pb.CoordinateRequest) -> None:
        destination = _uuid(request.remove_tunnel.id, "remove tunnel")
        if not self._tunnels.remove(connection.id, destination) or self._tunnels.joins(connection.id, destination):
            return
        for receiver, gone, end in ((connection.id, destination, "src"), (destination, connection.id, "dest")):
            update = Update(id=gone.bytes, kind=Update.DISCONNECTED, reason="remove tunnel")
            self._tell(receiver, update, end, verb="remove")

    def _disconnect(self, connection: Connection, _: pb.CoordinateRequest) -> None:
        self._leave(connection, Update.DISCONNECTED, "graceful disconnect")
        connection.end()

    def _ready(self, connection: Connection, items: Sequence[pb.CoordinateRequest.ReadyForHandshake]) -> None:
        if len(items) > MAX_READY:
            raise RequestError(f"ready for handshake: {len(items)} peers are more than {MAX_READY}")
        for item in items:
            if not self._is_current(connection):
                return
            peer = _uuid(item.id, "ready for handshake")
            if self._tunnels.joins(connection.id, peer):
                self._tell(peer, Update(id=connection.id.bytes, kind=Update.READY_FOR_HANDSHAKE), "peer")
                continue
            text = f'ready for handshake error: you do not share a tunnel with "{peer}"'
            if not connection.push(pb.CoordinateResponse(error=text)):
                self._overflow(connection, "failed to update tunnel peer mapping")

    # ---- what they have in common

    def _is_current(self, connection: Connection) -> bool:
        return self._peers.get(connection.id) is connection

    def _announce(self, about: Connection, receiver: UUID, reason: str, end: str) -> None:
        if about.node is not None:
            self._tell(receiver, _announce(about.id, about.node, reason), end, encoded=about.node.encoded)

    def _tell(self, receiver: UUID, update: Update, end: str, *, verb: str = "update", encoded: bytes = b"") -> None:
        connection = self._peers.get(receiver)
        if connection is None or not connection.filter(update, encoded):
            return
        if not connection.push(pb.CoordinateResponse(peer_updates=[update])):
            self._overflow(connection, f"failed to {verb} tunnel {end} mapping")

    def _overflow(self, connection: Connection, error: str) -> None:
        """The peer takes nothing: it is removed, so that its queue stays bounded, and its peers know. Telling them may
        fill their queues in turn, which must not nest as deep as there are peers."""
        self._full.append((connection, error))
        if len(self._full) > 1:
            return
        while self._full:
            connection, error = self._full[0]
            if self._is_current(connection):
                self.overflows += 1
                self._leave(connection, Update.DISCONNECTED, "failed update")
                connection.end(error)
            self._full.popleft()

    def _leave(self, connection: Connection, kind: Update.Kind.ValueType, reason: str) -> None:
        """The peer is gone. Tunnels to it stay, so that it learns who waits for it when it is back."""
        del self._peers[connection.id]
        others = self._tunnels.peers(connection.id)
        self._tunnels.remove_from(connection.id)
        for other in others:
            self._tell(other, Update(id=connection.id.bytes, kind=kind, reason=reason), "peer")


def _announce(peer: UUID, node: _Node, reason: str) -> Update:
    return Update(id=peer.bytes, node=node.message, kind=Update.NODE, reason=reason)


def _slot(update: Update) -> tuple[UUID, bool]:
    return UUID(bytes=update.id), update.kind == Update.READY_FOR_HANDSHAKE


def _uuid(raw: bytes, what: str) -> UUID:
    if len(raw) != 16:
        raise RequestError(f"{what}: invalid UUID (got {len(raw)} bytes)")
    return UUID(bytes=raw)
