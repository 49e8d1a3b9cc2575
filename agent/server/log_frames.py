"""Log rows as they are sent to people (agent-api.md §3.6). No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from uuid import UUID

import msgspec

from agent.server.log_lines import LEVEL_NAMES
from agent.server.store.logs import LogRow
from agent.server.wire import Time, encode, rfc3339

MAX_MESSAGE = 32 * 1024 - 1
"""Bytes of a message on the follow socket: the command line of 2026 reads no larger ones."""


class LogOut(msgspec.Struct):
    """One line."""

    id: int
    created_at: Time
    output: str
    level: str
    source_id: UUID


def encode_rows(rows: Iterable[LogRow]) -> Iterator[bytes]:
    """One JSON object per row."""
    micros, time = None, ""
    for row in rows:
        if row.created_at != micros:  # all lines of a request have the same
            micros, time = row.created_at, rfc3339(row.created_at)
        yield encode(LogOut(row.id, time, row.output, LEVEL_NAMES[row.level], row.source_id))[:-1]


def frames(rows: Iterable[LogRow]) -> Iterator[str]:
    """JSON arrays of the rows in order, none empty, each with its newline at most `MAX_MESSAGE` bytes.

    One row always fits: its 1024 characters take 6 KiB when each of them is escaped.
    """
    batch: list[bytes] = []
    size = 2  # the closing bracket and the newline; each row brings its comma or the opening bracket
    for row in encode_rows(rows):
        if batch and size + len(row) + 1 > MAX_MESSAGE:
            yield _array(batch)
            batch, size = [], 2
        batch.append(row)
        size += len(row) + 1
    if batch:
        yield _array(batch)


def text_lines(rows: Iterable[LogRow], agent_name: str, sources: Mapping[UUID, str]) -> Iterator[str]:
    """The plain form: `<time> [<level>] [agent.<name>|<source>] <output>`."""
    for row in rows:
        origin = f"agent.{agent_name}" if agent_name else "agent"
        if source := sources.get(row.source_id, ""):
            origin += f"|{source}"
        time = rfc3339(row.created_at - row.created_at % 1_000_000)
        yield f"{time} [{LEVEL_NAMES[row.level]}] [{origin}] {row.output}\n"


def _array(rows: list[bytes]) -> str:
    return (b"[" + b",".join(rows) + b"]\n").decode()
