"""The messages of a speed test: one line of JSON each way, then only bytes (tailnet.md §8.6).

Without input or output. What follows the lines has no form: the side that sends decides how much it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

VERSION: Final = 2
BLOCK: Final = 2 * 1024 * 1024
"""Bytes that are sent at once; some clients count whole blocks only."""
MAX_LINE: Final = 4096
MAX_INT64: Final = (1 << 63) - 1


class SpeedtestError(ValueError):
    """What the other side said is no speed test, or it refuses one. The text is what the wire carries."""


class Direction(IntEnum):
    """Who sends, from the client's point of view."""

    DOWN = 0
    UP = 1


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for; `time` is in nanoseconds."""

    time: int
    direction: Direction

    def encode(self) -> bytes:
        """The line, its newline included."""
        value = {"version": VERSION, "time": self.time, "direction": int(self.direction)}
        return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def read_request(line: bytes) -> Request:
    """Raises `SpeedtestError` with the text to answer."""
    value = _object(line)
    version, time, direction = (value.get(name, 0) for name in ("version", "time", "direction"))
    if any(type(number) is not int or abs(number) > MAX_INT64 for number in (version, time, direction)):
        raise SpeedtestError("version, time and direction must be whole numbers")
    if version != VERSION:
        raise SpeedtestError(f"version mismatch! Server is version {VERSION}, client is version {version}")
    if direction not in tuple(Direction):
        raise SpeedtestError(f"direction must be 0 or 1, not {direction}")
    return Request(time, Direction(direction))


def answer(error: str = "") -> bytes:
    """The server's line."""
    value = {"error": error} if error else {}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def read_answer(line: bytes) -> None:
    """Raises `SpeedtestError` when the server refuses."""
    error = _object(line).get("error")
    if error:
        raise SpeedtestError(str(error))


class Line:
    """The first line of a connection, out of pieces of any size."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive(self, data: bytes) -> tuple[bytes, bytes] | None:
        """The line and what came after it, once it is complete. Raises `SpeedtestError` when it is too long."""
        searched = len(self._buffer)
        self._buffer += data
        end = self._buffer.find(b"\n", searched)
        if (len(self._buffer) if end < 0 else end) > MAX_LINE:
            raise SpeedtestError(f"the first line is longer than {MAX_LINE} bytes")
        if end < 0:
            return None
        return bytes(self._buffer[:end]), bytes(self._buffer[end + 1 :])


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SpeedtestError(f"it is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise SpeedtestError("it is no JSON object")
    return value
