"""Batches on their way: which source is next (a plain decision), and the loop that acts on it (agent-api.md §10.2)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from agent.api.methods import BATCH_CREATE_LOGS, AgentApi
from agent.clock import Clock, deadline
from agent.logs.chain import Batch
from agent.logs.disk import Logger
from agent.logs.records import BATCH_BUDGET, LINE_OVERHEAD
from agent.rpc import RpcError, UnsupportedError

INTERVAL = 1.0
"""Seconds between two batches of a source, unless it fills a batch or a flush was asked for."""
_CALL_TIMEOUT = 60.0
_REFUSALS = 5
_REFUSED_FOR = 600.0  # seconds


@dataclass(slots=True)
class Queue:
    """What the loop knows of one source."""

    source_id: UUID
    pending: bool
    """Is there something to tell the server: lines, or that lines were left out?"""
    lines: int
    text: int
    """Of the lines that wait, in bytes."""
    last_sent: float | None = None
    flush: bool = False

    def due(self, now: float) -> bool:
        return self.flush or self.text + LINE_OVERHEAD * self.lines >= BATCH_BUDGET or self.wait(now) <= 0

    def wait(self, now: float) -> float:
        """Seconds until it is due by time alone."""
        return 0.0 if self.last_sent is None else self.last_sent + INTERVAL - now


def choose(queues: Iterable[Queue], now: float) -> Queue | float | None:
    """The queue to send of now, or the seconds until one is due, or None when nothing waits.

    Whenever any queue is due the one that was sent of the longest ago goes first, be it due or not.
    """
    waiting = [queue for queue in queues if queue.pending]
    if not waiting:
        return None
    if any(queue.due(now) for queue in waiting):
        return min(waiting, key=lambda queue: -1.0 if queue.last_sent is None else queue.last_sent)
    return min(queue.wait(now) for queue in waiting)


class Backlog(Protocol):
    """Where the lines are; all of it happens elsewhere, hence the awaiting."""

    def next_batch(self, source_id: UUID) -> Awaitable[Batch | None]:
        """The first lines of a source that are not acknowledged."""

    def acknowledge(self, batch: Batch) -> Awaitable[None]:
        """The server has them. `news` of the source has come when this returns."""

    def end(self) -> Awaitable[None]:
        """Drop everything, now and later."""


class Sender:
    """Belongs to the loop."""

    def __init__(self, backlog: Backlog, clock: Clock, logger: Logger, told: Callable[[UUID, str], None]) -> None:
        self._backlog = backlog
        self._clock = clock
        self._logger = logger
        self._tell = told
        self._queues: dict[UUID, Queue] = {}
        self._changed = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._one_at_a_time = asyncio.Lock()
        self._refused: tuple[tuple[UUID, int], int, float] | None = None
        self.ended = False
        self.sent_lines = 0
        self.refused_lines = 0

    def news(self, queue: Queue) -> None:
        """This is how a queue stands now."""
        if self.ended:
            return
        known = self._queues.setdefault(queue.source_id, queue)
        known.pending, known.lines, known.text = queue.pending, queue.lines, queue.text
        if queue.pending:
            self._empty.clear()
            self._changed.set()
        else:
            known.flush = False
            self._check_empty()

    def flush(self, source_id: UUID | None = None) -> None:
        """Send what waits of a source, or of all, without waiting for the interval."""
        for queue in self._queues.values():
            if queue.pending and source_id in (None, queue.source_id):
                queue.flush = True
                self._changed.set()

    @property
    def queued(self) -> tuple[int, int]:
        """Lines that wait, and their text in bytes."""
        queues = self._queues.values()
        return sum(queue.lines for queue in queues), sum(queue.text for queue in queues)

    async def drained(self) -> None:
        """Return when nothing waits, or nothing will be sent any more."""
        await self._empty.wait()

    async def run(self, api: AgentApi) -> None:
        """Send over one connection until it ends. Returns when the server wants no more lines of this agent.

        Errors of the call are passed on; what was not acknowledged is sent again by the next `run`.
        """
        async with self._one_at_a_time:
            while not self.ended:
                self._changed.clear()
                self._forget_idle()
                choice = choose(self._queues.values(), self._clock.now())
                if isinstance(choice, Queue):
                    await self._send(api, choice)
                elif choice is None:
                    await self._changed.wait()
                else:
                    with contextlib.suppress(TimeoutError):
                        async with deadline(self._clock, choice):
                            await self._changed.wait()

    async def _send(self, api: AgentApi, queue: Queue) -> None:
        batch = await self._backlog.next_batch(queue.source_id)
        if batch is None:
            queue.pending = queue.flush = False  # it was dropped meanwhile
            self._check_empty()
            return
        try:
            response = await api.call_encoded(BATCH_CREATE_LOGS, batch.request, timeout=_CALL_TIMEOUT)
        except UnsupportedError:
            raise
        except RpcError as error:
            queue.last_sent = self._clock.now()  # the other sources' turn
            await self._count_refusal(batch, error)
            raise
        self._refused = None
        if response.log_limit_exceeded:
            await self._end()
            return
        queue.last_sent = self._clock.now()
        self.sent_lines += batch.lines
        await self._backlog.acknowledge(batch)

    async def _end(self) -> None:
        self.ended = True
        self._queues.clear()
        self._empty.set()
        self._logger.info("The server takes no more log lines of this agent; they go to the log files only.")
        await self._backlog.end()

    async def _count_refusal(self, batch: Batch, error: RpcError) -> None:
        """A batch that the server refuses again and again is given up: it would hold up everything behind it."""
        now = self._clock.now()
        which = batch.source_id, batch.first
        if self._refused is None or self._refused[0] != which:
            self._refused = which, 1, now
            return
        _, count, since = self._refused
        self._refused = which, count + 1, since
        if count + 1 >= _REFUSALS and now - since >= _REFUSED_FOR:
            self._refused = None
            self.refused_lines += batch.lines
            self._logger.warning("The server refuses log lines for good; they are left out.", error=error.text)
            self._tell(
                batch.source_id, f"[agent] {batch.lines} lines are left out: the server refused them: {error.text}"
            )
            await self._backlog.acknowledge(batch)

    def _forget_idle(self) -> None:
        now = self._clock.now()
        for source_id in [q.source_id for q in self._queues.values() if not q.pending and q.due(now)]:
            del self._queues[source_id]

    def _check_empty(self) -> None:
        if not any(queue.pending for queue in self._queues.values()):
            self._empty.set()
