"""The queue of one log source: segments in order, and how far the server has acknowledged them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from agent.api.proto import agent_pb2 as pb
from agent.logs.disk import Disk
from agent.logs.records import BATCH_BUDGET, LINE_OVERHEAD, Record, encode_lines, encode_request
from agent.logs.segments import DamagedError, FileSegment, Segment

ACKED = "acked"
"""The file of that name: the next sequence number, the bytes of text before it, their CRC-32."""
_ACKED = struct.Struct("<QQ")


class Part(NamedTuple):
    """What a batch took out of one segment."""

    segment: Segment
    offset: int
    """Where the segment goes on."""
    lines: int
    text: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What one `BatchCreateLogs` carries: consecutive lines of one source."""

    source_id: UUID
    first: int
    end: int
    """The sequence number after the last line."""
    end_byte: int
    request: bytes = field(repr=False)
    parts: tuple[Part, ...] = field(repr=False)

    @property
    def lines(self) -> int:
        """Lines of the source in it; the one that says what was left out is not counted."""
        return sum(part.lines for part in self.parts)


class Chain:
    """Thread-confined. Sequence numbers go on over restarts for as long as the queue is not empty."""

    def __init__(self, source_id: UUID, directory: Path | None) -> None:
        self.source_id = source_id
        self.directory = directory
        self.segments: list[Segment] = []
        self.next_sequence = 1
        self.next_byte = 0
        self.acked = 1
        """The first sequence number that is not acknowledged."""
        self.acked_byte = 0
        self.in_flight: Segment | None = None
        """The last segment that the newest batch was read from."""

    @property
    def pending(self) -> bool:
        """Is there something to tell the server: lines, or that lines were left out?"""
        return self.acked < self.next_sequence

    @property
    def lines(self) -> int:
        """Lines that wait."""
        return sum(segment.lines for segment in self.segments)

    @property
    def text(self) -> int:
        """Their text in bytes."""
        return sum(segment.text for segment in self.segments)

    def resume(self, records: list[list[Record]]) -> bool:
        """Go on from the records that a former process left, one list for each segment; False when none waits."""
        numbered = [record for found in records for record in found if record.lines]
        if not numbered or numbered[-1].end <= self.acked:
            return False
        if self.acked == 1:
            self.acked, self.acked_byte = numbered[0].first, numbered[0].first_byte
        self.next_sequence, self.next_byte = numbered[-1].end, numbered[-1].end_byte
        for segment, found in zip(self.segments, records, strict=True):
            waiting = [record for record in found if record.end > self.acked]
            segment.lines = sum(record.lines for record in waiting)
            segment.text = sum(record.text for record in waiting)
        return True

    def account(self, segment: Segment, records: list[Record]) -> None:
        """These records were appended to the last segment."""
        segment.lines += sum(record.lines for record in records)
        segment.text += sum(record.text for record in records)
        segment.end = self.next_sequence = records[-1].end
        self.next_byte = records[-1].end_byte

    def next_batch(self, wall: int, spool_id: bytes, disk: Disk) -> Batch | None:
        """As many of the first lines that wait as fit into a request; None when nothing waits. `OSError`.

        `wall` and `spool_id` are for a line that says what was left out.
        """
        filling = _Filling(self, wall, spool_id)
        for segment in self.segments:
            if segment.end <= self.acked:
                continue
            self.in_flight = segment
            if not self._fill(filling, segment, disk):
                break
        else:
            if filling.end < self.next_sequence and not filling.payloads:
                filling.gap(self.next_sequence, self.next_byte)
        return filling.batch() if filling.payloads else None

    def _fill(self, filling: _Filling, segment: Segment, disk: Disk) -> bool:
        """Take what fits of one segment; is there room for more?"""
        if filling.payloads and filling.spool_id != segment.spool_id:
            return False
        offset, lines, text = segment.read, 0, 0
        try:
            for record, after in segment.records():
                if record.end > filling.end:
                    if not filling.take(record, segment.spool_id):
                        return False
                    lines += record.lines
                    text += record.text
                offset = after
        except DamagedError as error:
            # What cannot be read is a gap in the numbers from now on, and told like any other.
            assert isinstance(segment, FileSegment)
            disk.damaged(segment.path, str(error))
            segment.seal()
            segment.size, segment.lines, segment.text, segment.end = offset, lines, text, filling.end
            return not filling.payloads
        finally:
            filling.parts.append(Part(segment, offset, lines, text))
        return True

    def acknowledge(self, batch: Batch) -> bool:
        """The server has this batch. False when it was acknowledged before."""
        if batch.end <= self.acked:
            return False
        self.acked, self.acked_byte = batch.end, batch.end_byte
        for part in batch.parts:
            part.segment.release(part.offset)
            part.segment.lines -= part.lines
            part.segment.text -= part.text
        return True

    def remove_acknowledged(self, before: Callable[[UUID], None], *, everything: bool) -> None:
        """Remove segments that the server has, sealed ones or all; `before` is told first. `OSError`."""
        while self.segments and self.segments[0].end <= self.acked and (everything or self.segments[0].sealed):
            before(self.source_id)
            self.segments[0].remove()
            del self.segments[0]

    def save_acknowledged(self) -> None:
        """Put it on disk. A write that is lost costs a second sending of the same numbers, no more. `OSError`."""
        if self.directory is not None and any(segment.durable for segment in self.segments):
            numbers = _ACKED.pack(self.acked, self.acked_byte)
            (self.directory / ACKED).write_bytes(numbers + zlib.crc32(numbers).to_bytes(4, "little"))

    def load_acknowledged(self) -> None:
        """Take what a former process wrote; when that is missing or damaged, the first record tells. `OSError`."""
        assert self.directory is not None
        try:
            data = (self.directory / ACKED).read_bytes()
        except FileNotFoundError:
            return
        numbers = data[: _ACKED.size]
        if len(numbers) == _ACKED.size and data[_ACKED.size :] == zlib.crc32(numbers).to_bytes(4, "little"):
            self.acked, self.acked_byte = _ACKED.unpack(numbers)


class _Filling:
    """A batch in the making."""

    def __init__(self, chain: Chain, wall: int, spool_id: bytes) -> None:
        self._source_id = chain.source_id
        self._wall = wall
        self.spool_id = spool_id
        self.first = chain.acked
        self.end, self.end_byte = chain.acked, chain.acked_byte
        self.payloads: list[bytes] = []
        self._cost = 0
        self.parts: list[Part] = []

    def take(self, record: Record, spool_id: bytes) -> bool:
        """Add a record, if it follows and fits."""
        if record.first > self.end:
            if self.payloads:
                return False
            self.gap(record.first, record.first_byte)
        if self.payloads and self._cost + record.cost > BATCH_BUDGET:
            return False
        self.spool_id = spool_id
        self.payloads.append(record.payload)
        self._cost += record.cost
        self.end, self.end_byte = record.end, record.end_byte
        return True

    def gap(self, first: int, first_byte: int) -> None:
        """Say in one line that the lines from here to `first` are missing; it takes the number of the last of them."""
        line = (
            f"[agent] {first - self.end} lines ({first_byte - self.end_byte} bytes) are left out here: there was no "
            "room for them, or they were damaged. The log file of the script has the whole output."
        ).encode()
        self.payloads.append(encode_lines([line], pb.Log.WARN, self._wall))
        self._cost += len(line) + LINE_OVERHEAD
        self.first = first - 1
        self.end, self.end_byte = first, first_byte

    def batch(self) -> Batch:
        request = encode_request(self._source_id, self.spool_id, self.first, self.payloads)
        return Batch(self._source_id, self.first, self.end, self.end_byte, request, tuple(self.parts))
