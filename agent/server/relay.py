"""The DERP relay: which connection gets which datagram, and what happens to those that do not fit (tailnet.md §5.6).

A connection is fed with bytes and gives bytes back; what carries them is a `Link` (`agent.server.api.derp` has those
for HTTP). A peer that does not read loses its own datagrams and, after a while, its connection; nobody waits for it.
"""

from __future__ import annotations

import asyncio
import os
import random
import struct
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from agent.clock import Clock
from agent.protocol import disco, keys
from agent.protocol.derp import (
    KEEP_ALIVE,
    DerpError,
    GoneReason,
    Kind,
    LoggedIn,
    Packets,
    ServerSession,
    peer_gone,
)

QUEUE_PACKETS = 512
QUEUE_BYTES = 1024 * 1024
"""Of each queue of a connection, as datagrams may be up to 64 KiB."""
LOGIN_TIMEOUT = 10.0
KEEP_ALIVE_PERIOD = 60.0
KEEP_ALIVE_JITTER = 5.0
WRITE_TIMEOUT = 2.0
"""A link that takes no byte for so long is cut off."""
MAX_LOGINS = 512
"""Connections that have not yet logged in; each may hold up to 256 KiB of a login. The oldest makes way for one more:
a login takes a round trip, so that who opens many and stops half-way keeps nobody out."""
GONE_BURST, GONE_PERIOD = 3, 1.0
TICK = 1.0

_RECV_HEADER = struct.Struct(">BI32s").pack
_RECV_PACKET = int(Kind.RECV_PACKET)
_DATAGRAM_AT = 37
"""Where the datagram begins in a RecvPacket frame."""

log = structlog.get_logger("agent.server.relay")


class Link(Protocol):
    """What carries a connection's bytes."""

    def wake(self) -> None:
        """There is something to `Connection.take`; called once until it is taken."""

    def abort(self) -> None:
        """Cut the connection off without waiting for anything; `Connection.close` is called, now or soon."""


@dataclass(slots=True)
class Counters:
    """What became of datagrams and connections."""

    forwarded: int = 0
    dropped_full: int = 0
    """Found no room, or made way for newer ones, in the queue of a peer that reads too slowly."""
    dropped_unknown: int = 0
    """Went to a key that is not here."""
    logins: int = 0
    logins_failed: int = 0
    """Broke a rule before they were logged in, or took too long."""
    logins_displaced: int = 0
    """Were not yet logged in when there were too many of them."""
    broken: int = 0
    """Broke a rule of the protocol later."""


class _Queue:
    """Frames on their way out, taken from all sources in turn. When there are too many, the oldest one of the source
    that has most of them makes way: who floods displaces nobody else."""

    __slots__ = ("_sources", "count", "size")

    def __init__(self) -> None:
        self._sources: OrderedDict[bytes, deque[bytes]] = OrderedDict()
        self.count = self.size = 0

    def push(self, frame: bytes, source: bytes = b"") -> int:
        """Returns how many frames were dropped."""
        frames = self._sources.get(source)
        if frames is None:
            frames = self._sources[source] = deque()
        frames.append(frame)
        self.count += 1
        self.size += len(frame)
        dropped = 0
        while self.count > QUEUE_PACKETS or self.size > QUEUE_BYTES:
            self._pop(max(self._sources, key=self._length))
            dropped += 1
        return dropped

    def _length(self, source: bytes) -> int:
        return len(self._sources[source])

    def _pop(self, source: bytes) -> bytes:
        frames = self._sources[source]
        frame = frames.popleft()
        if not frames:
            del self._sources[source]
        self.count -= 1
        self.size -= len(frame)
        return frame

    def take(self, limit: int, into: list[bytes]) -> int:
        """Move frames of about `limit` bytes, at least one where that is above 0; returns their bytes."""
        before = self.size
        if before <= limit:
            for frames in self._sources.values():
                into.extend(frames)
            self._sources.clear()
            self.count = self.size = 0
            return before
        while before - self.size < limit:
            source = next(iter(self._sources))
            into.append(self._pop(source))
            if source in self._sources:
                self._sources.move_to_end(source)
        return before - self.size


class _Client:
    """A node key with at least one connection."""

    __slots__ = ("connections", "key", "sent_to")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.connections: list[Connection] = []
        """The one that was active last is the last one."""
        self.sent_to: set[Connection] = set()
        """Those who want to know when this key is gone."""


class Connection:
    """One connection to the relay. It begins with a greeting to take."""

    def __init__(self, relay: Relay, session: ServerSession, link: Link, now: float, keep_alive: float) -> None:
        self._relay, self._session, self.link = relay, session, link
        self._keep_alive = keep_alive
        self._due = now + LOGIN_TIMEOUT
        self._opened = now
        self._control, self._disco, self._data = _Queue(), _Queue(), _Queue()
        self._woken = False
        self._gone_tokens, self._gone_at = float(GONE_BURST), now
        self.client: _Client | None = None
        self.heard_from: set[_Client] = set()
        """Whose `sent_to` this connection is in."""
        self.closed = False

    @property
    def key(self) -> bytes:
        """The client's node key; empty before the login."""
        return self._session.client_key

    def receive(self, data: bytes) -> None:
        """Bytes of the client. Raises `DerpError`: the link is then to be closed."""
        if self.closed:
            return
        try:
            packets, events = self._session.receive(data)
        except DerpError:
            if self.client is None:
                self._relay.counters.logins_failed += 1
            else:
                self._relay.counters.broken += 1
            raise
        for event in events:
            if isinstance(event, LoggedIn):
                self._relay.log_in(self, event.key)
        self.flush_session()
        if packets:
            self._relay.forward(self, packets)

    def flush_session(self) -> None:
        """Queue what the session has to say."""
        for frame in self._session.data_to_send():
            self.tell(frame)

    def tell(self, frame: bytes) -> None:
        """Queue a frame that is no datagram."""
        self._control.push(frame)
        self.wake()

    def push(self, frame: bytes, source: bytes) -> None:
        """Queue a RecvPacket frame of a datagram from that node key."""
        queue = self._disco if frame.startswith(disco.MAGIC, _DATAGRAM_AT) else self._data
        dropped = queue.push(frame, source)
        if dropped:
            self._relay.counters.dropped_full += dropped
        if not self._woken:
            self.wake()

    def wake(self) -> None:
        if not self._woken and not self.closed:
            self._woken = True
            self.link.wake()

    def take(self, limit: int) -> list[bytes]:
        """Frames to write, of about `limit` bytes; none when there is nothing, and the link is woken again later."""
        frames: list[bytes] = []
        for queue in (self._control, self._disco, self._data):
            if queue.count and limit > 0:
                limit -= queue.take(limit, frames)
        self._woken = bool(frames)
        return frames

    def may_tell_gone(self, now: float) -> bool:
        """Whether one more PeerGone of a peer that is not here is within the limit."""
        self._gone_tokens = min(self._gone_tokens + (now - self._gone_at) / GONE_PERIOD, GONE_BURST)
        self._gone_at = now
        if self._gone_tokens < 1:
            return False
        self._gone_tokens -= 1
        return True

    def tick(self, now: float) -> None:
        """What time brings: the end of a login that takes too long, and keep-alives."""
        if now < self._due:
            return
        if self.client is None:
            self._relay.counters.logins_failed += 1
            self.link.abort()
            return
        if self._due < self._opened + self._keep_alive:  # that was the deadline of the login
            self._due = self._opened + self._keep_alive
        else:
            self.tell(KEEP_ALIVE)
            self._due = now + self._keep_alive

    def close(self) -> None:
        """The link is gone. Idempotent."""
        if not self.closed:
            self.closed = True
            self._control, self._disco, self._data = _Queue(), _Queue(), _Queue()
            self._relay.disconnect(self)


class Relay:
    """All connections of one process. `run` must go on while there are any."""

    def __init__(
        self,
        clock: Clock,
        *,
        private_key: bytes = b"",
        uniform: Callable[[float, float], float] = random.uniform,
        entropy: keys.Random = os.urandom,
    ) -> None:
        self._clock, self._uniform, self._entropy = clock, uniform, entropy
        self._private_key = private_key or keys.generate(entropy)
        self.public_key = keys.public_key(self._private_key)
        self._connections: set[Connection] = set()
        self._logging_in: dict[Connection, None] = {}
        self._clients: dict[bytes, _Client] = {}
        self._busy = asyncio.Event()
        self.counters = Counters()

    @property
    def clients(self) -> int:
        """How many node keys are here."""
        return len(self._clients)

    def connect(self, link: Link) -> Connection:
        """A new connection, whose greeting `link` is woken for."""
        if len(self._logging_in) >= MAX_LOGINS:
            oldest = next(iter(self._logging_in))
            self.counters.logins_displaced += 1
            oldest.link.abort()
            oldest.close()
        session = ServerSession(self._private_key, self._entropy)
        keep_alive = KEEP_ALIVE_PERIOD + self._uniform(0, KEEP_ALIVE_JITTER)
        connection = Connection(self, session, link, self._clock.now(), keep_alive)
        self._connections.add(connection)
        self._logging_in[connection] = None
        self._busy.set()
        connection.flush_session()
        return connection

    async def run(self) -> None:
        """Deadlines and keep-alives."""
        while True:
            await self._busy.wait()
            await self._clock.sleep(TICK)
            now = self._clock.now()
            for connection in tuple(self._connections):
                connection.tick(now)
            if not self._connections:
                self._busy.clear()

    def log_in(self, connection: Connection, key: bytes) -> None:
        """The client proved that it has `key`: from now on, it is the connection that `key` is reached by."""
        client = self._clients.get(key)
        if client is None:
            client = self._clients[key] = _Client(key)
        client.connections.append(connection)
        connection.client = client
        del self._logging_in[connection]
        self.counters.logins += 1

    def disconnect(self, connection: Connection) -> None:
        """Forget a connection, and tell whom it concerns when it was the last one of its key."""
        self._connections.discard(connection)
        for sender in connection.heard_from:
            sender.sent_to.discard(connection)
        connection.heard_from.clear()
        client = connection.client
        if client is None:
            del self._logging_in[connection]
            return
        client.connections.remove(connection)
        if client.connections:
            return
        del self._clients[client.key]
        gone = peer_gone(client.key, GoneReason.DISCONNECTED)
        for receiver in client.sent_to:
            receiver.heard_from.discard(client)
            receiver.tell(gone)
        client.sent_to.clear()

    def forward(self, connection: Connection, packets: Packets) -> None:
        """Queue datagrams of a client where they go to."""
        client = connection.client
        assert client is not None, "the session takes packets only after the login"
        if client.connections[-1] is not connection:
            client.connections.remove(connection)
            client.connections.append(connection)
        clients, sent_to, source = self._clients, client.sent_to, client.key
        forwarded = 0
        for key, datagram in packets:
            destination = clients.get(key)
            if destination is None:
                self._not_here(connection, key, datagram)
                continue
            receiver = destination.connections[-1]
            if receiver not in sent_to:
                sent_to.add(receiver)
                receiver.heard_from.add(client)
            receiver.push(_RECV_HEADER(_RECV_PACKET, 32 + len(datagram), source) + datagram, source)
            forwarded += 1
        self.counters.forwarded += forwarded

    def _not_here(self, connection: Connection, key: bytes, datagram: bytes) -> None:
        self.counters.dropped_unknown += 1
        if (
            len(datagram) >= disco.HEADER_SIZE
            and disco.is_disco(datagram)
            and connection.may_tell_gone(self._clock.now())
        ):
            connection.tell(peer_gone(key, GoneReason.NOT_HERE))
