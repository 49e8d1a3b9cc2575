"""The output of one run of a script: pipes → write-ahead files → log file and spool. Runs in the worker's thread."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from uuid import UUID

from agent.api.proto import agent_pb2 as pb
from agent.logs.checkpoints import Checkpoints
from agent.logs.disk import Disk, Logger
from agent.logs.lines import LineSplitter, lines_of
from agent.logs.records import MAX_LINE, RunPosition, StreamPosition
from agent.logs.redact import Redactor, StreamRedactor
from agent.logs.spool import Spool
from agent.logs.worker import Worker
from agent.logs.writeahead import WriteAhead

_SHARED = 2**63
"""In place of the size of a log file that somebody else writes to or cuts off: it cannot be told what follows it."""

_LAST_READS = 16
"""Chunks that `finish` still takes out of a pipe whose writers go on: more than a pipe holds."""


class LogFile:
    """The script's own log file. A write that fails is told once, and the rest goes on without it."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self.error: OSError | None = None
        self.size = 0
        if descriptor is not None:
            with contextlib.suppress(OSError):  # a terminal or a pipe has no position, and needs none
                self.size = os.lseek(descriptor, 0, os.SEEK_END)

    def cut_back(self, size: int, at_most: int) -> bool:
        """Forget what follows `size` because it will be written again, if that can be: it is `at_most` so long."""
        if self._descriptor is None or not 0 <= self.size - size <= at_most:
            return False  # it is missing, shared, or was written to while the write-ahead files could not be
        try:
            os.ftruncate(self._descriptor, size)
            self.size = os.lseek(self._descriptor, size, os.SEEK_SET)
        except OSError:  # a device
            return False
        return True

    def write(self, data: bytes) -> OSError | None:
        """Append. Returns the error when it is the first."""
        if self._descriptor is None:
            return None
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            if self.error is None:
                self.error = error
                return error
        else:
            self._check_size(len(data))
        return None

    def _check_size(self, written: int) -> None:
        self.size += written
        with contextlib.suppress(OSError):  # no position, as above
            assert self._descriptor is not None
            if os.lseek(self._descriptor, 0, os.SEEK_CUR) != self.size:
                self.size = _SHARED

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Stream:
    """Standard output or standard error of a run."""

    def __init__(
        self, level: int, pipe: int | None, files: WriteAhead, redactor: Redactor, start: StreamPosition
    ) -> None:
        self.level = level
        self.pipe = pipe
        self.files = files
        self.redactor = StreamRedactor(redactor, start.offset)
        self.splitter = LineSplitter(MAX_LINE, skipping=start.skipping)
        self.already_logged = 0
        """Bytes to come that the log file has from before."""
        self.flushed = False

    @property
    def position(self) -> StreamPosition:
        if self.splitter.skipping:
            return StreamPosition(self.redactor.position, skipping=True)
        if self.flushed:
            return StreamPosition(self.redactor.position)
        return StreamPosition(self.redactor.line_start, self.splitter.partial + self.already_logged)


class Run:
    """Thread-confined. `ended` is called when both pipes have ended and everything was taken in."""

    def __init__(
        self,
        run_id: UUID,
        source_id: UUID,
        descriptors: tuple[int | None, int | None, int | None],
        *,
        spool: Spool,
        checkpoints: Checkpoints,
        disk: Disk,
        redactor: Redactor,
        worker: Worker,
        logger: Logger,
        ended: Callable[[], None],
    ) -> None:
        self._run_id = run_id
        self._source_id = source_id
        self._spool = spool
        self._checkpoints = checkpoints
        self._redactor = redactor
        self._worker = worker
        self._logger = logger
        self._ended = ended
        self._durable = True
        self._told_too_long = False
        log, *pipes = descriptors
        self._log = LogFile(log)
        position = checkpoints.get(run_id)
        starts = StreamPosition(), StreamPosition()
        if position is not None:
            starts = position.stdout, position.stderr
        directory = checkpoints.directory(run_id)
        self._stdout, self._stderr = (
            Stream(level, pipe, WriteAhead(directory, name, disk), redactor, start)
            for level, pipe, name, start in zip(
                (pb.Log.INFO, pb.Log.ERROR), pipes, ("stdout", "stderr"), starts, strict=True
            )
        )
        if position is not None:
            self._resume(position)
        for stream in self._open_streams:
            assert stream.pipe is not None
            os.set_blocking(stream.pipe, False)
            worker.watch(stream.pipe, self._reader(stream))
        self._check_ended()

    @property
    def _open_streams(self) -> list[Stream]:
        return [stream for stream in (self._stdout, self._stderr) if stream.pipe is not None]

    def _resume(self, position: RunPosition) -> None:
        """Go on where a former process was killed."""
        streams = (self._stdout, position.stdout), (self._stderr, position.stderr)
        again = sum(stream.files.resume(start.offset) for stream, start in streams)
        if self._log.cut_back(position.log, again):
            for stream, start in streams:
                stream.already_logged = start.logged
        for stream, start in streams:
            for chunk in stream.files.replay(start.offset):
                self._take(stream, chunk)

    def _reader(self, stream: Stream) -> Callable[[], object]:
        return lambda: self._read(stream)

    def _read(self, stream: Stream) -> bool:
        """Take what the pipe has; was there something?"""
        assert stream.pipe is not None
        try:
            data = stream.files.transfer(stream.pipe)
        except OSError as error:  # of the pipe itself
            self._logger.warning("A script's output cannot be read.", run=str(self._run_id), error=error.strerror)
            data = b""
        if data is None:
            return False
        if not data:
            self._close_pipe(stream)
            self._check_ended()
            return False
        self._take(stream, data)
        return True

    def _close_pipe(self, stream: Stream) -> None:
        if stream.pipe is not None:
            self._worker.unwatch(stream.pipe)
            os.close(stream.pipe)
            stream.pipe = None

    def _check_ended(self) -> None:
        if not self._open_streams:
            self._ended()

    def _take(self, stream: Stream, data: bytes) -> None:
        output = stream.redactor.feed(data)
        self._write_log(stream, output)
        self._queue(stream, stream.splitter.feed(output))

    def _write_log(self, stream: Stream, output: bytes) -> None:
        skip = min(stream.already_logged, len(output))
        stream.already_logged -= skip
        error = self._log.write(output[skip:] if skip else output)
        if error is not None:
            # Without a position: this output is not in the spool yet.
            text = f"[agent] the log file cannot be written: {error.strerror}; going on without it"
            self._spool.append(self._source_id, pb.Log.WARN, lines_of(text, MAX_LINE))

    def _queue(self, stream: Stream, lines: list[bytes]) -> None:
        too_long = stream.splitter.dropped > 0 and not self._told_too_long
        if not (lines or too_long or stream.splitter.skipping):
            return
        self._append(stream.level, lines)
        if too_long:
            self._told_too_long = True
            self._spool_line(
                pb.Log.WARN,
                f"[agent] a line of more than {MAX_LINE} bytes is left out here; the log file of the script has it. "
                "Further ones of this run are left out without a word.",
            )
        offset = stream.position.offset
        if stream.files.removable(offset):
            if not self._durable:
                self._checkpoints.save(self._run_id)
            stream.files.remove_before(offset)

    def _append(self, level: int, lines: list[bytes]) -> None:
        position = RunPosition(self._run_id, self._stdout.position, self._stderr.position, self._log.size)
        self._durable = self._spool.append(self._source_id, level, lines, position)
        self._checkpoints.update(position, self._source_id)

    def _spool_line(self, level: int, text: str) -> None:
        self._append(level, lines_of(text, MAX_LINE))

    def note(self, text: str) -> None:
        """A line of the agent's own."""
        text = self._redactor.apply(text)
        self._log.write(text.encode("utf-8", "replace") + b"\n")
        self._spool_line(pb.Log.ERROR, text)

    def finish(self) -> None:
        """Take what is in the pipes, close them, flush, and forget what was kept for a later process."""
        for stream in self._open_streams:
            for _ in range(_LAST_READS):
                if not self._read(stream):
                    break
            self._close_pipe(stream)
        for stream in (self._stdout, self._stderr):
            output = stream.redactor.flush()
            self._write_log(stream, output)
            lines = stream.splitter.feed(output) + stream.splitter.flush()
            stream.flushed = True
            self._queue(stream, lines)
        self._log.close()
        self._stdout.files.remove()
        self._stderr.files.remove()
        self._checkpoints.forget(self._run_id)
        self._spool.tidy(self._source_id)

    def leave(self) -> None:
        """Close everything and leave the rest to a later process."""
        for stream in (self._stdout, self._stderr):
            self._close_pipe(stream)
            stream.files.close()
        self._log.close()
