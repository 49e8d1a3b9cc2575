"""The logs room as the daemon and the scripts see it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from agent.api.methods import AgentApi
from agent.api.proto import agent_pb2 as pb
from agent.clock import Clock, wait_for
from agent.logs.capture import Run
from agent.logs.chain import Batch
from agent.logs.checkpoints import Checkpoints
from agent.logs.disk import Disk, LazyLogger, Logger
from agent.logs.lines import lines_of
from agent.logs.records import MAX_LINE
from agent.logs.redact import Redactor
from agent.logs.sender import Queue, Sender
from agent.logs.spool import Spool, SpoolLimits
from agent.logs.worker import Syncer, Worker, deliver

_FINISH_LIMIT = 10.0  # seconds that a stuck disk may hold up the end of a script, or of the agent
_MAX_BACKLOG = 4096  # notes that may wait for a stuck disk
_SYNC_INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class LogCounters:
    """A snapshot. Bytes are of text."""

    queued_lines: int
    queued_bytes: int
    dropped_lines: int
    dropped_bytes: int
    sent_lines: int
    memory_only: bool


class Capture:
    """The capture of one run's output; made by `LogService.start`."""

    def __init__(self, service: LogService, run_id: UUID, source_id: UUID) -> None:
        self._service = service
        self._run_id = run_id
        self._source_id = source_id
        self._eof = asyncio.Event()
        self._finishing: asyncio.Future[None] | None = None

    async def wait_eof(self) -> None:
        """Return when both pipes have ended and all of it is in the log file and the spool."""
        await self._eof.wait()

    def note(self, text: str) -> None:
        """Add a line of the agent's own, level ERROR, also to the log file."""
        if self._finishing is None:
            self._service.note_of_run(self._run_id, text)

    async def finish(self) -> None:
        """Stop reading, close the descriptors, flush partial lines, forget the write-ahead files.

        Takes at most 10 s; a disk that is stuck longer is left behind. Calling it again waits for the same.
        """
        if self._finishing is None:
            self._finishing = self._service.finish_run(self._run_id)
        if await self._service.bounded(asyncio.shield(self._finishing)):
            self._service.flush(self._source_id)

    def _ended(self) -> None:
        self._eof.set()


class LogService:
    """Lines of scripts and of the agent itself: captured, redacted, spooled, sent.

    All files are the business of one thread; the methods here only hand it jobs, and are called on the loop.
    `directory` is the agent's state directory, None to keep everything in memory. `redact` values, the text of lines
    and the environment never reach a log of the agent's own.
    """

    def __init__(
        self,
        directory: Path | None,
        clock: Clock,
        limits: SpoolLimits = SpoolLimits(),
        redactor: Redactor | None = None,
        logger: Logger | None = None,
    ) -> None:
        self._clock = clock
        self._logger = logger or LazyLogger()
        self._redactor = redactor or Redactor()
        self._disk = Disk(directory, clock.now, self._logger)
        self._checkpoints = Checkpoints(self._disk)
        self._unsaid: set[UUID] = set()
        self._spool = Spool(self._disk, self._checkpoints, limits, clock, self._unsaid.add)
        self._syncer = Syncer()
        self._next_sync = 0.0
        self._worker = Worker(self._tick, self._logger)
        self._sender = Sender(self, clock, self._logger, lambda source, text: self.note(source, pb.Log.WARN, text))
        self._runs: dict[UUID, Run] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news: dict[UUID, Queue] = {}
        self._saying = False
        self._closing: asyncio.Future[None] | None = None
        self._notes_dropped = 0

    def open(self) -> None:
        """Start, and take over in the background what a former process left in the spool. Never fails."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._worker.start()
            self._worker.post(self._load)

    def start(
        self, run_id: UUID, source_id: UUID, log_fd: int | None, stdout_fd: int | None, stderr_fd: int | None
    ) -> Capture:
        """Capture a run's output. Takes over the descriptors; None for one that is closed or not wanted.

        A `run_id` that a former process was killed with goes on exactly where that one was: see `capture`.
        """
        self.open()
        capture = Capture(self, run_id, source_id)
        loop = asyncio.get_running_loop()

        def begin() -> None:
            def ended() -> None:
                self._say_news()
                deliver(loop, capture._ended)

            try:
                self._runs[run_id] = Run(
                    run_id,
                    source_id,
                    (log_fd, stdout_fd, stderr_fd),
                    spool=self._spool,
                    checkpoints=self._checkpoints,
                    disk=self._disk,
                    redactor=self._redactor,
                    worker=self._worker,
                    logger=self._logger,
                    ended=ended,
                )
            except BaseException:
                deliver(loop, capture._ended)
                raise

        self._worker.post(begin)
        return capture

    def note(self, source_id: UUID, level: int, text: str) -> None:
        """Queue a line of the agent's own; `level` is a value of `pb.Log.Level`."""
        self.open()
        lines = lines_of(self._redactor.apply(text), MAX_LINE)
        self._post_note(lambda: self._spool.append(source_id, level, lines))

    def note_of_run(self, run_id: UUID, text: str) -> None:
        """The same for a run, into its log file, too. Used by `Capture`."""

        def note() -> None:
            run = self._runs.get(run_id)
            if run is not None:
                run.note(text)

        self._post_note(note)

    def finish_run(self, run_id: UUID) -> asyncio.Future[None]:
        """End a run's capture. Used by `Capture`."""

        def finish() -> None:
            run = self._runs.pop(run_id, None)
            if run is not None:
                run.finish()
            self._say_news()

        if self._closing is not None:
            return self._closing  # everything is left to a later process
        return self._worker.call(finish)

    def redact(self, values: Iterable[str]) -> None:
        """Replace these values in everything that is captured or noted from now on."""
        self._redactor.add(values)

    def flush(self, source_id: UUID | None = None) -> None:
        """Send what waits of a source, or of all, at once."""
        self._sender.flush(source_id)

    async def send(self, api: AgentApi) -> None:
        """The "logs" routine of one connection: sends for as long as that lasts.

        Raises what the call raises; nothing is lost then. Returns when the server has said that it takes no more lines
        of this agent, and at once on later connections.
        """
        await self._sender.run(api)

    async def drained(self) -> None:
        """Return when all that was captured and noted so far is acknowledged, or sending has ended for good.

        That may take as long as the server is away; the caller gives it a deadline.
        """
        if self._loop is None or self._closing is not None:
            return
        await self._worker.call(self._say_news)
        self._sender.flush()
        await self._sender.drained()

    @property
    def counters(self) -> LogCounters:
        """The newest figures."""
        lines, text = self._sender.queued
        return LogCounters(
            lines,
            text,
            self._spool.dropped_lines + self._sender.refused_lines + self._notes_dropped,
            self._spool.dropped_bytes,
            self._sender.sent_lines,
            self._disk.directory is None or self._disk.failing,
        )

    async def aclose(self) -> None:
        """Stop. Runs that are going on are left to a later process. Takes at most 10 s; idempotent."""
        if self._loop is None:
            return
        if self._closing is None:
            self._closing = self._worker.stop(self._leave)
        await self.bounded(asyncio.shield(self._closing))

    async def bounded(self, work: asyncio.Future[None]) -> bool:
        """Wait for the thread, but not for ever; False when it takes longer."""
        try:
            await wait_for(self._clock, work, _FINISH_LIMIT)
        except TimeoutError:
            self._logger.warning("Writing logs takes too long; it is left behind.", seconds=_FINISH_LIMIT)
            return False
        return True

    # What `sender.Backlog` asks for.

    def next_batch(self, source_id: UUID) -> asyncio.Future[Batch | None]:
        return self._worker.call(lambda: self._spool.next_batch(source_id))

    def acknowledge(self, batch: Batch) -> asyncio.Future[None]:
        def acknowledge() -> None:
            self._spool.acknowledge(batch)
            self._say_news()

        return self._worker.call(acknowledge)

    def end(self) -> asyncio.Future[None]:
        return self._worker.call(self._spool.end)

    # In the thread.

    def _load(self) -> None:
        try:
            self._checkpoints.load(self._clock.wall() / 1e9)
        except OSError as error:
            self._disk.failed(error)
        self._spool.load()

    def _leave(self) -> None:
        for run in self._runs.values():
            run.leave()
        self._spool.close()
        self._say_news()
        try:
            self._syncer.close(self._spool.take_unsynced())
        except OSError as error:
            self._disk.failed(error)

    def _tick(self) -> float | None:
        self._say_news()
        if not self._spool.waits_for_sync:
            return None
        now = self._clock.now()
        if now < self._next_sync or self._syncer.busy:
            return max(self._next_sync - now, _SYNC_INTERVAL / 10)
        self._next_sync = now + _SYNC_INTERVAL
        try:
            self._syncer.sync(self._spool.take_unsynced())
        except OSError as error:
            self._disk.failed(error)
        return None

    def _say_news(self) -> None:
        """Let the loop know of queues that have changed, in as few calls as will do."""
        assert self._loop is not None
        for source_id in self._unsaid:
            chain = self._spool.chain(source_id)
            self._news[source_id] = Queue(source_id, chain.pending, chain.lines, chain.text)
        self._unsaid.clear()
        if self._news and not self._saying:
            self._saying = True
            deliver(self._loop, self._hear)

    # On the loop again.

    def _hear(self) -> None:
        self._saying = False  # first: what the thread adds from here on it says again
        while self._news:
            self._sender.news(self._news.popitem()[1])

    def _post_note(self, job: Callable[[], object]) -> None:
        if self._worker.backlog >= _MAX_BACKLOG:
            self._notes_dropped += 1
            return
        self._worker.post(job)
