"""The agent's own log: structlog in front, one thread behind that writes people's, JSON and rotating-file sinks.

A caller never waits for a disk or a terminal: records go through a bounded queue, and what does not fit is counted and
said later in one line. Values given to `LogOutput.redact` (the token, secrets) are replaced in everything written.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

_rich_was_there = "rich" in sys.modules
if not _rich_was_there:
    # structlog loads rich, when it can be found, for coloured tracebacks that a daemon has no use for: a tenth of the
    # time to `ready` and 5 MB of memory. A None in sys.modules makes it say that rich is not installed.
    sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
finally:
    if not _rich_was_there:
        del sys.modules["rich"]

FILE_NAME = "coder-agent.log"
FILE_LIMIT = 5 * 1024 * 1024
"""Bytes after which the rotating file is put aside (daemon.md §1.8)."""
BACKUPS = 10
QUEUE_LIMIT = 10_000
"""Records that wait for the writer thread; more are dropped and counted."""
RETRY_AFTER = 10.0
"""Seconds before a sink that failed is tried again."""
CLOSE_LIMIT = 2.0
"""Seconds that closing waits for the writer thread; a sink that hangs must not hold up the exit."""
REDACTED = "[redacted]"
MIN_SECRET = 6
"""Shorter values are not redacted: they would blank out half of the log."""

get_logger = structlog.get_logger


class LogOutputError(Exception):
    """A sink could not be opened; the text names it."""


@dataclass(frozen=True, slots=True)
class Record:
    """One entry; `wall` is in nanoseconds since 1970 UTC, `level` a number of the standard library's logging."""

    wall: int
    level: int
    name: str
    message: str
    fields: tuple[tuple[str, str], ...]
    stack: str = ""

    @property
    def level_name(self) -> str:
        """`debug`, `info`, `warning`, `error` or `critical`."""
        return logging.getLevelName(self.level).lower()


class Sink(Protocol):
    """Where rendered records go."""

    level: int
    adjustable: bool
    """Whether `level` may be changed while the agent runs."""

    def render(self, record: Record) -> str:
        """The record as lines, with the final newline."""

    def write(self, text: bytes) -> None:
        """Raises `OSError`."""

    def close(self) -> None:
        """Close what it opened itself."""


# ---- rendering


def human(record: Record) -> str:
    """`2026-06-27 12:00:00.123 [info]  name: message  key=value`, several-line values on lines of their own."""
    moment = datetime.fromtimestamp(record.wall // 1_000_000 / 1000, UTC)
    head = f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d} [{record.level_name}]  "
    text = head + f"{record.name}: {_one_line(record.message)}"
    tail = ""
    for key, value in record.fields:
        if "\n" in value:
            tail += f"\n  {key}= " + value.rstrip("\n").replace("\n", "\n    ")
        else:
            text += f"  {key}={value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)}"
    if record.stack:
        tail += "\n  " + record.stack.rstrip("\n").replace("\n", "\n  ")
    # What a server or a script says must not steer the terminal that shows it.
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text + tail) + "\n"


def as_json(record: Record) -> str:
    """One JSON object on one line."""
    entry: dict[str, object] = {
        "ts": _timestamp(record.wall),
        "level": record.level_name.upper(),
        "logger_names": [record.name],
        "msg": record.message,
        "fields": dict(record.fields),
    }
    if record.stack:
        entry["stack"] = record.stack
    return json.dumps(entry, ensure_ascii=False) + "\n"


def stackdriver(record: Record) -> str:
    """One JSON object on one line, with the field names that Google Cloud Logging reads."""
    entry: dict[str, object] = {
        "severity": record.level_name.upper(),
        "time": _timestamp(record.wall),
        "message": f"{record.name}: {record.message}",
        **{key: value for key, value in record.fields if key not in ("severity", "time", "message")},
    }
    if record.stack:
        entry["stack_trace"] = record.stack
    return json.dumps(entry, ensure_ascii=False) + "\n"


_CONTROL = re.compile(r"[^\t\n\x20-\x7e\xa0-\U0010ffff]")
_PLAIN = re.compile(r"[\w@%+:,./\[\]-]+")


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n")


def _timestamp(wall_ns: int) -> str:
    moment = datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{wall_ns % 1_000_000_000:09d}Z"


# ---- sinks


class StreamSink:
    """A stream of the process, or a file that is only ever appended to."""

    def __init__(self, path: str, render: Callable[[Record], str], level: int = logging.INFO) -> None:
        """Opens `path`; `/dev/stderr` and `/dev/stdout` are the process's own. Raises `LogOutputError`."""
        self.level = level
        self.adjustable = True
        self.render = render
        streams = {"/dev/stdout": 1, "/dev/stderr": 2}
        self._own = path not in streams
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o644) if self._own else streams[path]
        except OSError as error:
            raise LogOutputError(f'open log sink "{path}": {error.strerror or error}') from error

    def write(self, text: bytes) -> None:
        _write_all(self._descriptor, text)

    def close(self) -> None:
        if self._own:
            os.close(self._descriptor)


class RotatingFile:
    """`coder-agent.log` and the files that it was before (daemon.md §1.8). Opened at the first write."""

    def __init__(self, directory: Path, *, limit: int = FILE_LIMIT, backups: int = BACKUPS) -> None:
        self.level = logging.DEBUG
        self.adjustable = False
        self.render = human
        self.path = directory / FILE_NAME
        self._limit = limit
        self._backups = backups
        self._descriptor: int | None = None
        self._size = 0
        self._mode = 0o600

    def write(self, text: bytes) -> None:
        if len(text) > self._limit:
            return  # as daemon.md §1.8 says: no file could hold it
        if self._descriptor is None:
            self._open()
            if self._size and self._size + len(text) >= self._limit:
                self._rotate()
        elif self._size + len(text) > self._limit:
            self._rotate()
        assert self._descriptor is not None
        written = os.write(self._descriptor, text)
        self._size += written
        if written < len(text):
            _write_all(self._descriptor, text[written:])
            self._size += len(text) - written

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> None:
        # 0755 is what the specification gives the directory; it may be one that everybody uses, such as /tmp, so a
        # link in place of the file is refused.
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self.path, flags, self._mode)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise OSError(0, "it is not a regular file", str(self.path))
        if status.st_uid != os.geteuid():
            os.close(descriptor)
            raise OSError(0, f"it belongs to user {status.st_uid}, who could read the log: remove it", str(self.path))
        self._descriptor, self._size, self._mode = descriptor, status.st_size, stat.S_IMODE(status.st_mode)

    def _rotate(self) -> None:
        self.close()
        moment = datetime.now(UTC)
        stamp = f"{moment:%Y-%m-%dT%H-%M-%S}.{moment.microsecond // 1000:03d}"
        os.rename(self.path, self.path.with_name(f"{self.path.stem}-{stamp}.log"))
        pattern = re.compile(re.escape(self.path.stem) + r"-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}\.log")
        old = sorted(name for name in os.listdir(self.path.parent) if pattern.fullmatch(name))
        for name in old[: -self._backups]:
            os.unlink(self.path.parent / name)
        self._open()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


# ---- the writer


class LogOutput:
    """The queue, and the thread that empties it into the sinks. A sink that fails loses lines, nothing else."""

    def __init__(self, sinks: Sequence[Sink], now: Callable[[], float] = time.monotonic) -> None:
        self._sinks = [_GuardedSink(sink, now) for sink in sinks]
        self._level = min((sink.level for sink in sinks), default=logging.CRITICAL)
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._secrets: tuple[str, ...] = ()
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="log writer", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def set_level(self, level: int) -> None:
        """What streams get from now on; the file has everything in any case."""
        for sink in self._sinks:
            sink.set_level(level)
        self._level = min((sink.level for sink in self._sinks), default=logging.CRITICAL)

    def redact(self, values: Iterable[str]) -> None:
        """Never write any of these values from now on."""
        known = {*self._secrets, *(value for value in values if len(value) >= MIN_SECRET)}
        self._secrets = tuple(sorted(known, key=len, reverse=True))  # one secret may contain another

    def put(self, record: Record) -> None:
        """Queue a record; never waits."""
        if record.level < self._level:
            return
        if self._queue.qsize() >= QUEUE_LIMIT:
            self._dropped += 1
            return
        if self._dropped:
            lost, self._dropped = self._dropped, 0
            message = f"{lost} log records were dropped: the log could not be written fast enough"
            self._queue.put(Record(record.wall, logging.WARNING, "agent.log", message, ()))
        self._queue.put(record)

    def close(self) -> None:
        """Write what is queued, within `CLOSE_LIMIT` seconds, and close the sinks."""
        if not self._thread.is_alive():
            return
        self._queue.put(None)
        self._thread.join(CLOSE_LIMIT)
        if not self._thread.is_alive():
            for sink in self._sinks:
                sink.close()

    def _write(self) -> None:
        while (record := self._queue.get()) is not None:
            for sink in self._sinks:
                sink.write(record, self.clean)

    def clean(self, text: str) -> str:
        """The text with every value that must not be written blanked out."""
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return text


class _GuardedSink:
    """Leaves a failed sink alone for a while, then says in it what is missing."""

    def __init__(self, sink: Sink, now: Callable[[], float]) -> None:
        self._sink = sink
        self._now = now
        self._retry_at = 0.0
        self._lost = 0
        self._reason = ""

    @property
    def level(self) -> int:
        return self._sink.level

    def set_level(self, level: int) -> None:
        if self._sink.adjustable:
            self._sink.level = level

    def write(self, record: Record, clean: Callable[[str], str]) -> None:
        if record.level < self._sink.level:
            return
        if self._lost and self._now() < self._retry_at:
            self._lost += 1
            return
        text = self._sink.render(record)
        if self._lost:
            message = f"{self._lost} log records were lost here: {self._reason}"
            text = self._sink.render(Record(record.wall, logging.WARNING, "agent.log", message, ())) + text
        try:
            self._sink.write(clean(text).encode("utf-8", "replace"))
        except OSError as error:
            self._lost += 1
            self._reason = f"{error.strerror or error}"
            self._retry_at = self._now() + RETRY_AFTER
        else:
            self._lost = 0

    def close(self) -> None:
        try:
            self._sink.close()
        except OSError as error:
            self._reason = str(error)  # nobody is left to tell: the process ends


# ---- the front


def install(output: LogOutput, wall: Callable[[], int] = time.time_ns) -> None:
    """Send structlog's and the standard library's records to `output`, for the whole process."""

    def emit(logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
        output.put(_record(wall(), logger.name, method, event))
        raise structlog.DropEvent

    structlog.configure(
        processors=[emit],
        wrapper_class=structlog.BoundLogger,
        logger_factory=_Named,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Bridge(output)]
    root.setLevel(logging.INFO)


class _Named:
    """What structlog calls a logger: here only the name, since `emit` does the writing."""

    def __init__(self, *names: str) -> None:
        self.name = names[0] if names else "agent"

    def __getattr__(self, method: str) -> Callable[..., None]:
        return lambda *_args, **_kwargs: None


class _Bridge(logging.Handler):
    """Records of libraries that use the standard library's logging."""

    def __init__(self, output: LogOutput) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        stack = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        self._output.put(
            Record(round(record.created * 1e9), record.levelno, record.name, record.getMessage(), (), stack)
        )


_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "exception": logging.ERROR,
    "critical": logging.CRITICAL,
}


def _record(wall: int, name: str, method: str, event: Mapping[str, Any]) -> Record:
    fields = dict(event)
    message = str(fields.pop("event", ""))
    exception = fields.pop("exc_info", None)
    if exception is True:
        exception = sys.exc_info()[1]
    stack = "".join(traceback.format_exception(exception)) if isinstance(exception, BaseException) else ""
    texts = tuple((key, _text(value)) for key, value in fields.items())
    return Record(wall, _LEVELS.get(method, logging.INFO), name, message, texts, stack)


def _text(value: object) -> str:
    if isinstance(value, BaseException):
        return str(value) or type(value).__name__
    return str(value)
