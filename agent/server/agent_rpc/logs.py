"""Log lines of one request, ready to be stored (agent-api.md §10.4). No database, no waiting."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

from agent.api.proto import agent_pb2 as pb
from agent.server.agent_rpc.reports import clean

MAX_REQUEST = 1048576
"""Bytes of output that one request may carry; more counts as reaching the agent's limit."""
MAX_LINE = 1024
"""Characters of a line that are stored; its full length still counts."""
EXTERNAL_SOURCE = UUID("3b579bf4-1ed8-4b99-87a8-e9a1e3410410")
EXTERNAL_NAME, EXTERNAL_ICON = "External", "/emojis/1f310.png"
LEVELS = ("trace", "debug", "info", "warn", "error")

_LEVEL_OF_NUMBER = dict(enumerate(LEVELS, start=pb.Log.TRACE))


class LogLine(NamedTuple):
    """`size` is the length of the whole line in bytes; `output` is cut."""

    level: str
    output: str
    size: int


def from_proto(logs: Iterable[pb.Log]) -> list[LogLine]:
    """The lines of a BatchCreateLogs request; an unknown level is info."""
    return [line(_LEVEL_OF_NUMBER.get(log.level, "info"), log.output) for log in logs]


def line(level: str, output: str) -> LogLine:
    """One line as it is stored: NUL replaced, cut."""
    if "\0" in output:
        output = clean(output)
    size = len(output) if output.isascii() else len(output.encode())
    return LogLine(level, output[:MAX_LINE], size)
