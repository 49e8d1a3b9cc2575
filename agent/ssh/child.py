"""A command's process: started in a thread, reaped on the loop, in a session of its own (terminal-ssh-http.md §2.4)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import termios
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from agent.process import Command
from agent.process.priority import split
from agent.ssh.modes import apply_modes
from agent.ssh.streams import Window

_POLL: Final = 0.05


class StartError(Exception):
    """The system did not start the process; the text says why."""


@dataclass(frozen=True, slots=True)
class TerminalRequest:
    """The terminal that a client wants."""

    term: str
    window: Window
    modes: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Job:
    """What to run."""

    command: Command
    directory: str
    environment: dict[str, str] = field(repr=False)
    terminal: TerminalRequest | None = None


class Child:
    """A running process and the agent's ends of its descriptors, which whoever takes them owns.

    `master` is the terminal, or else `stdin`, `stdout` and `stderr` are pipes; what is not there is -1.
    """

    def __init__(self, process: subprocess.Popen[bytes], command: Command, descriptors: _Descriptors) -> None:
        self._process = process
        self._command = command
        self.stdin, self.stdout, self.stderr, self.master = descriptors
        self._loop = asyncio.get_running_loop()
        self.exited = asyncio.Event()
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

    def signal(self, number: int) -> None:
        """To the process alone. Raises `OSError`."""
        self._process.send_signal(number)  # not if it was reaped

    def hang_up(self) -> None:
        """SIGHUP to its process group."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # all of it runs as another user
                os.killpg(self._process.pid, signal.SIGHUP)

    def kill(self) -> None:
        """SIGKILL to the process alone."""
        with contextlib.suppress(PermissionError):
            self._process.kill()

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


_Descriptors = tuple[int, int, int, int]


async def start(prepare: Callable[[], Job]) -> Child:
    """Start what `prepare` says, both in a thread. Raises `StartError`, and what `prepare` raises.

    Cancelled meanwhile, the process is killed once it exists.
    """
    starting = _Start(prepare)
    try:
        await asyncio.to_thread(starting.run)
    except asyncio.CancelledError:
        starting.abandon()
        raise
    assert starting.started is not None
    return Child(*starting.started)


class _Start:
    """A start in a thread, which nobody may be waiting for any more when it is done."""

    def __init__(self, prepare: Callable[[], Job]) -> None:
        self._prepare = prepare
        self._lock = threading.Lock()
        self._abandoned = False
        self.started: tuple[subprocess.Popen[bytes], Command, _Descriptors] | None = None

    def run(self) -> None:
        """Called in the thread."""
        job = self._prepare()
        try:
            process, descriptors = _spawn(job)
        except BaseException:
            job.command.cleanup()
            raise
        with self._lock:
            if not self._abandoned:
                self.started = process, job.command, descriptors
                return
        self._discard(process, job.command, descriptors)

    def abandon(self) -> None:
        """Called on the loop: whoever comes second, this or `run`, kills the process."""
        with self._lock:
            self._abandoned = True
        if self.started is not None:
            asyncio.get_running_loop().run_in_executor(None, self._discard, *self.started)

    @staticmethod
    def _discard(process: subprocess.Popen[bytes], command: Command, descriptors: _Descriptors) -> None:
        process.kill()
        _close(*descriptors)
        process.wait()
        command.cleanup()


def _spawn(job: Job) -> tuple[subprocess.Popen[bytes], _Descriptors]:
    return _spawn_piped(job) if job.terminal is None else _spawn_in_terminal(job, job.terminal)


def _spawn_piped(job: Job) -> tuple[subprocess.Popen[bytes], _Descriptors]:
    ours: list[int] = []
    theirs: list[int] = []
    try:
        for writes in (True, False, False):
            reading, writing = os.pipe()
            ours.append(writing if writes else reading)
            theirs.append(reading if writes else writing)
        process = _popen(job, job.environment, *theirs)
    except BaseException as error:
        _close(*ours)
        raise _explained(error) from error
    finally:
        _close(*theirs)
    return process, (ours[0], ours[1], ours[2], -1)


def _spawn_in_terminal(job: Job, terminal: TerminalRequest) -> tuple[subprocess.Popen[bytes], _Descriptors]:
    try:
        master, slave = os.openpty()
    except OSError as error:
        raise StartError(f"no terminal: {error.strerror}; close some, or raise kernel.pty.max") from error
    try:
        apply_modes(slave, terminal.modes)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, terminal.window.packed())
        environment = {**job.environment, "SSH_TTY": os.ttyname(slave)}
        if terminal.term:
            environment["TERM"] = terminal.term
        process = _popen(job, environment, slave, slave, slave)
    except BaseException as error:
        _close(master)
        raise _explained(error) from error
    finally:
        _close(slave)
    return process, (-1, -1, -1, master)


def _popen(job: Job, environment: Mapping[str, str], stdin: int, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    cleaned, priority = split(environment)
    process = subprocess.Popen(
        job.command.argv,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=cleaned,
        cwd=job.directory,
        start_new_session=True,
        # What is called between fork and exec is one function in C, for which there is no other place.
        preexec_fn=partial(fcntl.ioctl, 0, termios.TIOCSCTTY, 0) if job.terminal is not None else None,
    )
    priority.apply(process.pid)
    return process


def _explained(error: BaseException) -> BaseException:
    if isinstance(error, OSError):
        return StartError(f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror))
    return StartError(str(error)) if isinstance(error, ValueError | subprocess.SubprocessError) else error


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)
