"""What the connections of one stack share: the table, what is to be sent, what has happened."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.protocol.tcp.limits import Event, Limits, StackCounters
from agent.protocol.tcp.segment import MASK

if TYPE_CHECKING:
    from agent.protocol.tcp.connection import Connection

_ADDRESS = 16
"""Bytes of the peer's address, with which keys begin."""


def _uncount(counts: Counter[bytes], key: bytes) -> None:
    peer = key[:_ADDRESS]
    counts[peer] -= 1
    if not counts[peer]:
        del counts[peer]


@dataclass(slots=True)
class TimeWait:
    """What is left of a connection whose both sides are closed (RFC 9293 §3.6.1)."""

    flow: bytes
    seq: int
    ack: int
    window: int
    stamp_offset: int
    stamp_recent: int | None
    expires: float


@dataclass(slots=True)
class Shared:
    """Keys of `table` and `time_waits` are the bytes 8 to 44 of an incoming packet: addresses and ports."""

    limits: Limits
    mss: int
    secret: bytes
    table: dict[bytes, Connection] = field(default_factory=dict)
    time_waits: dict[bytes, TimeWait] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    control: deque[bytes] = field(default_factory=deque)
    ready: deque[Connection] = field(default_factory=deque)
    """Connections that may have something to send, each once."""
    counters: StackCounters = field(default_factory=StackCounters)
    connections_of: Counter[bytes] = field(default_factory=Counter)
    """How many are in `table`, by the peer's address."""
    pending: int = 0
    """Incoming connections that are not established."""
    pending_of: Counter[bytes] = field(default_factory=Counter)
    """The same by the peer's address."""
    challenge_second: int = 0
    challenge_count: int = 0

    def has_room(self, key: bytes) -> bool:
        """Whether one more incoming connection is within the bounds, those of its peer too."""
        limits, peer = self.limits, key[:_ADDRESS]
        return (
            self.pending < limits.pending
            and len(self.table) < limits.connections
            and self.pending_of[peer] < limits.pending_of_peer
            and self.connections_of[peer] < limits.connections_of_peer
        )

    def enter(self, connection: Connection) -> None:
        """Put a connection into the table."""
        self.table[connection.key] = connection
        self.connections_of[connection.key[:_ADDRESS]] += 1

    def leave(self, connection: Connection) -> None:
        """Take it out. Idempotent."""
        if self.table.pop(connection.key, None) is not None:
            _uncount(self.connections_of, connection.key)

    def begin_pending(self, connection: Connection) -> None:
        """An incoming connection waits for being established."""
        self.pending += 1
        self.pending_of[connection.key[:_ADDRESS]] += 1

    def end_pending(self, connection: Connection) -> None:
        """It does no more."""
        self.pending -= 1
        _uncount(self.pending_of, connection.key)

    def identify(self, key: bytes, now: float) -> tuple[int, int]:
        """Initial sequence number and timestamp offset of a flow (RFC 6528, RFC 7323 §5.4)."""
        digest = hashlib.blake2s(key, key=self.secret, digest_size=8).digest()
        isn = (int.from_bytes(digest[:4], "big") + int(now * 250_000)) & MASK
        return isn, int.from_bytes(digest[4:], "big")

    def send_control(self, packet: bytes) -> None:
        """Queue a packet without data; if the driver does not keep up, it counts as lost."""
        if len(self.control) >= self.limits.control:
            self.counters.control_dropped += 1
        else:
            self.control.append(packet)

    def may_challenge(self, now: float) -> bool:
        """Whether one more answer to a segment that does not fit may be sent this second."""
        second = int(now)
        if second != self.challenge_second:
            self.challenge_second, self.challenge_count = second, 0
        self.challenge_count += 1
        if self.challenge_count > self.limits.challenges:
            return False
        self.counters.challenges += 1
        return True

    def wait(self, key: bytes, entry: TimeWait) -> None:
        """Remember a finished connection; the oldest one makes room."""
        waits = self.time_waits
        waits.pop(key, None)
        if len(waits) >= self.limits.time_waits:
            del waits[next(iter(waits))]
        waits[key] = entry
