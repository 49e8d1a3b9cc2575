"""The parts of a source's queue: append-only files, or memory where there is no disk."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from agent.logs.records import Record, torn, unpack

_MAGIC = b"WALOG\x00\x00\x01"
_HEADER = struct.Struct("<8s16s")
SUFFIX = ".seg"


class DamagedError(Exception):
    """A segment cannot be read to its end; the text says why."""


class Segment(Protocol):
    """Records of one source in order."""

    spool_id: bytes
    size: int
    """Bytes, of those that are good."""
    read: int
    """The bytes of them that were acknowledged."""
    lines: int
    """Lines that were not acknowledged, and their text in bytes."""
    text: int
    end: int
    """The sequence number after the last line."""

    @property
    def durable(self) -> bool:
        """Does it outlive the process?"""

    @property
    def sealed(self) -> bool:
        """Is nothing appended any more?"""

    def append(self, data: bytes) -> None:
        """All of it or, with `OSError`, nothing."""

    def records(self) -> Iterator[tuple[Record, int]]:
        """What was not acknowledged, each with the offset after it. `DamagedError`, `OSError`."""

    def release(self, offset: int) -> None:
        """Everything before `offset` is acknowledged."""

    def seal(self) -> None:
        """Append nothing any more."""

    def remove(self) -> None:
        """Forget it. `OSError`."""


class MemorySegment:
    """Records in memory."""

    def __init__(self, spool_id: bytes, end: int) -> None:
        self.spool_id = spool_id
        self.size = self.read = self.lines = self.text = 0
        self.end = end
        self.sealed = False
        self._data = bytearray()

    @property
    def durable(self) -> bool:
        return False

    def append(self, data: bytes) -> None:
        self._data += data
        self.size = len(self._data)

    def records(self) -> Iterator[tuple[Record, int]]:
        return unpack(bytes(self._data))

    def release(self, offset: int) -> None:
        del self._data[:offset]
        self.size = len(self._data)

    def seal(self) -> None:
        self.sealed = True

    def remove(self) -> None:
        self._data.clear()
        self.size = 0


class FileSegment:
    """Records in a file: a header with the spool id, then one after another."""

    def __init__(self, path: Path, spool_id: bytes, end: int, descriptor: int | None) -> None:
        self.path = path
        self.spool_id = spool_id
        self.size = self.read = _HEADER.size
        self.lines = self.text = 0
        self.end = end
        self._descriptor = descriptor

    @classmethod
    def create(cls, path: Path, spool_id: bytes, end: int) -> FileSegment:
        """A new file to append to; its first record will have sequence number `end`. `OSError`."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, flags, 0o600)
        segment = cls(path, spool_id, end, descriptor)
        try:
            _write(descriptor, _HEADER.pack(_MAGIC, spool_id), 0)
        except OSError:
            segment.remove()
            raise
        return segment

    @classmethod
    def load(cls, path: Path) -> tuple[FileSegment, list[Record], str]:
        """What a former process left, its records, and what is wrong with its end ("" when nothing or just torn).

        The records are not counted in `lines` and `text`: the caller knows which were acknowledged.
        Raises `DamagedError`, `OSError`.
        """
        data = _read(path, 0)
        if len(data) < _HEADER.size and _MAGIC.startswith(data[: len(_MAGIC)]):
            return cls(path, b"", 0, None), [], ""  # killed, or out of space, while it was made
        magic, spool_id = _HEADER.unpack_from(data) if len(data) >= _HEADER.size else (b"", b"")
        if magic != _MAGIC:
            raise DamagedError("it does not begin like a segment")
        segment = cls(path, spool_id, 0, None)
        records = []
        for record, offset in unpack(data, _HEADER.size):
            records.append(record)
            segment.size = offset
            segment.end = max(segment.end, record.end)
        problem = "" if torn(data, segment.size) else f"{len(data) - segment.size} bytes at its end are not records"
        return segment, records, problem

    @property
    def durable(self) -> bool:
        return True

    @property
    def sealed(self) -> bool:
        return self._descriptor is None

    def append(self, data: bytes) -> None:
        assert self._descriptor is not None, "sealed"
        _write(self._descriptor, data, self.size)
        self.size += len(data)

    def records(self) -> Iterator[tuple[Record, int]]:
        try:
            if self._descriptor is not None:
                data = os.pread(self._descriptor, self.size - self.read, self.read)
            else:
                data = _read(self.path, self.read)[: self.size - self.read]
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EIO):
                raise DamagedError(error.strerror) from error
            raise
        offset = 0
        for record, offset in unpack(data):
            yield record, self.read + offset
        if self.read + offset < self.size:
            raise DamagedError(f"bytes {self.read + offset} to {self.size} have changed since they were written")

    def release(self, offset: int) -> None:
        self.read = max(self.read, offset)

    def seal(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def remove(self) -> None:
        self.seal()
        self.path.unlink(missing_ok=True)


def _read(path: Path, offset: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return os.pread(descriptor, max(os.fstat(descriptor).st_size - offset, 0), offset)
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written
