"""What was written and not yet cut into segments."""

from __future__ import annotations

from collections import deque

_SMALL = 2048


class SendBuffer:
    """A queue of bytes that hands out slices of what was written, without copying large pieces."""

    __slots__ = ("_chunks", "_offset", "_tail", "size")

    def __init__(self) -> None:
        self._chunks: deque[memoryview] = deque()
        self._offset = 0
        """Bytes of the first chunk that were taken."""
        self._tail = bytearray()
        """Small writes, joined until they are needed."""
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview, size: int) -> None:
        """Take the first `size` bytes of `data`; what can change is copied."""
        if size < _SMALL:
            self._tail += memoryview(data)[:size]
            if len(self._tail) >= _SMALL:
                self._flush()
        else:
            if self._tail:
                self._flush()
            self._chunks.append(memoryview(data if type(data) is bytes else bytes(data[:size]))[:size])
        self.size += size

    def _flush(self) -> None:
        self._chunks.append(memoryview(bytes(self._tail)))
        self._tail = bytearray()

    def take(self, size: int) -> bytes | memoryview:
        """The next `size` bytes, of which there must be as many."""
        self.size -= size
        offset = self._offset
        if not self._chunks:
            self._flush()
        chunk = self._chunks[0]
        end = offset + size
        if end < len(chunk):
            self._offset = end
            return chunk[offset:end]
        self._chunks.popleft()
        self._offset = 0
        piece = chunk[offset:] if offset else chunk
        if end == len(chunk):
            return piece
        pieces = [piece]
        size -= len(piece)
        while size:
            if not self._chunks:
                self._flush()
            chunk = self._chunks[0]
            if len(chunk) > size:
                pieces.append(chunk[:size])
                self._offset = size
                break
            pieces.append(self._chunks.popleft())
            size -= len(chunk)
        return b"".join(pieces)

    def clear(self) -> None:
        """Forget everything."""
        self._chunks.clear()
        self._tail = bytearray()
        self._offset = self.size = 0
