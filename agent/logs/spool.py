"""Lines on their way to the server, kept on disk until it has them.

    <directory>/spool/<source id>/00000001.seg   records, see `records`; one queue per source
    <directory>/spool/<source id>/acked          how far the server has them

Every process writes segments of its own under a spool id of its own: what a power cut took from the end of an old
segment can then never make a new line pass for one that the server has stored.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from agent.api.proto import agent_pb2 as pb
from agent.clock import Clock
from agent.logs.chain import Batch, Chain
from agent.logs.checkpoints import Checkpoints
from agent.logs.disk import Disk
from agent.logs.records import LINE_OVERHEAD, Record, RunPosition, cut, encode_lines, pack
from agent.logs.segments import SUFFIX, DamagedError, FileSegment, MemorySegment, Segment

_MEMORY_FACTOR = 8  # bytes of records per byte of text that memory may take: empty lines have no text


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """Bounds in bytes."""

    total: int = 64 * 1024 * 1024
    """Everything on disk. When it is reached, the middle of the longest queue goes; its head and its tail stay."""
    segment: int = 1024 * 1024
    """A segment is closed at this size; room is made by whole segments."""
    memory: int = 1024 * 1024
    """Text in memory, where the disk cannot be used: a line is dropped while there is more (§10.2)."""


class Spool:
    """Thread-confined. `changed` is told of every source whose queue has changed."""

    def __init__(
        self,
        disk: Disk,
        checkpoints: Checkpoints,
        limits: SpoolLimits,
        clock: Clock,
        changed: Callable[[UUID], None],
    ) -> None:
        self._disk = disk
        self._checkpoints = checkpoints
        self._limits = limits
        self._clock = clock
        self._changed = changed
        self._spool_id = os.urandom(16)
        self._chains: dict[UUID, Chain] = {}
        self._ended = False
        self._unsynced: set[Path] = set()
        self.dropped_lines = 0
        self.dropped_bytes = 0

    def load(self) -> None:
        """Take over what former processes left. A damaged part is said and left out; never fails."""
        root = self._root
        if root is None:
            return
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            directories = sorted(root.iterdir())
        except OSError as error:
            self._disk.failed(error)
            return
        for directory in directories:
            try:
                source_id = UUID(directory.name)
            except ValueError:
                continue  # not ours
            try:
                self._load_chain(source_id, directory)
            except OSError as error:
                self._disk.damaged(directory, error.strerror or str(error))

    def _load_chain(self, source_id: UUID, directory: Path) -> None:
        chain = Chain(source_id, directory)
        chain.load_acknowledged()
        records: list[list[Record]] = []
        problem = ""
        for path in sorted(path for path in directory.glob(f"*{SUFFIX}") if path.stem.isdecimal()):
            try:
                segment, found, problem = FileSegment.load(path)
            except (DamagedError, OSError) as error:
                problem = str(error)
            else:
                chain.segments.append(segment)
                records.append(found)
            if problem:
                self._disk.damaged(path, problem)
        for record in itertools.chain.from_iterable(records):
            if record.position is not None:
                self._checkpoints.recover(record.position, source_id)
        if chain.resume(records):
            self._chains[source_id] = chain
            self._changed(source_id)
        else:
            self._checkpoints.save_source(source_id)
            shutil.rmtree(directory)
        if problem:  # in the last segment: no number follows that would show the gap
            self.append(source_id, pb.Log.WARN, [b"[agent] lines are missing here: the log spool was damaged"])

    def chain(self, source_id: UUID) -> Chain:
        """The queue of a source."""
        chain = self._chains.get(source_id)
        if chain is None:
            root = self._root
            chain = self._chains[source_id] = Chain(source_id, None if root is None else root / str(source_id))
        return chain

    def append(self, source_id: UUID, level: int, lines: list[bytes], position: RunPosition | None = None) -> bool:
        """Queue sanitised lines, all of them or, without room, the first of them.

        True when they, and with them the position, outlive the process.
        """
        if self._ended or not (lines or position):
            return False
        chain = self.chain(source_id)
        self._changed(source_id)
        if self._disk.usable:
            try:
                self._append_to_disk(chain, level, lines, position)
            except OSError as error:
                self._disk.failed(error)
            else:
                self._disk.worked()
                return True
        self._append_to_memory(chain, level, lines)
        return False

    def _append_to_disk(self, chain: Chain, level: int, lines: list[bytes], position: RunPosition | None) -> None:
        records, data = self._records(chain, level, lines, position)
        if not self._make_room(len(data)):
            self._drop(chain, lines)
            if position is None:
                return
            records, data = self._records(chain, level, [], position)
        segment = chain.segments[-1] if chain.segments else None
        if not isinstance(segment, FileSegment) or segment.sealed or segment.size >= self._limits.segment:
            if segment is not None:
                segment.seal()
            segment = self._create(chain)
        self._unsynced.add(segment.path)
        try:
            segment.append(data)
        except OSError:
            segment.seal()  # what it got of the data is a torn tail
            raise
        chain.account(segment, records)

    def _append_to_memory(self, chain: Chain, level: int, lines: list[bytes]) -> None:
        in_memory = [s for c in self._chains.values() for s in c.segments if isinstance(s, MemorySegment)]
        room = self._limits.memory - sum(segment.text for segment in in_memory)
        used = sum(segment.size for segment in in_memory)
        accepted = 0
        for line in lines:
            if room < 0 or used > _MEMORY_FACTOR * self._limits.memory:
                break
            room -= len(line)
            used += len(line) + LINE_OVERHEAD
            accepted += 1
        if accepted:
            segment = chain.segments[-1] if chain.segments else None
            if segment is None or segment.durable:
                if segment is not None:
                    segment.seal()
                segment = MemorySegment(self._spool_id, chain.next_sequence)
                chain.segments.append(segment)
            records, data = self._records(chain, level, lines[:accepted], None)
            segment.append(data)
            chain.account(segment, records)
        self._drop(chain, lines[accepted:])

    def _records(
        self, chain: Chain, level: int, lines: list[bytes], position: RunPosition | None
    ) -> tuple[list[Record], bytes]:
        wall = self._clock.wall()
        records = []
        first, first_byte = chain.next_sequence, chain.next_byte
        for group in cut(lines):
            text = sum(map(len, group))
            payload = encode_lines(group, level, wall)
            records.append(Record(first, first_byte, len(group), text, None, payload))
            first, first_byte = first + len(group), first_byte + text
        records[-1] = records[-1]._replace(position=position)
        data = b"".join([pack(record, belongs_to_next=record is not records[-1]) for record in records])
        return records, data

    def _create(self, chain: Chain) -> FileSegment:
        assert chain.directory is not None
        numbers = [int(s.path.stem) for s in chain.segments if isinstance(s, FileSegment)]
        path = chain.directory / f"{max(numbers, default=0) + 1:08}{SUFFIX}"
        path.unlink(missing_ok=True)  # one that was damaged as a whole, or could not be read
        segment = FileSegment.create(path, self._spool_id, chain.next_sequence)
        chain.segments.append(segment)
        return segment

    def _make_room(self, size: int) -> bool:
        """Keep the bound on everything: take segments out of the middle of the longest queues."""
        while self._on_disk() + size > self._limits.total:
            for chain in sorted(self._chains.values(), key=_length, reverse=True):
                victim = _middle(chain)
                if victim is not None:
                    break
            else:
                return False
            self._checkpoints.save_source(chain.source_id)
            victim.remove()
            chain.segments.remove(victim)
            self._changed(chain.source_id)
            self.dropped_lines += victim.lines
            self.dropped_bytes += victim.text
        return True

    def _on_disk(self) -> int:
        return sum(_length(chain) for chain in self._chains.values())

    def _drop(self, chain: Chain, lines: list[bytes]) -> None:
        """The numbers go on; the gap in them is told to the server when it is reached."""
        size = sum(map(len, lines))
        chain.next_sequence += len(lines)
        chain.next_byte += size
        self.dropped_lines += len(lines)
        self.dropped_bytes += size

    def next_batch(self, source_id: UUID) -> Batch | None:
        """The first lines of a source that were not acknowledged; the same again until they are. `OSError`."""
        return self.chain(source_id).next_batch(self._clock.wall(), self._spool_id, self._disk)

    def acknowledge(self, batch: Batch) -> None:
        """The server has these lines."""
        chain = self.chain(batch.source_id)
        if not chain.acknowledge(batch):
            return
        self._changed(batch.source_id)
        self.tidy(batch.source_id)

    def tidy(self, source_id: UUID) -> None:
        """Remove what the server has. Once a source's runs are over that leaves neither a file nor a descriptor."""
        chain = self.chain(source_id)
        everything = not self._checkpoints.rests_on(source_id)
        try:
            chain.save_acknowledged()
            chain.remove_acknowledged(self._checkpoints.save_source, everything=everything)
        except OSError as error:
            self._disk.failed(error)

    def end(self) -> None:
        """Nothing is queued any more, and what was is dropped: the server takes no more lines of this agent."""
        self._ended = True
        for chain in self._chains.values():
            self.dropped_lines += chain.lines
            self.dropped_bytes += chain.text
            chain.acked, chain.acked_byte = chain.next_sequence, chain.next_byte
        self.close()
        self._chains.clear()

    def take_unsynced(self) -> list[Path]:
        """Files that were written to since this was asked last."""
        unsynced, self._unsynced = self._unsynced, set()
        return sorted(unsynced)

    @property
    def waits_for_sync(self) -> bool:
        return bool(self._unsynced)

    def close(self) -> None:
        """Close the files; of queues that are empty nothing remains."""
        for chain in self._chains.values():
            for segment in chain.segments:
                segment.seal()
            if chain.pending or chain.directory is None:
                continue
            try:
                self._checkpoints.save_source(chain.source_id)
                if chain.directory.exists():
                    shutil.rmtree(chain.directory)
            except OSError as error:
                self._disk.failed(error)

    @property
    def _root(self) -> Path | None:
        return None if self._disk.directory is None else self._disk.directory / "spool"


def _length(chain: Chain) -> int:
    return sum(segment.size for segment in chain.segments if segment.durable)


def _middle(chain: Chain) -> Segment | None:
    """A segment of the queue's middle: the first of its second half, if possible; None when all are needed.

    The first is needed, and the last, and what the server is being sent just now.
    """
    sending = chain.segments.index(chain.in_flight) if chain.in_flight in chain.segments else 0
    half = _length(chain) / 2
    before = 0
    candidate = None
    for index, segment in enumerate(chain.segments[:-1]):
        if segment.durable and index > sending:
            candidate = segment
            if before >= half:
                break
        before += segment.size
    return candidate
