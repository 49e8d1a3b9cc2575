"""Log lines as the server takes them in, over RPC and over REST (agent-api.md §10.4). No database, no waiting."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

from agent.api.proto import agent_pb2 as pb

MAX_REQUEST = 1048576
"""Bytes of output that one request may carry; more counts as reaching the agent's limit."""
MAX_LINE = 1024
"""Characters of a line that are stored; its full length still counts."""
EXTERNAL_SOURCE = UUID("3b579bf4-1ed8-4b99-87a8-e9a1e3410410")
EXTERNAL_NAME, EXTERNAL_ICON = "External", "/emojis/1f310.png"
LEVELS: dict[str, int] = {name.lower(): number for name, number in pb.Log.Level.items() if number}
"""Names in JSON → numbers in protobuf and in the store."""
LEVEL_NAMES: dict[int, str] = {number: name for name, number in LEVELS.items()}


class LogLine(NamedTuple):
    """`level` is a number of `pb.Log.Level`; `output` is cut. `size` is the length of the whole line in bytes; an empty
    line counts as one, so that an endless number of them comes to an end, too."""

    level: int
    output: str
    size: int


def from_proto(logs: Iterable[pb.Log]) -> list[LogLine]:
    """The lines of a BatchCreateLogs request; an unknown level is info."""
    return [line(log.level, log.output) for log in logs]


def line(level: int, output: str) -> LogLine:
    """One line as it is stored: NUL replaced, cut. What was decoded is valid UTF-8 already."""
    if "\0" in output:
        output = clean(output)
    size = len(output) if output.isascii() else len(output.encode())
    return LogLine(level if level in LEVEL_NAMES else pb.Log.INFO, output[:MAX_LINE], size or 1)


def clean(text: str) -> str:
    """Text that every database takes: a NUL byte becomes ❌ (§10.3)."""
    return text.replace("\0", "❌")
