"""The receiving half: reassembly, the window, selective acknowledgements.

Positions count bytes of the peer's stream from its SYN, which is 0; the first byte is 1. They never wrap.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import deque
from operator import attrgetter

MAX_PIECES = 4096
"""Pieces kept out of order; a window of full segments has fewer. Beyond it a segment counts as lost."""
MAX_BLOCKS = 3
_FIRST = 1024 * 1024
"""The window before anything is known of the way."""
_LEAST = 512 * 1024
_SPELL = 0.02
"""Seconds over which arrivals are counted at least; a longer way counts for its round trip …"""
_SILENCE = 8
"""… and what took so many times that is no stream, and says nothing."""
_WAIT = 0.004
"""Seconds that bytes may wait between the peer and us, beyond the way itself, before a window is too large: they wait
with everything else that goes the same way, and what no socket can hold is lost."""
_AHEAD = 4
"""The window in what arrives meanwhile: a peer doubles what it sends with each round trip."""
_SMALL = 512
_JOINED = 4096


class _Range:
    """A run of bytes that arrived ahead of a gap."""

    __slots__ = ("chunks", "end", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start
        self.chunks: list[bytes] = []


_start = attrgetter("start")


class Receiver:
    """What the peer sent: in order and unread, or ahead of a gap. Memory stays within a small multiple of `limit`."""

    __slots__ = (
        "_chunks",
        "_consumed",
        "_duplicate",
        "_most",
        "_pieces",
        "_ranges",
        "_recent",
        "_spell_at",
        "_spell_from",
        "allowed",
        "buffered",
        "edge",
        "limit",
        "nxt",
    )

    def __init__(self, limit: int) -> None:
        """`limit`: bytes that may wait unread, at most."""
        self._most = limit
        self.limit = min(limit, _FIRST)
        """The window: it follows what arrives (`adapt`)."""
        self.allowed = sys.maxsize
        """The position up to which the peer may send whatever room there is; it never falls."""
        self.nxt = 1
        """The next position in order."""
        self.edge = 1 + self.limit
        """The right edge of the window that the peer was told last."""
        self.buffered = 0
        """Bytes in order and unread."""
        self._consumed = 1
        self._spell_at, self._spell_from = 0.0, 1
        self._chunks: deque[bytes] = deque()
        self._ranges: list[_Range] = []
        self._recent: list[_Range] = []
        self._pieces = 0
        self._duplicate: tuple[int, int] | None = None

    @property
    def gap(self) -> bool:
        """Whether something is missing in front of what arrived."""
        return bool(self._ranges)

    @property
    def last_acceptable(self) -> int:
        """The position behind the last byte that the peer may send."""
        # A window that was announced is not taken back.
        return max(self.edge, min(self._consumed + self.limit, self.allowed))

    @property
    def first_window(self) -> int:
        """Bytes that the peer may be offered before anything was announced."""
        return min(self.limit, self.allowed - 1)

    def restrict(self, most: int) -> None:
        """The peer understands no larger windows than `most`."""
        self._most = min(self._most, most)
        self.limit = min(self.limit, most)

    def forget_way(self) -> None:
        """The way is another one, whose length is not known yet."""
        self.limit = self._most

    def adapt(self, way: float, now: float) -> None:
        """A batch has arrived over a way with round trips of `way` seconds when nothing waits: once in a while, make
        the window as large as that way needs, and no larger."""
        spell = way if way > _SPELL else _SPELL
        passed = now - self._spell_at
        if passed < spell:
            return
        if passed < _SILENCE * spell:
            wanted = _AHEAD * (self.nxt - self._spell_from) * (way + _WAIT) / passed
            self.limit = min(self._most, max(int(wanted), _LEAST, self.limit * 3 // 4))
        self._spell_at, self._spell_from = now, self.nxt

    def window(self, mss: int) -> int:
        """Bytes to announce. The edge moves by a segment or half the buffer at least: no silly windows."""
        edge = self.last_acceptable
        if edge - self.edge >= min(mss, self.limit // 2):
            self.edge = edge
        return max(0, self.edge - self.nxt)

    def wants_update(self, mss: int) -> bool:
        """Whether reading has opened the window so far that the peer should hear of it without being asked."""
        growth = self.last_acceptable - self.edge
        left = self.edge - self.nxt
        return growth >= self.limit // 2 or (left < self.limit // 4 and growth >= min(2 * mss, self.limit // 2))

    def receive(self, start: int, payload: bytes) -> bool:
        """Take a segment's bytes; what does not fit the window is cut. True if `nxt` moved and nothing is missing."""
        end = start + len(payload)
        last = self.last_acceptable
        if end > last:
            if start >= last:
                return False
            payload = payload[: last - start]
            end = last
        nxt = self.nxt
        if start < nxt:
            self._duplicate = (start, min(end, nxt))
            if end <= nxt:
                return False
            payload = payload[nxt - start :]
            start = nxt
        if start != nxt:
            self._keep(start, end, payload)
            return False
        self._append(self._chunks, payload)
        self.buffered += end - start
        self.nxt = end
        if self._ranges:
            self._absorb()
            return False
        return True

    def extend(self, payload: bytes) -> bool:
        """Take bytes that are next in order, if there is room for all and nothing is missing; False if not."""
        size = len(payload)
        if not size or self._ranges or self.nxt + size > self.last_acceptable:
            return False
        self._append(self._chunks, payload)
        self.buffered += size
        self.nxt += size
        return True

    def note_duplicate(self, start: int, end: int) -> None:
        """Report a segment that had arrived before (RFC 2883)."""
        self._duplicate = (start, end)

    @staticmethod
    def _append(chunks: deque[bytes] | list[bytes], payload: bytes) -> None:
        """Join small pieces, so that a stream of single bytes does not cost an object for each."""
        if len(payload) < _SMALL and chunks and len(chunks[-1]) < _JOINED:
            chunks[-1] += payload
        else:
            chunks.append(payload)

    def _keep(self, start: int, end: int, payload: bytes) -> None:
        ranges = self._ranges
        index = bisect_right(ranges, start, key=_start)
        current = None
        if index and ranges[index - 1].end >= start:
            current = ranges[index - 1]
            if current.end >= end:
                self._duplicate = (start, end)
                self._note(current)
                return
            if current.end > start:
                payload = payload[current.end - start :]
                start = current.end
        if self._pieces >= MAX_PIECES:
            return
        if current is None:
            current = _Range(start)
            ranges.insert(index, current)
            index += 1
        before = len(current.chunks)
        following = 0
        while index < len(ranges) and ranges[index].start <= end:
            after = ranges.pop(index)
            if after.start > start:
                self._append(current.chunks, payload[: after.start - start])
            following += len(after.chunks)
            current.chunks += after.chunks
            current.end = after.end
            self._forget(after)
            if after.end >= end:
                break
            payload = payload[after.end - start :]
            start = after.end
        else:
            self._append(current.chunks, payload)
            current.end = end
        self._pieces += len(current.chunks) - before - following
        self._note(current)

    def _note(self, current: _Range) -> None:
        recent = self._recent
        if not recent or recent[0] is not current:
            self._forget(current)
            recent.insert(0, current)
            del recent[MAX_BLOCKS + 1 :]

    def _forget(self, old: _Range) -> None:
        if old in self._recent:
            self._recent.remove(old)

    def _absorb(self) -> None:
        """Move what is no longer ahead of a gap to what is in order."""
        ranges = self._ranges
        while ranges and ranges[0].start <= self.nxt:
            first = ranges.pop(0)
            self._forget(first)
            self._pieces -= len(first.chunks)
            if first.end <= self.nxt:
                continue
            skip = self.nxt - first.start
            for chunk in first.chunks:
                if skip >= len(chunk):
                    skip -= len(chunk)
                    continue
                self._append(self._chunks, chunk[skip:] if skip else chunk)
                skip = 0
            self.buffered += first.end - self.nxt
            self.nxt = first.end

    def blocks(self) -> list[tuple[int, int]]:
        """What to report beyond the cumulative acknowledgement: a duplicate once, then the latest runs first."""
        blocks = [(each.start, each.end) for each in self._recent]
        if self._duplicate is not None:
            blocks.insert(0, self._duplicate)
            self._duplicate = None
        elif len(blocks) < MAX_BLOCKS and len(blocks) < len(self._ranges):
            known = set(blocks)
            for each in self._ranges:
                if (each.start, each.end) not in known:
                    blocks.append((each.start, each.end))
                    if len(blocks) == MAX_BLOCKS:
                        break
        return blocks[:MAX_BLOCKS]

    @property
    def has_report(self) -> bool:
        """Whether `blocks` has something to say."""
        return bool(self._ranges) or self._duplicate is not None

    def read(self, limit: int) -> bytes:
        """Up to `limit` bytes in order; empty if there are none."""
        chunks = self._chunks
        if self.buffered <= limit:
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
        else:
            taken = []
            left = limit
            while left > 0:
                chunk = chunks.popleft()
                if len(chunk) > left:
                    chunks.appendleft(chunk[left:])
                    chunk = chunk[:left]
                taken.append(chunk)
                left -= len(chunk)
            data = b"".join(taken)
        self.buffered -= len(data)
        self._consumed += len(data)
        return data

    def discard(self) -> None:
        """Forget everything that waits."""
        self._consumed += self.buffered
        self.buffered = 0
        self._chunks.clear()
        self._ranges.clear()
        self._recent.clear()
        self._pieces = 0
