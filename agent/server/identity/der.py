"""Reading DER (X.690), strictly: definite lengths in their shortest form, and nothing after the end.

Only what is asked for is looked into, so that nothing here recurses however deep a value is.
"""

from __future__ import annotations

from typing import Final

INTEGER: Final = 0x02
OCTET_STRING: Final = 0x04
OBJECT_IDENTIFIER: Final = 0x06
SEQUENCE: Final = 0x30
SET: Final = 0x31
MAX_LENGTH_OCTETS: Final = 4


class DerError(ValueError):
    """The text says what is wrong, not what was there."""


def tagged(number: int) -> int:
    """The constructed context-specific tag `[number]`."""
    return 0xA0 | number


class Reader:
    """The values of one constructed value, one after another."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def next_tag(self) -> int | None:
        """None at the end."""
        return self._data[self._at] if self._at < len(self._data) else None

    def read(self, tag: int) -> bytes:
        """The content of the next value, which must have this tag."""
        start, end = self._bounds(tag)
        self._at = end
        return self._data[start:end]

    def read_whole(self, tag: int) -> bytes:
        """The next value with its tag and length."""
        begin = self._at
        _, self._at = self._bounds(tag)
        return self._data[begin : self._at]

    def enter(self, tag: int) -> Reader:
        return Reader(self.read(tag))

    def optional(self, tag: int) -> bytes | None:
        """The content of the next value if it has this tag."""
        return self.read(tag) if self.next_tag == tag else None

    def integer(self) -> int:
        content = self.read(INTEGER)
        if not content or (len(content) > 1 and (content[0], content[1] >> 7) in ((0x00, 0), (0xFF, 1))):
            raise DerError("an INTEGER is not in its shortest form")
        return int.from_bytes(content, "big", signed=True)

    def end(self) -> None:
        if self._at != len(self._data):
            raise DerError("there is more than there should be")

    def _bounds(self, tag: int) -> tuple[int, int]:
        """Where the content of the next value starts and ends."""
        data, at = self._data, self._at
        if len(data) - at < 2:
            raise DerError("it ends too early")
        if data[at] != tag:
            raise DerError(f"tag {data[at]:#04x} is where {tag:#04x} is expected")
        length, at = data[at + 1], at + 2
        if length >= 0x80:
            octets = length & 0x7F
            if not 1 <= octets <= MAX_LENGTH_OCTETS:
                raise DerError("a length is indefinite or too long")
            written = data[at : at + octets]
            length, at = int.from_bytes(written, "big"), at + octets
            if len(written) < octets or written[0] == 0 or length < 0x80:
                raise DerError("a length is not in its shortest form")
        if length > len(data) - at:
            raise DerError("it ends too early")
        return at, at + length
