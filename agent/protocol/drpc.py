"""dRPC: calls over one byte stream, without input or output (agent-api.md §6.3, §6.4).

`PacketReader` turns bytes into packets and enforces the rules of the wire. `ClientCall` and `ServerTransport` are the
two sides of the call patterns: they are told what arrived, and give back the bytes to write.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

MAX_PACKET = 4_194_304
"""Bytes of data in one packet; one more is an error."""
MAX_FRAME = 65_536
"""Bytes of data that a writer puts into one frame."""
MAX_ERROR_TEXT = 65_536
"""Bytes of the text of an Error packet that a writer sends."""
_MAX_VARINT_BYTES = 10
_ERROR_CODE = struct.Struct(">Q")


class Kind(enum.IntEnum):
    """What a packet is."""

    INVOKE = 1
    MESSAGE = 2
    ERROR = 3
    CANCEL = 4
    CLOSE = 5
    CLOSE_SEND = 6
    INVOKE_METADATA = 7


_KINDS = {kind.value: kind for kind in Kind}


class ErrorCode(enum.IntEnum):
    """Codes of Error packets that are used; others may arrive."""

    UNSPECIFIED = 0
    UNIMPLEMENTED = 12


class DrpcError(Exception):
    """The peer broke a rule of the wire: this byte stream is of no more use, others of the connection go on."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One complete packet."""

    kind: Kind
    stream_id: int
    message_id: int
    data: bytes


class PacketReader:
    """Bytes in, complete packets out; what is buffered never exceeds one packet and one frame header."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._last = (0, 0)
        """The id of the packet being put together, or of the last complete one."""
        self._complete = True
        self._kind = 0
        self._data = bytearray()
        """Not a list of parts: there may be very many of them, of few bytes or none."""

    @property
    def buffered(self) -> int:
        """Bytes kept of a packet that is not complete."""
        return len(self._data) + len(self._buffer)

    def feed(self, data: bytes | memoryview) -> list[Packet]:
        """Take bytes cut anywhere. Raises `DrpcError`; the reader must not be used after that."""
        self._buffer += data
        packets: list[Packet] = []
        at = 0
        while True:
            header = _parse_header(self._buffer, at)
            if header is None:
                break
            control, stream_id, message_id, length, start = header
            self._check(control, stream_id, message_id, length)
            end = start + length
            if end > len(self._buffer):
                break
            at = end
            packet = self._frame(control, stream_id, message_id, bytes(memoryview(self._buffer)[start:end]))
            if packet is not None:
                packets.append(packet)
        del self._buffer[:at]
        return packets

    def _check(self, control: int, stream_id: int, message_id: int, length: int) -> None:
        """Refuse a frame as soon as its header is there, before its data is waited for."""
        ident = (stream_id, message_id)
        if ident < self._last or (ident == self._last and self._complete):
            raise DrpcError(f"id <{stream_id},{message_id}> after <{self._last[0]},{self._last[1]}>")
        begun = len(self._data) if ident == self._last else 0
        if begun + length > MAX_PACKET:
            raise DrpcError(f"data overflow: a packet of more than {MAX_PACKET} bytes")
        kind = control >> 1 & 0x3F
        if ident == self._last and kind != self._kind:
            raise DrpcError(f"a packet changed its kind from {self._kind} to {kind}")
        if kind not in _KINDS and not control & 0x80:
            raise DrpcError(f"unknown packet kind {kind}")

    def _frame(self, control: int, stream_id: int, message_id: int, data: bytes) -> Packet | None:
        if (stream_id, message_id) != self._last:
            # A new id discards what there is of an unfinished packet.
            self._last = (stream_id, message_id)
            self._data.clear()
            self._kind = control >> 1 & 0x3F
        self._complete = bool(control & 1)
        if not self._complete:
            self._data += data
            return None
        whole = b"".join((self._data, data)) if self._data else data
        self._data.clear()
        kind = _KINDS.get(self._kind)
        return None if kind is None else Packet(kind, stream_id, message_id, whole)


def encode_packet(kind: Kind, stream_id: int, message_id: int, data: bytes = b"") -> bytes:
    """One packet as frames of at most 65536 data bytes."""
    control = kind << 1 | (0x80 if kind is Kind.CANCEL else 0)
    ids = encode_varint(stream_id) + encode_varint(message_id)
    if len(data) <= MAX_FRAME:
        return bytes((control | 1,)) + ids + encode_varint(len(data)) + data
    frames: list[bytes] = []
    for start in range(0, len(data), MAX_FRAME):
        part = data[start : start + MAX_FRAME]
        done = start + MAX_FRAME >= len(data)
        frames += (bytes((control | done,)), ids, encode_varint(len(part)), part)
    return b"".join(frames)


def encode_error(code: int, text: str) -> bytes:
    """The data of an Error packet; the text is cut after `MAX_ERROR_TEXT` bytes."""
    raw = text.encode("utf-8", "replace")
    if len(raw) > MAX_ERROR_TEXT:
        raw = raw[:MAX_ERROR_TEXT].decode("utf-8", "ignore").encode()  # not within a character
    return _ERROR_CODE.pack(code) + raw


def decode_error(data: bytes) -> tuple[int, str]:
    """Code and text of an Error packet. Raises `DrpcError` when it is shorter than a code."""
    if len(data) < _ERROR_CODE.size:
        raise DrpcError(f"an Error packet of {len(data)} bytes")
    return _ERROR_CODE.unpack_from(data)[0], data[_ERROR_CODE.size :].decode("utf-8", "replace")


def encode_metadata(metadata: Mapping[str, str]) -> bytes:
    """The data of an InvokeMetadata packet."""
    out = bytearray()
    for key, value in metadata.items():
        entry = bytearray()
        for tag, text in ((b"\x0a", key), (b"\x12", value)):
            raw = text.encode()
            entry += tag + encode_varint(len(raw)) + raw
        out += b"\x0a" + encode_varint(len(entry)) + entry
    return bytes(out)


def decode_metadata(data: bytes) -> dict[str, str]:
    """Key/value pairs of an InvokeMetadata packet. Raises `DrpcError`."""
    metadata: dict[str, str] = {}
    for _, entry in _tagged(data, {0x0A}):
        values = {0x0A: b"", 0x12: b""}
        for tag, value in _tagged(entry, {0x0A, 0x12}):
            values[tag] = value
        try:
            metadata[values[0x0A].decode()] = values[0x12].decode()
        except UnicodeDecodeError as error:
            raise DrpcError("metadata that is not UTF-8") from error
    return metadata


def _tagged(data: bytes, tags: set[int]) -> list[tuple[int, bytes]]:
    found = []
    at = 0
    while at < len(data):
        tag = data[at]
        length = _parse_varint(data, at + 1)
        if tag not in tags or length is None or length[1] + length[0] > len(data):
            raise DrpcError("malformed metadata")
        end = length[1] + length[0]
        found.append((tag, data[length[1] : end]))
        at = end
    return found


def encode_varint(value: int) -> bytes:
    """LEB128, least significant seven bits first."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _parse_varint(buffer: bytes | bytearray, at: int) -> tuple[int, int] | None:
    """Value and the position behind it, or None when bytes are missing. Raises `DrpcError`."""
    value = shift = 0
    for index in range(at, min(len(buffer), at + _MAX_VARINT_BYTES)):
        byte = buffer[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, index + 1
        shift += 7
    else:
        if len(buffer) < at + _MAX_VARINT_BYTES:
            return None
    raise DrpcError("a varint of more than 64 bits")


def _parse_header(buffer: bytearray, at: int) -> tuple[int, int, int, int, int] | None:
    """Control byte, stream id, message id, length and where the data starts; None when bytes are missing."""
    size = len(buffer)
    if at + 4 <= size and buffer[at + 1] | buffer[at + 2] | buffer[at + 3] < 0x80:  # nearly always
        return buffer[at], buffer[at + 1], buffer[at + 2], buffer[at + 3], at + 4
    if at >= size:
        return None
    stream_id = _parse_varint(buffer, at + 1)
    if stream_id is None:
        return None
    message_id = _parse_varint(buffer, stream_id[1])
    if message_id is None:
        return None
    length = _parse_varint(buffer, message_id[1])
    if length is None:
        return None
    return buffer[at], stream_id[0], message_id[0], length[0], length[1]


# ---- calls


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """One message of the peer."""

    data: bytes


@dataclass(frozen=True, slots=True)
class CallFailed:
    """The server answered with an Error; the call is over."""

    code: int
    text: str


@dataclass(frozen=True, slots=True)
class SendingEnded:
    """The peer sends no more messages."""


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The call is over in both directions; `cancelled` tells a Cancel from a Close."""

    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Invoked:
    """A client made a call, to which the events after this one belong; one that was going on is over."""

    call: ServerCall


ClientEvent: TypeAlias = MessageReceived | CallFailed | SendingEnded | CallEnded
ServerEvent: TypeAlias = Invoked | MessageReceived | SendingEnded | CallEnded


class _Call:
    """What one side of a call may still send. Each side counts its own packets of the call from 1."""

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id
        self.ended = False
        """Whether the call is over in both directions: nothing may be sent any more."""
        self._message_id = 0
        self._local_done = self._remote_done = False

    def message(self, data: bytes) -> bytes:
        """One message. Raises `DrpcError` when it is larger than a packet may be."""
        if len(data) > MAX_PACKET:
            raise DrpcError(f"a message of {len(data)} bytes, the limit is {MAX_PACKET}")
        return self._packet(Kind.MESSAGE, data)

    def close_send(self) -> bytes:
        """No more messages from this side."""
        self._local_done = True
        self.ended = self.ended or self._remote_done
        return self._packet(Kind.CLOSE_SEND)

    def _packet(self, kind: Kind, data: bytes = b"") -> bytes:
        self._message_id += 1
        return encode_packet(kind, self.stream_id, self._message_id, data)

    def _receive_close_send(self) -> None:
        self._remote_done = True
        self.ended = self._local_done


class ClientCall(_Call):
    """The client's side of one call on a fresh byte stream, where its stream id is 1 (§6.4)."""

    def __init__(self, path: str) -> None:
        super().__init__(stream_id=1)
        self._reader = PacketReader()
        self._path = path

    def invoke(self) -> bytes:
        """The packet that begins the call."""
        return self._packet(Kind.INVOKE, self._path.encode())

    def receive(self, data: bytes) -> list[ClientEvent]:
        """What the server sent. Raises `DrpcError`."""
        events: list[ClientEvent] = []
        for packet in self._reader.feed(data):
            if self.ended or packet.stream_id != self.stream_id:
                continue
            if packet.kind is Kind.MESSAGE:
                events.append(MessageReceived(packet.data))
            elif packet.kind is Kind.ERROR:
                self.ended = True
                events.append(CallFailed(*decode_error(packet.data)))
            elif packet.kind is Kind.CLOSE_SEND:
                self._receive_close_send()
                events.append(SendingEnded())
            elif packet.kind in (Kind.CLOSE, Kind.CANCEL):
                self.ended = True
                events.append(CallEnded(packet.kind is Kind.CANCEL))
        return events


class ServerCall(_Call):
    """The server's side of one call."""

    def __init__(self, stream_id: int, path: str, metadata: Mapping[str, str]) -> None:
        super().__init__(stream_id)
        self.path = path
        self.metadata = metadata

    def error(self, code: int, text: str) -> bytes:
        """The call failed; it is over."""
        self.ended = True
        return self._packet(Kind.ERROR, encode_error(code, text))

    def receive(self, packet: Packet, events: list[ServerEvent]) -> None:
        """A packet of the client after its Invoke."""
        if packet.kind is Kind.MESSAGE:
            events.append(MessageReceived(packet.data))
        elif packet.kind is Kind.CLOSE_SEND:
            self._receive_close_send()
            events.append(SendingEnded())
        else:  # Close, Cancel, or an Error of the client
            self.ended = True
            events.append(CallEnded(packet.kind is Kind.CANCEL))


class ServerTransport:
    """The server's side of one byte stream, which may carry one call after another (§6.4)."""

    def __init__(self) -> None:
        self._reader = PacketReader()
        self._call: ServerCall | None = None
        self._metadata: tuple[int, Mapping[str, str]] = (0, {})

    @property
    def buffered(self) -> int:
        """Bytes kept of a packet that is not complete."""
        return self._reader.buffered

    def receive(self, data: bytes) -> list[ServerEvent]:
        """What the client sent. Raises `DrpcError`."""
        events: list[ServerEvent] = []
        for packet in self._reader.feed(data):
            if packet.kind is Kind.INVOKE_METADATA:
                self._metadata = (packet.stream_id, decode_metadata(packet.data))
            elif packet.kind is Kind.INVOKE:
                events.append(self._invoke(packet))
            elif self._call is not None and packet.stream_id == self._call.stream_id and not self._call.ended:
                self._call.receive(packet, events)
        return events

    def _invoke(self, packet: Packet) -> Invoked:
        if self._call is not None:
            if packet.stream_id == self._call.stream_id:
                raise DrpcError(f"call {packet.stream_id} was invoked twice")
            self._call.ended = True
        metadata = self._metadata[1] if self._metadata[0] == packet.stream_id else {}
        self._call = ServerCall(packet.stream_id, packet.data.decode("utf-8", "replace"), metadata)
        return Invoked(self._call)
