"""The latest output of a terminal, and the state of the terminal where it begins; both in memory that may be shared.

The memory is a file without a name (memfd) that outlives the process which holds a descriptor of it no more, as long as
somebody else does: a later agent goes on with it. Whatever is written there is written in an order that makes sense
when the writer is killed in between.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Final, NamedTuple

from agent.terminal.replay import without_effects
from agent.terminal.tracker import Tracker

_MAGIC: Final = b"wa-term1"
_HEAD = struct.Struct("<Q")  # bytes ever written
_SLOT = struct.Struct("<QI")  # offset of the oldest byte that is kept, length of the state there
_HEAD_AT: Final = 8
_ACTIVE_AT: Final = 16
_SLOTS_AT: Final = 64
_SLOT_SIZE: Final = 16320
_DATA_AT: Final = 32768
_BLOCK: Final = 16384


class RingError(Exception):
    """A ring cannot be made, or what was found is none; the text says why."""


class Replay(NamedTuple):
    """The history as output, and whether a full-screen program has the screen at its end."""

    data: bytes
    full_screen: bool


class Ring:
    """A bounded history with absolute offsets: `head` is where the next byte goes, `tail` is the oldest one kept.

    At least the last `size` bytes are kept, at most twice as many.
    """

    def __init__(self, fd: int, *, adopt: bool = False) -> None:
        """Use the memory behind `fd`, which stays the caller's. Raises `RingError`."""
        length = os.fstat(fd).st_size
        if length <= _DATA_AT:
            raise RingError("the memory of a terminal's history is too small")
        try:
            self._map = mmap.mmap(fd, length)
        except OSError as error:
            raise RingError(f"the memory of a terminal's history cannot be mapped: {error.strerror}") from error
        self._capacity = length - _DATA_AT
        self.size = self._capacity // 2
        self.head = self.tail = 0
        self._tracker = Tracker()
        if adopt:
            self._load()
        else:
            self._map[: len(_MAGIC)] = _MAGIC

    @staticmethod
    def allocate(size: int) -> int:
        """A descriptor of memory for a ring that keeps `size` bytes. Pages are taken when they are written to.

        Raises `OSError`.
        """
        fd = os.memfd_create("terminal", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, _DATA_AT + 2 * size)
        except OSError:
            os.close(fd)
            raise
        return fd

    def append(self, data: bytes) -> None:
        """Add output. What is more than fits is as if it had come in pieces."""
        for begin in range(0, len(data), self.size):
            piece = data[begin : begin + self.size] if len(data) > self.size else data
            if self.head + len(piece) - self.tail > self._capacity:
                self.trim()
            at = self.head % self._capacity
            first = min(len(piece), self._capacity - at)
            self._map[_DATA_AT + at : _DATA_AT + at + first] = piece[:first]
            if first < len(piece):
                self._map[_DATA_AT : _DATA_AT + len(piece) - first] = piece[first:]
            self.head += len(piece)
            _HEAD.pack_into(self._map, _HEAD_AT, self.head)

    def read(self, offset: int, limit: int) -> bytes:
        """At most `limit` bytes from `offset`, which is not before `tail`."""
        at = offset % self._capacity
        count = min(limit, self.head - offset, self._capacity - at)
        return self._map[_DATA_AT + at : _DATA_AT + at + count]

    def trim(self) -> None:
        """Forget all but the last `size` bytes."""
        target = self.head - self.size
        if target <= self.tail:
            return
        while self.tail < target:
            block = self.read(self.tail, min(_BLOCK, target - self.tail))
            self._tracker.feed(block)
            self.tail += len(block)
        self._store()

    def replay(self, rows: int = 0) -> Replay:
        """What makes a terminal that was just reset look as if it had seen everything; `rows` it has, if known.

        Sequences that ask the terminal for an answer, or do something beside drawing, are left out: they had their
        effect when they came.
        """
        self.trim()
        kept = self.read(self.tail, self._capacity)
        kept += self.read(self.tail + len(kept), self._capacity)
        now = Tracker.load(self._tracker.dump())
        now.feed(kept)
        data = self._tracker.restore(rows) + without_effects(self._tracker.unfinished + kept)
        return Replay(data, now.alternate)

    def close(self) -> None:
        self._map.close()

    def _store(self) -> None:
        """Write the state at the tail to the slot that is not in use, then switch."""
        active = 1 - (self._map[_ACTIVE_AT] & 1)
        at = _SLOTS_AT + active * _SLOT_SIZE
        state = self._tracker.dump()
        if len(state) > _SLOT_SIZE - _SLOT.size:
            raise AssertionError("the state of a tracker is bounded")
        self._map[at + _SLOT.size : at + _SLOT.size + len(state)] = state
        _SLOT.pack_into(self._map, at, self.tail, len(state))
        self._map[_ACTIVE_AT] = active

    def _load(self) -> None:
        if self._map[: len(_MAGIC)] != _MAGIC:
            raise RingError("the memory holds no terminal's history")
        (self.head,) = _HEAD.unpack_from(self._map, _HEAD_AT)
        at = _SLOTS_AT + (self._map[_ACTIVE_AT] & 1) * _SLOT_SIZE
        self.tail, length = _SLOT.unpack_from(self._map, at)
        if not 0 <= self.head - self.tail <= self._capacity or length > _SLOT_SIZE - _SLOT.size:
            raise RingError("the history of a terminal is damaged")
        if length:
            try:
                self._tracker = Tracker.load(self._map[at + _SLOT.size : at + _SLOT.size + length])
            except ValueError as error:
                raise RingError("the history of a terminal is damaged") from error
