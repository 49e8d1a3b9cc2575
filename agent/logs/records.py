"""The bytes of a spooled record, and of the request that carries them (agent-api.md §8.7, §10.2).

A record's payload is field 2 of `BatchCreateLogsRequest`, encoded already, so that a request is made by joining. Around
it, in a segment:

    u32 length of the rest   u32 CRC-32 of the rest   HEADER   payload

Records that were cut from one piece of output belong together: all but the last are marked, and count only when the
last is there too, because that one says how far the run's output has been taken in.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from uuid import UUID

LINE_OVERHEAD = 21
BATCH_BUDGET = 1_048_576
"""Σ (bytes of text + `LINE_OVERHEAD`) of a request is at most this."""
MAX_LINE = BATCH_BUDGET - LINE_OVERHEAD
RECORD_BUDGET = 131_072
"""A record is cut near this, so that requests can be filled well; a longer line has a record for itself."""

_FRAME = struct.Struct("<II")
_HEADER = struct.Struct("<QQIIB16sQIQIQ")
_BELONGS_TO_NEXT, _HAS_POSITION, _STDOUT_SKIPPING, _STDERR_SKIPPING = 1, 2, 4, 8
_NO_RUN = UUID(int=0)


class StreamPosition(NamedTuple):
    """How far one stream of a run has been taken in."""

    offset: int = 0
    """The first byte that is not in a spooled line."""
    logged: int = 0
    """Bytes of the unfinished line there that are in the log file already (counted as redacted)."""
    skipping: bool = False
    """`offset` is within a line that is too long and is left out up to its end."""


class RunPosition(NamedTuple):
    """Where a later process goes on when this one is killed."""

    run_id: UUID
    stdout: StreamPosition = StreamPosition()
    stderr: StreamPosition = StreamPosition()
    log: int = 0
    """Size of the log file at this point."""


class Record(NamedTuple):
    """Lines of one source that follow each other."""

    first: int
    """Sequence number of the first line; lines of a source count from 1."""
    first_byte: int
    """Bytes of text of the source before it."""
    lines: int
    text: int
    """Bytes of text."""
    position: RunPosition | None
    payload: bytes

    @property
    def end(self) -> int:
        return self.first + self.lines

    @property
    def end_byte(self) -> int:
        return self.first_byte + self.text

    @property
    def cost(self) -> int:
        return self.text + LINE_OVERHEAD * self.lines


def pack(record: Record, *, belongs_to_next: bool = False) -> bytes:
    """The record as it stands in a segment."""
    position = record.position
    flags = _BELONGS_TO_NEXT if belongs_to_next else 0
    if position is None:
        position = RunPosition(_NO_RUN)
    else:
        flags |= _HAS_POSITION
        flags |= _STDOUT_SKIPPING if position.stdout.skipping else 0
        flags |= _STDERR_SKIPPING if position.stderr.skipping else 0
    header = _HEADER.pack(
        record.first,
        record.first_byte,
        record.lines,
        record.text,
        flags,
        position.run_id.bytes,
        position.stdout.offset,
        position.stdout.logged,
        position.stderr.offset,
        position.stderr.logged,
        position.log,
    )
    checksum = zlib.crc32(record.payload, zlib.crc32(header))
    return _FRAME.pack(len(header) + len(record.payload), checksum) + header + record.payload


def pack_position(position: RunPosition) -> bytes:
    """A record without lines, only for its position."""
    return pack(Record(0, 0, 0, 0, position, b""))


def unpack(data: bytes, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """The whole records of `data` from `offset` on, each with the offset after it.

    Stops before the first that is cut off, damaged, or waits for one that is.
    """
    waiting: list[tuple[Record, int]] = []
    for record, belongs_to_next, after in _frames(data, offset):
        waiting.append((record, after))
        if not belongs_to_next:
            yield from waiting
            waiting.clear()


def torn(data: bytes, offset: int) -> bool:
    """Is what stands from `offset` on just what a kill or a power cut leaves in the middle of a write?

    That is nothing, records that wait for one that is missing, and the beginning of one, or zeros.
    """
    for _, _, after in _frames(data, offset):
        offset = after
    rest = memoryview(data)[offset:]
    if len(rest) < _FRAME.size or not any(rest):
        return True
    length, _ = _FRAME.unpack_from(rest)
    return _FRAME.size + int(length) > len(rest)


def _frames(data: bytes, offset: int) -> Iterator[tuple[Record, bool, int]]:
    while (start := offset + _FRAME.size) <= len(data):
        length, checksum = _FRAME.unpack_from(data, offset)
        offset = start + length
        if length < _HEADER.size or offset > len(data) or zlib.crc32(memoryview(data)[start:offset]) != checksum:
            return
        first, first_byte, lines, text, flags, run_id, *where = _HEADER.unpack_from(data, start)
        position = None
        if flags & _HAS_POSITION:
            position = RunPosition(
                UUID(bytes=run_id),
                StreamPosition(where[0], where[1], bool(flags & _STDOUT_SKIPPING)),
                StreamPosition(where[2], where[3], bool(flags & _STDERR_SKIPPING)),
                where[4],
            )
        record = Record(first, first_byte, lines, text, position, data[start + _HEADER.size : offset])
        yield record, bool(flags & _BELONGS_TO_NEXT), offset


def cut(lines: list[bytes]) -> Iterator[list[bytes]]:
    """The lines in groups of about `RECORD_BUDGET`."""
    if sum(map(len, lines)) + LINE_OVERHEAD * len(lines) <= RECORD_BUDGET:
        yield lines
        return
    start = cost = 0
    for index, line in enumerate(lines):
        size = len(line) + LINE_OVERHEAD
        if cost and cost + size > RECORD_BUDGET:
            yield lines[start:index]
            start, cost = index, 0
        cost += size
    yield lines[start:]


class _Heads(dict[int, bytes]):
    """What stands before the text of a line of a given length: field 2, its size, the time, the text's field."""

    def __init__(self, wall: int) -> None:
        seconds, nanoseconds = divmod(wall, 1_000_000_000)
        stamp = (b"\x08" + _varint(seconds) if seconds else b"") + (
            b"\x10" + _varint(nanoseconds) if nanoseconds else b""
        )
        self._time = b"\x0a" + _varint(len(stamp)) + stamp

    def __missing__(self, length: int) -> bytes:
        text = b"\x12" + _varint(length) if length else b""  # proto3 leaves out what is zero or empty
        head = b"\x12" + _varint(len(self._time) + len(text) + length + 2) + self._time + text
        self[length] = head
        return head


def encode_lines(lines: Iterable[bytes], level: int, wall: int) -> bytes:
    """Field 2 of `BatchCreateLogsRequest` for each line; they must be UTF-8. `wall` is in nanoseconds since 1970.

    By hand because this is the hot path: building messages costs ten times as much.
    """
    heads = _Heads(wall)
    tail = bytes((0x18, level))
    return b"".join([heads[len(line)] + line + tail for line in lines])


def encode_request(source_id: UUID, spool_id: bytes, first: int, payloads: list[bytes]) -> bytes:
    """A `BatchCreateLogsRequest` of lines that are encoded already; `first` is the number of the first of them."""
    return b"".join(
        (
            b"\x0a\x10",
            source_id.bytes,
            *payloads,
            _varint(1000 << 3 | 2) + _varint(len(spool_id)),
            spool_id,
            _varint(1001 << 3) + _varint(first),
        )
    )


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
