"""The agent's log file and its predecessors, as one stream (terminal-ssh-http.md §4.4)."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

ACTIVE: Final = "coder-agent.log"
ROTATED: Final = re.compile(r"coder-agent-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}\.log")
MAX_ACTIVE: Final = 10 * 1024 * 1024
MAX_ALL: Final = 100 * 1024 * 1024
CHUNK: Final = 256 * 1024
_OPEN: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_RFC3339: Final = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def from_rfc3339(text: str) -> int:
    """Nanoseconds since 1970 UTC. Raises `ValueError`."""
    found = _RFC3339.fullmatch(text)
    if found is None:
        raise ValueError(f'"{text}" is not like 2026-06-27T12:00:00Z')
    date, time, fraction, zone = found.groups()
    moment = datetime.fromisoformat(f"{date}T{time}{'+00:00' if zone in 'Zz' else zone}")
    # Not by timestamp(): a float has no room for nanoseconds.
    seconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // _SECOND
    return seconds * 1_000_000_000 + int((fraction or "").ljust(9, "0"))


_SECOND: Final = datetime(1970, 1, 1, 0, 0, 1) - datetime(1970, 1, 1)  # noqa: DTZ001 - a difference


def to_rfc3339(wall_ns: int) -> str:
    """`2026-06-27T12:00:00.5Z`: as many digits as are needed."""
    moment = datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC)
    fraction = f".{wall_ns % 1_000_000_000:09d}".rstrip("0").rstrip(".")
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def read_active(directory: Path) -> Generator[bytes]:
    """The first 10 MiB of the file that is written now. The first step opens it: `OSError`."""
    descriptor = os.open(directory / ACTIVE, _OPEN)
    try:
        yield b""
        yield from _chunks(descriptor, MAX_ACTIVE)
    finally:
        os.close(descriptor)


def read_since(directory: Path, after: int) -> Generator[bytes]:
    """The active file, then those put aside that were written at `after` (ns) or later, the newest first, each under a
    line with its name: 100 MiB in all. The first step opens the active file: `OSError`."""
    descriptor = os.open(directory / ACTIVE, _OPEN)
    try:
        yield b""
        left = MAX_ALL
        head = _head(ACTIVE, os.fstat(descriptor))
        yield head
        left -= len(head)
        for chunk in _chunks(descriptor, MAX_ACTIVE):
            left -= len(chunk)
            yield chunk
    finally:
        os.close(descriptor)
    for name in _rotated(directory, after):
        try:
            descriptor = os.open(directory / name, _OPEN)
        except OSError:
            continue  # rotated away meanwhile, or a link
        try:
            status = os.fstat(descriptor)
            head = b"\n" + _head(name, status)
            if not stat.S_ISREG(status.st_mode):
                continue
            if left <= len(head):
                return
            yield head
            left -= len(head)
            for chunk in _chunks(descriptor, left):
                left -= len(chunk)
                yield chunk
        finally:
            os.close(descriptor)


def _rotated(directory: Path, after: int) -> list[str]:
    found = []
    for entry in os.scandir(directory):
        if ROTATED.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            written = entry.stat(follow_symlinks=False).st_mtime_ns
            if written >= after:
                found.append((written, entry.name))
    return [name for _, name in sorted(found, reverse=True)]


def _head(name: str, status: os.stat_result) -> bytes:
    return f"=== {name} (mtime {to_rfc3339(status.st_mtime_ns)}) ===\n".encode()


def _chunks(descriptor: int, limit: int) -> Generator[bytes]:
    while limit > 0 and (chunk := os.read(descriptor, min(CHUNK, limit))):
        limit -= len(chunk)
        yield chunk
