"""yamux: many byte streams over one ordered connection, without input or output (agent-api.md §6.2).

The owner feeds what arrives to `receive_data` and writes what `data_to_send` gives, and calls `handle_timeout` when
`next_timeout` is due. Times are seconds on any monotonic scale. Nothing here keeps received payload: it is handed out
in `DataReceived`, and `consume` tells the session how much of it was read, which is what opens the peer's window again.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

VERSION = 0
HEADER = struct.Struct(">BBHII")
"""Version, type, flags, stream id, length."""

WINDOW = 262_144
"""Bytes of Data that a peer may send on a stream before it needs credit: initial and maximum."""
ACCEPT_BACKLOG = 256
MAX_UNACKNOWLEDGED_OPENS = 256
MAX_INCOMING_STREAMS = 1024
"""Streams of the peer known at once, with those that wait for its FIN; further ones are refused with RST."""
MAX_PENDING_DATA = 262_144
"""Bytes of payload waiting in `data_to_send`; beyond it `send` accepts nothing."""
MAX_PENDING_CONTROL = 1_048_576
"""Bytes of control frames waiting in `data_to_send`: a peer that makes us answer but does not read is cut off."""
MAX_PINGS = 64
MAX_STREAM_ID = 2**32 - 2

KEEPALIVE_INTERVAL = 30.0
KEEPALIVE_TIMEOUT = 10.0
OPEN_TIMEOUT = 75.0
CLOSE_TIMEOUT = 300.0


class FrameType(enum.IntEnum):
    """What a frame is."""

    DATA = 0
    WINDOW_UPDATE = 1
    PING = 2
    GO_AWAY = 3


SYN, ACK, FIN, RST = 1, 2, 4, 8

# Plain integers for the loops: looking up an enumeration member costs more than the comparison.
_DATA, _WINDOW_UPDATE, _PING, _GO_AWAY = 0, 1, 2, 3


class GoAwayCode(enum.IntEnum):
    """Why a side wants no more streams."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class Role(enum.Enum):
    """Which side of the connection this is; the client's streams have odd ids, the server's even ones."""

    CLIENT = 1
    SERVER = 2


class YamuxError(Exception):
    """Base of this module's errors."""


class SessionError(YamuxError):
    """The connection is of no more use and must be closed."""


class ProtocolViolationError(SessionError):
    """The peer broke a rule; it was told so with GoAway 1, unless it does not speak yamux 0 at all."""


class KeepaliveTimeoutError(SessionError):
    """A ping of ours was not answered within 10 s."""


class OpenTimeoutError(SessionError):
    """The peer did not acknowledge a stream within 75 s."""


class PeerGoneError(SessionError):
    """The peer said GoAway with an error code, which is in `code`."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the peer closed the connection with GoAway {code}")
        self.code = code


class SessionClosedError(YamuxError):
    """Something was asked of a session that had failed before."""


class OpenRefusedError(YamuxError):
    """No stream can be opened on this connection any more: GoAway was received, or the ids are used up."""


class OpenLimitError(YamuxError):
    """256 opens wait for their ACK; a later open succeeds after a `StreamAcknowledged` or `StreamReset`."""


class StreamClosedError(YamuxError):
    """The stream is unknown, was reset, or its sending side was closed."""


class PingLimitError(YamuxError):
    """Too many pings are unanswered."""


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream, which has been acknowledged; `accept` gives its place in the backlog back."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamAcknowledged:
    """The peer accepted a stream of ours."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Part of a stream's bytes. Where a frame is cut depends on how the bytes arrived; their order does not."""

    stream_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class WindowOpened:
    """The peer gave credit: `send` accepts more on this stream."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamFinished:
    """The peer sent FIN: no more data comes. The other direction stays open."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The stream is gone in both directions: RST came, or the peer's FIN did not within 5 minutes of ours."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class PingAnswered:
    """`rtt` is in seconds."""

    ping_id: int
    rtt: float


@dataclass(frozen=True, slots=True)
class GoAwayReceived:
    """The peer takes no new streams (code 0); those that exist go on."""


@dataclass(frozen=True, slots=True)
class SessionFailed:
    """Always the last event. Send what `data_to_send` still has, then close the connection."""

    error: SessionError


Event: TypeAlias = (
    StreamOpened
    | StreamAcknowledged
    | DataReceived
    | WindowOpened
    | StreamFinished
    | StreamReset
    | PingAnswered
    | GoAwayReceived
    | SessionFailed
)


class _Stream:
    __slots__ = ("buffered", "incoming", "local_closed", "receive_window", "remote_closed", "send_window")

    def __init__(self, incoming: bool) -> None:
        self.incoming = incoming
        self.send_window = WINDOW
        self.receive_window = WINDOW
        self.buffered = 0
        """Bytes announced by the peer and not yet consumed."""
        self.local_closed = False
        self.remote_closed = False


class YamuxSession:
    """One side of a connection.

    Every method that changes something may add to `data_to_send`. Once `error` is set the session is dead: received
    data is ignored, and methods raise `SessionClosedError`.
    """

    def __init__(self, role: Role, now: float) -> None:
        self._role = role
        self._streams: dict[int, _Stream] = {}
        self._incoming = 0
        self._backlog: set[int] = set()
        self._next_id = role.value
        # Insertion order is order of deadlines in the dictionaries below.
        self._unacknowledged: dict[int, float] = {}
        self._closing: dict[int, float] = {}
        self._pings: dict[int, float] = {}
        self._next_ping_id = 0
        self._keepalive_id: int | None = None
        self._keepalive_due = now + KEEPALIVE_INTERVAL
        self._local_go_away = False
        self._remote_go_away = False
        self._error: SessionError | None = None
        # A header that has not arrived completely; then the frame whose payload is still coming.
        self._partial = bytearray()
        self._payload_left = 0
        self._payload_stream = 0
        self._payload_known = False
        self._payload_fin = False
        self._out: deque[bytes] = deque()
        self._pending_data = 0
        self._pending_control = 0

    @property
    def error(self) -> SessionError | None:
        """Why the session is dead, if it is."""
        return self._error

    @property
    def pending(self) -> int:
        """Bytes in `data_to_send`."""
        return self._pending_data + self._pending_control

    @property
    def open_slots(self) -> int:
        """How many streams may be opened before an ACK is needed."""
        return MAX_UNACKNOWLEDGED_OPENS - len(self._unacknowledged)

    def knows(self, stream_id: int) -> bool:
        """Whether the stream exists: it is forgotten once both sides sent FIN, or either RST."""
        return stream_id in self._streams

    # ---- sending

    def open_stream(self, now: float) -> int:
        """Open a stream; data may be sent on it at once. Raises `OpenLimitError`, `OpenRefusedError`."""
        self._check_alive()
        if self._remote_go_away:
            raise OpenRefusedError("the peer takes no new streams (GoAway)")
        if self._next_id > MAX_STREAM_ID:
            raise OpenRefusedError("the stream ids of this connection are used up")
        if len(self._unacknowledged) >= MAX_UNACKNOWLEDGED_OPENS:
            raise OpenLimitError(f"{MAX_UNACKNOWLEDGED_OPENS} streams wait for the peer's acknowledgement")
        stream_id = self._next_id
        self._next_id += 2
        self._streams[stream_id] = _Stream(incoming=False)
        self._unacknowledged[stream_id] = now + OPEN_TIMEOUT
        self._control(_WINDOW_UPDATE, SYN, stream_id, 0)
        return stream_id

    def accept(self, stream_id: int) -> None:
        """Take a stream of the peer's out of the backlog; no effect if it is gone."""
        self._backlog.discard(stream_id)

    def send(self, stream_id: int, data: bytes | memoryview) -> int:
        """Queue as much of `data` as the window and the outgoing buffer allow; returns how many bytes that was.

        0 means: try again after `WindowOpened`, or after `data_to_send` was emptied.
        """
        stream = self._writable(stream_id)
        accepted = min(len(data), stream.send_window, MAX_PENDING_DATA - self._pending_data)
        if accepted <= 0:
            return 0
        self._out.append(HEADER.pack(VERSION, _DATA, 0, stream_id, accepted))
        self._out.append(bytes(data) if accepted == len(data) else bytes(memoryview(data)[:accepted]))
        self._pending_data += HEADER.size + accepted
        stream.send_window -= accepted
        return accepted

    def credit(self, stream_id: int) -> int:
        """Bytes that the peer's window of the stream still takes; 0 when the stream is gone."""
        stream = self._streams.get(stream_id)
        return stream.send_window if stream is not None else 0

    def consume(self, stream_id: int, count: int) -> None:
        """`count` received bytes were read: give the peer credit once that is worth a frame (§6.2 item 4)."""
        stream = self._streams.get(stream_id)
        if stream is None or self._error is not None:
            return
        if count > stream.buffered:
            raise ValueError(f"{count} bytes consumed of stream {stream_id}, which has {stream.buffered}")
        stream.buffered -= count
        delta = WINDOW - stream.buffered - stream.receive_window
        if delta >= WINDOW // 2 and not stream.remote_closed:
            stream.receive_window += delta
            self._control(_WINDOW_UPDATE, 0, stream_id, delta)

    def close(self, stream_id: int, now: float) -> None:
        """Send FIN: we send no more. No effect if that was done, or if the stream is gone."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.local_closed or self._error is not None:
            return
        stream.local_closed = True
        self._control(_WINDOW_UPDATE, FIN, stream_id, 0)
        if stream.remote_closed:
            self._forget(stream_id)
        else:
            self._closing[stream_id] = now + CLOSE_TIMEOUT

    def reset(self, stream_id: int) -> None:
        """Send RST: the stream is gone at once. No effect if it is already."""
        if stream_id in self._streams and self._error is None:
            self._control(_WINDOW_UPDATE, RST, stream_id, 0)
            self._forget(stream_id)

    def ping(self, now: float) -> int:
        """Send a ping; its id comes back in `PingAnswered`. Nothing here limits the wait: see `forget_ping`."""
        self._check_alive()
        if len(self._pings) >= MAX_PINGS:
            raise PingLimitError(f"{MAX_PINGS} pings are unanswered")
        ping_id = self._next_ping_id
        self._next_ping_id = (ping_id + 1) & 0xFFFFFFFF
        self._pings[ping_id] = now
        self._control(_PING, SYN, 0, ping_id)
        return ping_id

    def forget_ping(self, ping_id: int) -> None:
        """An answer that still comes is ignored."""
        self._pings.pop(ping_id, None)

    def go_away(self, code: GoAwayCode = GoAwayCode.NORMAL) -> None:
        """Tell the peer to open no more streams; those it opens nevertheless are reset."""
        self._check_alive()
        self._local_go_away = True
        self._control(_GO_AWAY, 0, 0, code)

    def data_to_send(self) -> list[bytes]:
        """What to write now, in order; it is the caller's from here on."""
        chunks = list(self._out)
        self._out.clear()
        self._pending_data = self._pending_control = 0
        return chunks

    # ---- time

    def next_timeout(self) -> float | None:
        """When `handle_timeout` is due at the latest; None on a dead session."""
        if self._error is not None:
            return None
        due = self._keepalive_due
        for deadlines in (self._unacknowledged, self._closing):
            for deadline in deadlines.values():
                due = min(due, deadline)
                break
        return due

    def handle_timeout(self, now: float) -> list[Event]:
        """Do what is due: keep-alive, and the limits on opening and closing streams."""
        events: list[Event] = []
        if self._error is not None:
            return events
        for stream_id, deadline in self._unacknowledged.items():
            if deadline <= now:
                error = OpenTimeoutError(f"stream {stream_id} was not acknowledged within {OPEN_TIMEOUT:g} s")
                return [self._fail(error)]
            break
        if self._keepalive_due <= now:
            if self._keepalive_id is not None:
                return [self._fail(KeepaliveTimeoutError(f"no answer to a ping within {KEEPALIVE_TIMEOUT:g} s"))]
            if len(self._pings) < MAX_PINGS:
                self._keepalive_id = self.ping(now)
                self._keepalive_due = now + KEEPALIVE_TIMEOUT
            else:  # the pings of the owner show as well whether the peer is there
                self._keepalive_due = now + KEEPALIVE_INTERVAL
        for stream_id in [stream_id for stream_id, deadline in self._closing.items() if deadline <= now]:
            self.reset(stream_id)
            events.append(StreamReset(stream_id))
        return events

    # ---- receiving

    def receive_data(self, data: bytes | memoryview, now: float) -> list[Event]:
        """Take bytes off the wire, cut anywhere. A violation is told as `SessionFailed`, never raised."""
        events: list[Event] = []
        view = memoryview(data)
        size = len(view)
        at = 0
        while at < size and self._error is None:
            if self._payload_left:
                count = min(self._payload_left, size - at)
                self._receive_payload(view[at : at + count], events)
                at += count
            elif self._partial or size - at < HEADER.size:
                count = min(HEADER.size - len(self._partial), size - at)
                self._partial += view[at : at + count]
                at += count
                if len(self._partial) == HEADER.size:
                    header = HEADER.unpack(self._partial)
                    self._partial.clear()
                    self._receive_header(header, now, events)
            else:
                header = HEADER.unpack_from(view, at)
                at += HEADER.size
                self._receive_header(header, now, events)
        return events

    def _receive_payload(self, part: memoryview, events: list[Event]) -> None:
        self._payload_left -= len(part)
        if self._payload_known:
            stream = self._streams.get(self._payload_stream)
            # Reset by us while the payload was arriving: the rest is drained.
            if stream is not None:
                events.append(DataReceived(self._payload_stream, bytes(part)))
                if not self._payload_left and self._payload_fin:
                    self._finish(self._payload_stream, stream, events)

    def _receive_header(self, header: tuple[int, int, int, int, int], now: float, events: list[Event]) -> None:
        version, kind, flags, stream_id, length = header
        if version != VERSION:
            events.append(self._fail(ProtocolViolationError(f"unknown yamux version {version}")))
        elif kind <= _WINDOW_UPDATE:
            self._receive_stream_frame(kind, flags, stream_id, length, events)
        elif kind == _PING:
            self._receive_ping(flags, length, now, events)
        elif kind == _GO_AWAY:
            if length == GoAwayCode.NORMAL:
                self._remote_go_away = True
                events.append(GoAwayReceived())
            else:
                events.append(self._fail(PeerGoneError(length)))
        else:
            events.append(self._fail(ProtocolViolationError(f"unknown yamux frame type {kind}")))
        if self._pending_control > MAX_PENDING_CONTROL and self._error is None:
            events.append(self._fail(ProtocolViolationError("the peer asks for answers that it does not read")))

    def _receive_ping(self, flags: int, ping_id: int, now: float, events: list[Event]) -> None:
        if flags & SYN:
            self._control(_PING, ACK, 0, ping_id)
            return
        sent = self._pings.pop(ping_id, None)
        if sent is None:
            return
        if ping_id == self._keepalive_id:
            self._keepalive_id = None
            self._keepalive_due = now + KEEPALIVE_INTERVAL
        else:
            events.append(PingAnswered(ping_id, now - sent))

    def _receive_stream_frame(self, kind: int, flags: int, stream_id: int, length: int, events: list[Event]) -> None:
        if flags & SYN and not self._receive_open(stream_id, events):
            return
        stream = self._streams.get(stream_id)
        if stream is not None and flags & ACK and self._unacknowledged.pop(stream_id, None) is not None:
            events.append(StreamAcknowledged(stream_id))
        if stream is not None and flags & RST:
            self._forget(stream_id)
            events.append(StreamReset(stream_id))
            stream = None
        if kind == _WINDOW_UPDATE:
            if stream is None:
                return
            if length and not stream.local_closed:
                stream.send_window = min(stream.send_window + length, 0xFFFFFFFF)
                events.append(WindowOpened(stream_id))
            if flags & FIN:
                self._finish(stream_id, stream, events)
            return
        self._payload_left = length
        self._payload_stream = stream_id
        self._payload_known = False
        if stream is None:
            return
        if stream.remote_closed and not flags & FIN:
            # A Go peer whose Write races its Close sends this: what comes after the FIN is dropped.
            return
        if length > stream.receive_window:
            text = f"stream {stream_id}: {length} bytes sent into a window of {stream.receive_window}"
            events.append(self._violation(text))
            return
        stream.receive_window -= length
        stream.buffered += length
        self._payload_known = True
        self._payload_fin = bool(flags & FIN)
        if self._payload_fin and not length:
            self._finish(stream_id, stream, events)

    def _receive_open(self, stream_id: int, events: list[Event]) -> bool:
        """Whether the rest of the frame is to be looked at (for a refused stream it is, to drain its payload)."""
        if stream_id in self._streams:
            events.append(self._violation(f"stream {stream_id} was opened twice"))
            return False
        if stream_id == 0 or stream_id % 2 == self._role.value % 2:
            events.append(self._violation(f"the peer opened stream {stream_id}, an id that is not its to use"))
            return False
        full = len(self._backlog) >= ACCEPT_BACKLOG or self._incoming >= MAX_INCOMING_STREAMS
        if full or self._local_go_away:
            self._control(_WINDOW_UPDATE, RST, stream_id, 0)
            return True
        self._streams[stream_id] = _Stream(incoming=True)
        self._incoming += 1
        self._backlog.add(stream_id)
        # At once, not when the stream is accepted: a Go peer closes the whole connection when the ACK takes 75 s.
        self._control(_WINDOW_UPDATE, ACK, stream_id, 0)
        events.append(StreamOpened(stream_id))
        return True

    def _finish(self, stream_id: int, stream: _Stream, events: list[Event]) -> None:
        if stream.remote_closed:
            events.append(self._violation(f"stream {stream_id} was closed twice"))
            return
        stream.remote_closed = True
        events.append(StreamFinished(stream_id))
        if stream.local_closed:
            self._forget(stream_id)

    # ---- common

    def _control(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        self._out.append(HEADER.pack(VERSION, kind, flags, stream_id, length))
        self._pending_control += HEADER.size

    def _forget(self, stream_id: int) -> None:
        stream = self._streams.pop(stream_id)
        self._incoming -= stream.incoming
        self._backlog.discard(stream_id)
        self._unacknowledged.pop(stream_id, None)
        self._closing.pop(stream_id, None)

    def _writable(self, stream_id: int) -> _Stream:
        self._check_alive()
        stream = self._streams.get(stream_id)
        if stream is None or stream.local_closed:
            raise StreamClosedError(f"stream {stream_id} is closed")
        return stream

    def _check_alive(self) -> None:
        if self._error is not None:
            raise SessionClosedError("the connection has failed") from self._error

    def _violation(self, text: str) -> SessionFailed:
        self._control(_GO_AWAY, 0, 0, GoAwayCode.PROTOCOL_ERROR)
        return self._fail(ProtocolViolationError(text))

    def _fail(self, error: SessionError) -> SessionFailed:
        self._error = error
        self._payload_left = 0
        return SessionFailed(error)
