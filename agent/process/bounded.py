"""One short command, run on the event loop to its end within bounds of time and output (daemon.md §5.1, §1.11).

asyncio's own subprocesses cost a thread per child on Python 3.11, and a descendant that holds the output pipe keeps
them waiting. This runner waits for the process and for the pipe apart, without threads that wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.clock import Clock, wait_for
from agent.process.command import Command
from agent.process.priority import split

GRACE = 1.0
"""Seconds that a killed process has to go away, and a pipe whose writer has ended to reach its end."""
_CHUNK = 64 * 1024
_POLL = 0.05


class StartError(Exception):
    """The system did not start the process; the text says why."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to run."""

    command: Command
    environment: dict[str, str] = field(repr=False)
    directory: str | None = None
    merge_stderr: bool = True
    """Whether what it writes to stderr is output, too; otherwise it is discarded."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command. `output` is the beginning of what it printed, `printed` counts all of that in bytes."""

    output: bytes = field(repr=False)
    printed: int
    status: int | None
    """As `subprocess.Popen.returncode`; None when even SIGKILL did not end the process in time."""
    timed_out: bool


async def run_command(prepare: Callable[[], Job], *, limit: float, max_output: int, clock: Clock) -> Outcome:
    """Run the job with empty stdin, in a session of its own, and kill its process group after `limit` seconds.

    `prepare` is called in a thread; its errors reach the caller as they are. Output past `max_output` bytes is counted
    and thrown away. A descendant that keeps the pipe open is waited for no longer than `GRACE`. Raises `StartError`.
    Cancelling kills the group.
    """
    child = await _start(prepare, max_output)
    timed_out = False
    try:
        try:
            await wait_for(clock, child.exited.wait(), limit)
        except TimeoutError:
            timed_out = True
            child.kill()
            await _within_grace(clock, child.exited)
        await _within_grace(clock, child.ended)
        return Outcome(bytes(child.output), child.printed, child.status, timed_out)
    finally:
        child.close()


async def _within_grace(clock: Clock, event: asyncio.Event) -> None:
    if not event.is_set():
        with contextlib.suppress(TimeoutError):  # what has not come by then is done without
            await wait_for(clock, event.wait(), GRACE)


async def _start(prepare: Callable[[], Job], max_output: int) -> _Child:
    """Start the process in a thread: exec waits for the disk. Cancelled meanwhile, it is killed once it exists."""
    start = _Start(prepare)
    try:
        await asyncio.to_thread(start.run)
    except asyncio.CancelledError:
        start.abandon()
        raise
    assert start.started is not None
    return _Child(*start.started, max_output)


class _Start:
    """A start in a thread, which nobody may be waiting for any more when it is done."""

    def __init__(self, prepare: Callable[[], Job]) -> None:
        self._prepare = prepare
        self._lock = threading.Lock()
        self._abandoned = False
        self.started: tuple[Job, subprocess.Popen[bytes]] | None = None

    def run(self) -> None:
        """Called in the thread."""
        job = self._prepare()
        process = _spawn(job)
        with self._lock:
            if not self._abandoned:
                self.started = job, process
                return
        _kill_group(process)
        with process:
            process.wait()
        job.command.cleanup()

    def abandon(self) -> None:
        """Called on the loop: whoever comes second, this or `run`, kills the process."""
        with self._lock:
            self._abandoned = True
        if self.started is not None:
            _Child(*self.started, max_output=0).close()


def _spawn(job: Job) -> subprocess.Popen[bytes]:
    environment, priority = split(job.environment)
    try:
        process = subprocess.Popen(
            job.command.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if job.merge_stderr else subprocess.DEVNULL,
            env=environment,
            cwd=job.directory,
            start_new_session=True,
            bufsize=0,
        )
    except (OSError, ValueError) as error:
        job.command.cleanup()
        reason = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
        raise StartError(reason) from error
    priority.apply(process.pid)
    return process


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the whole group, unless its leader was reaped: the number could be another's by now."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all of it runs as another user (`exec sudo …`)
            os.killpg(process.pid, signal.SIGKILL)


class _Child:
    """A process whose output is collected; it is reaped whenever it ends, also after `close`."""

    def __init__(self, job: Job, process: subprocess.Popen[bytes], max_output: int) -> None:
        assert process.stdout is not None
        self._command = job.command
        self._process = process
        self._pipe = process.stdout
        self._max_output = max_output
        self._loop = asyncio.get_running_loop()
        self.output = bytearray()
        self.printed = 0
        self.exited = asyncio.Event()
        self.ended = asyncio.Event()
        os.set_blocking(self._pipe.fileno(), False)
        self._loop.add_reader(self._pipe.fileno(), self._read)
        try:
            self._pidfd: int | None = os.pidfd_open(process.pid)
        except OSError:  # a kernel or a sandbox without pidfd
            self._pidfd = None
            self._poll()
        else:
            self._loop.add_reader(self._pidfd, self._reap)

    @property
    def status(self) -> int | None:
        """The exit status once it ended, negative for a signal."""
        return self._process.returncode

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        _kill_group(self._process)

    def close(self) -> None:
        """Stop reading; end the process if it still runs."""
        self._end_of_output()
        self.kill()

    def _read(self) -> None:
        try:
            data = os.read(self._pipe.fileno(), _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._end_of_output()
            return
        self.printed += len(data)
        if (room := self._max_output - len(self.output)) > 0:
            self.output += data[:room]

    def _end_of_output(self) -> None:
        if not self._pipe.closed:
            self._loop.remove_reader(self._pipe.fileno())
            self._pipe.close()
        self.ended.set()

    def _reap(self) -> None:
        if self._process.poll() is None:
            return
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        if self._command.temporary is not None:
            self._loop.run_in_executor(None, self._command.cleanup)
        self.exited.set()

    def _poll(self) -> None:
        self._reap()
        if not self.exited.is_set():
            self._loop.call_later(_POLL, self._poll)
