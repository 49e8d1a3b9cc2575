"""DERP: the frames of a relay connection, and both its ends as pure state (tailnet.md §5.3-5.6).

Bytes in, packets and events out. Who drives a session writes what `data_to_send` returns after every call.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

from nacl.bindings import crypto_box_afternm, crypto_box_open_afternm
from nacl.exceptions import CryptoError

from agent.protocol.keys import KEY_SIZE, KeyFormatError, Random, box_key, public_key

MAGIC: Final = b"DERP\xf0\x9f\x94\x91"
PROTOCOL_VERSION: Final = 2
MAX_DATAGRAM: Final = 65536
MAX_CLIENT_FRAME: Final = 1 << 20
"""A client gives up on a relay that announces a longer frame."""
MAX_CLIENT_INFO: Final = 256 * 1024
MAX_PING: Final = 1000
PING_SIZE: Final = 8
NONCE_SIZE: Final = 24

_HEADER = struct.Struct(">BI")
_RESTARTING = struct.Struct(">II")


class Kind(IntEnum):
    """Frame types (§5.3)."""

    SERVER_KEY = 0x01
    CLIENT_INFO = 0x02
    SERVER_INFO = 0x03
    SEND_PACKET = 0x04
    RECV_PACKET = 0x05
    KEEP_ALIVE = 0x06
    NOTE_PREFERRED = 0x07
    PEER_GONE = 0x08
    PEER_PRESENT = 0x09
    FORWARD_PACKET = 0x0A
    WATCH_CONNS = 0x10
    CLOSE_PEER = 0x11
    PING = 0x12
    PONG = 0x13
    HEALTH = 0x14
    RESTARTING = 0x15


# Looking a member up costs more than the rest of what is done for a packet.
_SEND_PACKET: Final = int(Kind.SEND_PACKET)
_RECV_PACKET: Final = int(Kind.RECV_PACKET)


class GoneReason(IntEnum):
    """Why a peer is not on the relay; other values may arrive."""

    DISCONNECTED = 0
    NOT_HERE = 1


class DerpError(Exception):
    """The other end broke a rule of the protocol: this connection is of no more use."""


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The handshake is over. `key` is the node key of a client that proved to have it, or the key of the relay."""

    key: bytes


@dataclass(frozen=True, slots=True)
class PeerGone:
    """A peer that packets were sent to is not on this relay, or not any more."""

    key: bytes
    reason: int


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The other end is alive."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Health:
    """What the relay thinks is wrong with this connection; empty when nothing is any more."""

    problem: str


@dataclass(frozen=True, slots=True)
class Restarting:
    """The relay is about to restart: come back after so many seconds, and try for so many."""

    reconnect_in: float
    try_for: float


@dataclass(frozen=True, slots=True)
class Preferred:
    """Whether the client calls this relay its home."""

    home: bool


ClientEvent: TypeAlias = LoggedIn | PeerGone | PongReceived | Health | Restarting
ServerEvent: TypeAlias = LoggedIn | Preferred
Packets: TypeAlias = list[tuple[bytes, bytes]]
"""Pairs of a peer's key and a datagram: the source at a client, the destination at the relay."""


class ClientReceived(NamedTuple):
    packets: Packets
    events: list[ClientEvent]


class ServerReceived(NamedTuple):
    packets: Packets
    events: list[ServerEvent]


def frame(kind: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return _HEADER.pack(kind, len(payload)) + payload


def packet_frame(kind: int, key: bytes, datagram: bytes) -> bytes:
    """A SendPacket or RecvPacket frame."""
    return b"".join((_HEADER.pack(kind, KEY_SIZE + len(datagram)), key, datagram))


def peer_gone(key: bytes, reason: GoneReason) -> bytes:
    """A PeerGone frame."""
    return frame(Kind.PEER_GONE, key + bytes((reason,)))


KEEP_ALIVE: Final = frame(Kind.KEEP_ALIVE)


class FrameReader:
    """Bytes cut anywhere in, whole frames out.

    Of the kinds in `limits` it keeps a frame until it is whole; a longer one than its limit is an error as soon as its
    header is there. Frames of all other kinds are passed over without being kept, up to `skip_limit` bytes each.
    """

    def __init__(self, limits: Mapping[int, int], skip_limit: int) -> None:
        self.limits, self.skip_limit = limits, skip_limit
        self._pending = bytearray()
        self._needed = 0
        self._skip = 0

    @property
    def buffered(self) -> int:
        """Bytes kept of a frame that is not whole: at most one frame and the last piece."""
        return len(self._pending)

    def frames(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Kind and payload of each frame that `data` completes. Raises `DerpError`.

        Iterate to the end before the next call. Limits that change in between hold from the next frame on.
        """
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        if self._pending:
            self._pending += data
            if len(self._pending) < self._needed:
                return
            data = bytes(self._pending)
            self._pending.clear()
        at, end = 0, len(data)
        unpack = _HEADER.unpack_from
        while end - at >= 5:
            kind, size = unpack(data, at)
            start = at + 5
            limit = self.limits.get(kind)
            if limit is None:
                if size > self.skip_limit:
                    raise DerpError(f"a frame of kind 0x{kind:02x} and {size} bytes that is not allowed here")
                self._skip = max(start + size - end, 0)
                at = min(start + size, end)
                continue
            if size > limit:
                raise DerpError(f"a frame of kind 0x{kind:02x} with {size} bytes, the limit is {limit}")
            stop = start + size
            if stop > end:
                self._needed = stop - at
                break
            yield kind, data[start:stop]
            at = stop
        else:
            self._needed = 5
        if at < end:
            self._pending += data[at:]


class _Session:
    """What both ends share: output, and at most one pong that is not yet sent."""

    def __init__(self, private_key: bytes, reader: FrameReader, random: Random) -> None:
        self._private_key, self._random = private_key, random
        self._reader = reader
        self._output: list[bytes] = []
        self._pong: bytes | None = None

    @property
    def buffered(self) -> int:
        """Bytes kept of a frame that is not whole."""
        return self._reader.buffered

    @property
    def has_data_to_send(self) -> bool:
        return bool(self._output) or self._pong is not None

    def data_to_send(self) -> list[bytes]:
        """Frames to write now, apart from those that methods return."""
        if not self._output and self._pong is None:
            return []
        output, self._output = self._output, []
        if self._pong is not None:
            output.append(frame(Kind.PONG, self._pong))
            self._pong = None
        return output

    def _ping(self, payload: bytes) -> None:
        if len(payload) < PING_SIZE:
            raise DerpError(f"a ping of {len(payload)} bytes")
        if self._pong is None:  # more of them before it is written are not worth a byte
            self._pong = payload[:PING_SIZE]

    def _seal(self, box: bytes, value: Mapping[str, object]) -> bytes:
        nonce = self._random(NONCE_SIZE)
        return nonce + crypto_box_afternm(json.dumps(value, separators=(",", ":")).encode(), nonce, box)


_CLIENT_KINDS = (
    Kind.SERVER_KEY,
    Kind.SERVER_INFO,
    Kind.RECV_PACKET,
    Kind.KEEP_ALIVE,
    Kind.PEER_GONE,
    Kind.PING,
    Kind.PONG,
    Kind.HEALTH,
    Kind.RESTARTING,
)
_MAX_RATE: Final = (1 << 63) - 1
"""What a relay can say in a number of 64 bits; a larger one is none."""
_CLIENT_LIMITS: Final = MappingProxyType({int(kind): MAX_CLIENT_FRAME for kind in _CLIENT_KINDS})


class ClientSession(_Session):
    """The client's end of one connection, from the relay's first byte on.

    `home` says whether this relay is the client's home.
    """

    def __init__(self, private_key: bytes, *, home: bool, random: Random = os.urandom) -> None:
        super().__init__(private_key, FrameReader(_CLIENT_LIMITS, MAX_CLIENT_FRAME), random)
        self._home = home
        self._server_key = b""
        self._box = b""
        self._bucket: _Bucket | None = None
        self.logged_in = False
        """Whether the relay took the login in. Packets may be sent before, as soon as `greeted`."""

    @property
    def greeted(self) -> bool:
        """Whether the relay's key is known, so that frames after the login may be written."""
        return bool(self._server_key)

    def receive(self, data: bytes) -> ClientReceived:
        """What the relay sent. Raises `DerpError`."""
        packets: Packets = []
        events: list[ClientEvent] = []
        for kind, payload in self._reader.frames(data):
            if kind == _RECV_PACKET:
                if len(payload) < KEY_SIZE:
                    raise DerpError(f"a RecvPacket frame of {len(payload)} bytes")
                packets.append((payload[:KEY_SIZE], payload[KEY_SIZE:]))
            elif kind == Kind.SERVER_KEY:
                self._greet(payload)
            elif not self._server_key:
                raise DerpError(f"the relay began with a frame of kind 0x{kind:02x}")
            elif kind == Kind.PING:
                self._ping(payload)
            elif kind != Kind.KEEP_ALIVE:
                event = self._event(kind, payload)
                if event is not None:
                    events.append(event)
        if packets and not self._server_key:
            raise DerpError("the relay began with a packet")
        return ClientReceived(packets, events)

    def packet(self, destination: bytes, datagram: bytes, now: float) -> bytes:
        """The frame that sends a datagram; empty where the rate that the relay asked for does not allow it."""
        if self._bucket is not None and not self._bucket.take(5 + KEY_SIZE + len(datagram), now):
            return b""
        return packet_frame(Kind.SEND_PACKET, destination, datagram)

    def set_home(self, home: bool) -> None:
        """Whether this relay is the client's home; it is told when that changes."""
        if home != self._home:
            self._home = home
            if self.greeted:
                self._note_preferred()

    def ping(self, data: bytes) -> None:
        """Ask for a `PongReceived` with the same 8 bytes. Only after the login."""
        assert self.logged_in
        assert len(data) == PING_SIZE
        self._output.append(frame(Kind.PING, data))

    def _note_preferred(self) -> None:
        self._output.append(frame(Kind.NOTE_PREFERRED, bytes((self._home,))))

    def _greet(self, payload: bytes) -> None:
        if len(payload) < len(MAGIC) + KEY_SIZE or not payload.startswith(MAGIC):
            raise DerpError("the relay did not begin with its key: this is no DERP relay")
        if self._server_key:
            raise DerpError("the relay sent its key twice")
        self._server_key = payload[len(MAGIC) : len(MAGIC) + KEY_SIZE]
        try:
            self._box = box_key(self._private_key, self._server_key)
        except KeyFormatError as error:
            raise DerpError(f"the relay has {error}") from error
        login = self._seal(self._box, {"version": PROTOCOL_VERSION, "CanAckPings": True})
        self._output.append(frame(Kind.CLIENT_INFO, public_key(self._private_key) + login))
        if self._home:
            self._note_preferred()

    def _event(self, kind: int, payload: bytes) -> ClientEvent | None:
        if kind == Kind.PEER_GONE:
            if len(payload) < KEY_SIZE:
                raise DerpError(f"a PeerGone frame of {len(payload)} bytes")
            return PeerGone(payload[:KEY_SIZE], payload[KEY_SIZE] if len(payload) > KEY_SIZE else 0)
        if kind == Kind.PONG:
            if len(payload) < PING_SIZE:
                raise DerpError(f"a Pong frame of {len(payload)} bytes")
            return PongReceived(payload[:PING_SIZE])
        if kind == Kind.HEALTH:
            return Health(payload.decode("utf-8", "replace"))
        if kind == Kind.SERVER_INFO:
            return self._server_info(payload)
        if len(payload) < _RESTARTING.size:
            raise DerpError(f"a Restarting frame of {len(payload)} bytes")
        reconnect_in, try_for = _RESTARTING.unpack_from(payload)
        return Restarting(reconnect_in / 1000, try_for / 1000)

    def _server_info(self, payload: bytes) -> LoggedIn | None:
        info = _open(payload, self._box)
        if self.logged_in:
            return None
        rate, burst = info.get("tokenbucketbytespersecond"), info.get("tokenbucketbytesburst")
        if isinstance(rate, int) and 0 < rate <= _MAX_RATE:
            self._bucket = _Bucket(rate, min(max(burst, 0), _MAX_RATE) if isinstance(burst, int) else 0)
        self.logged_in = True
        return LoggedIn(self._server_key)


class _Bucket:
    """The rate that a relay asks its clients to keep (§5.4)."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens: float = burst
        self._last: float | None = None

    def take(self, size: int, now: float) -> bool:
        if self._last is not None:
            self._tokens = min(self._tokens + (now - self._last) * self._rate, self._burst)
        self._last = now
        if size > self._tokens:
            return False
        self._tokens -= size
        return True


_LOGIN_LIMITS: Final = MappingProxyType({int(Kind.CLIENT_INFO): MAX_CLIENT_INFO})
_SERVER_LIMITS: Final = MappingProxyType(
    {
        int(Kind.SEND_PACKET): KEY_SIZE + MAX_DATAGRAM,
        int(Kind.NOTE_PREFERRED): 1,
        int(Kind.PING): MAX_PING,
        # Frames of mesh members: nobody is one here, so the header alone ends the connection.
        int(Kind.FORWARD_PACKET): -1,
        int(Kind.WATCH_CONNS): -1,
        int(Kind.CLOSE_PEER): -1,
    }
)
_NOTHING: Final = -1
_ANYTHING: Final = 1 << 32


class ServerSession(_Session):
    """The relay's end of one connection. `data_to_send` has the greeting from the beginning."""

    def __init__(self, private_key: bytes, random: Random = os.urandom) -> None:
        super().__init__(private_key, FrameReader(_LOGIN_LIMITS, _NOTHING), random)
        self.client_key = b""
        """The client's node key; empty until it has proved that it has it."""
        self._output.append(frame(Kind.SERVER_KEY, MAGIC + public_key(private_key)))

    def receive(self, data: bytes) -> ServerReceived:
        """What the client sent. Raises `DerpError`."""
        packets: Packets = []
        events: list[ServerEvent] = []
        for kind, payload in self._reader.frames(data):
            if kind == _SEND_PACKET:
                if len(payload) < KEY_SIZE:
                    raise DerpError(f"a SendPacket frame of {len(payload)} bytes")
                packets.append((payload[:KEY_SIZE], payload[KEY_SIZE:]))
            elif kind == Kind.CLIENT_INFO:
                self._log_in(payload)
                events.append(LoggedIn(self.client_key))
            elif kind == Kind.NOTE_PREFERRED:
                if len(payload) != 1:
                    raise DerpError("an empty NotePreferred frame")
                events.append(Preferred(payload != b"\0"))
            else:
                self._ping(payload)
        return ServerReceived(packets, events)

    def _log_in(self, payload: bytes) -> None:
        if len(payload) < KEY_SIZE + NONCE_SIZE:
            raise DerpError(f"a ClientInfo frame of {len(payload)} bytes")
        key = payload[:KEY_SIZE]
        try:
            box = box_key(self._private_key, key)
        except KeyFormatError as error:
            raise DerpError(f"the client has {error}") from error
        _open(payload[KEY_SIZE:], box)  # nothing in it matters here, only that it opens
        self._output.append(frame(Kind.SERVER_INFO, self._seal(box, {"version": PROTOCOL_VERSION})))
        self._reader.limits, self._reader.skip_limit = _SERVER_LIMITS, _ANYTHING
        self.client_key = key


def _open(payload: bytes, box: bytes) -> dict[str, Any]:
    """The JSON object in a nonce and its box, keys in lower case. Raises `DerpError`."""
    try:
        text = crypto_box_open_afternm(payload[NONCE_SIZE:], payload[:NONCE_SIZE], box)
        value = json.loads(text)
    except (CryptoError, TypeError) as error:
        raise DerpError("the box of the login does not open") from error
    except (ValueError, RecursionError) as error:
        raise DerpError("the login is no JSON") from error
    if not isinstance(value, dict):
        raise DerpError("the login is no JSON object")
    return {name.lower(): entry for name, entry in value.items()}
