"""Bounds, errors, counters and events of the TCP."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from agent.protocol.tcp.connection import Connection


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes are bytes, times seconds (tailnet.md §8.3 names the peers' values)."""

    receive_buffer: int = 4_194_304
    """Unread bytes of a connection: the largest window."""
    send_buffer: int = 4_194_304
    """Written and unacknowledged bytes of a connection."""
    retries: int = 5
    """Unanswered retransmissions of data, or probes, after which the connection is given up …"""
    patience: float = 30.0
    """… but not earlier than this: a path that moves to another relay needs some seconds."""
    syn_retries: int = 6
    keepalive_idle: float = 7200.0
    """Silence after which the peer is asked whether it is there; 0 for never."""
    keepalive_interval: float = 75.0
    keepalive_probes: int = 9
    time_wait: float = 60.0
    fin_wait_2: float = 60.0
    """How long a closed connection waits for the peer's FIN."""
    linger: float = 60.0
    """How long a closed connection goes on sending without progress."""
    pending: int = 1024
    """Incoming connections that are not established; further SYNs are ignored."""
    pending_of_peer: int = 256
    """The same of one address: who floods keeps nobody else out."""
    pending_time: float = 120.0
    """How long an incoming connection waits for `accept` or `refuse`."""
    connections: int = 16_384
    """Connections in all; further SYNs are ignored."""
    connections_of_peer: int = 4096
    """The same of one address."""
    time_waits: int = 4096
    """Remembered connections in TIME_WAIT; beyond it the oldest is forgotten."""
    control: int = 1024
    """Packets without data that wait to be sent; further ones are dropped."""
    challenges: int = 100
    """Challenge acknowledgements per second (RFC 5961 §7)."""


class TcpError(Exception):
    """Base of this package's errors."""


class ConnectionRefusedTcpError(TcpError):
    """The peer answered the SYN with RST."""


class ConnectionResetTcpError(TcpError):
    """The peer sent RST."""


class ConnectionTimeoutTcpError(TcpError):
    """The peer did not answer in time."""


class ConnectionClosedTcpError(TcpError):
    """Something was asked of a connection that has ended or whose sending side was shut."""


class NoFreePortError(TcpError):
    """Every local port of this pair of addresses is in use."""


@dataclass(slots=True)
class Counters:
    """What one connection did."""

    bytes_sent: int = 0
    bytes_received: int = 0
    segments_sent: int = 0
    segments_received: int = 0
    retransmissions: int = 0
    most_retransmissions: int = 0
    """Of any one segment."""
    recoveries: int = 0
    timeouts: int = 0
    probes: int = 0
    spurious: int = 0
    """Retransmissions that turned out to have been needless."""


@dataclass(slots=True)
class StackCounters:
    """What the stack did with packets that no connection took."""

    malformed: int = 0
    bad_checksum: int = 0
    foreign: int = 0
    """For an address that is not ours."""
    resets_sent: int = 0
    backlog_full: int = 0
    challenges: int = 0
    control_dropped: int = 0


class State(enum.Enum):
    """RFC 9293 §3.3.2, with PENDING for an incoming connection that nobody has accepted yet."""

    PENDING = "pending"
    SYN_SENT = "syn-sent"
    SYN_RECEIVED = "syn-received"
    ESTABLISHED = "established"
    FIN_WAIT_1 = "fin-wait-1"
    FIN_WAIT_2 = "fin-wait-2"
    CLOSE_WAIT = "close-wait"
    CLOSING = "closing"
    LAST_ACK = "last-ack"
    CLOSED = "closed"
    """Over; TIME_WAIT is kept by the stack, not by the connection."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A peer wants to connect: the owner calls `accept` or `refuse`."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class Connected:
    """The handshake is done."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class Readable:
    """There are new bytes to read."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class Writable:
    """A write that was not taken completely may be tried again."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class PeerClosed:
    """The peer has sent everything; what was received before can still be read."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection is over; `error` is None if both sides had closed it. Unread bytes can still be read."""

    connection: Connection
    error: TcpError | None


Event: TypeAlias = Incoming | Connected | Readable | Writable | PeerClosed | Closed
