"""Fuzz targets. A part is a module with `seeds()`, inputs to begin with, and `target(data)`, which raises where
something is wrong."""

from __future__ import annotations


class Input:
    """Decisions read out of the bytes that a fuzzer makes. True as long as there are some; what is missing is zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        """At most `count` bytes."""
        part = self._data[self._at : self._at + count]
        self._at += count
        return part

    def number(self, size: int = 1) -> int:
        """Of `size` bytes, unsigned."""
        return int.from_bytes(self.take(size), "little")

    def near(self, size: int = 2) -> int:
        """Of `size` bytes, signed."""
        return int.from_bytes(self.take(size), "little", signed=True)

    def text(self) -> bytes:
        """Bytes with their length in front, at most 255 ..., or up to 65535 where the first length byte is 255."""
        size = self.number()
        return self.take(size if size < 255 else self.number(2))

    def rest(self) -> bytes:
        return self.take(len(self._data))
