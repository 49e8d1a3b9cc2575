"""The agent's side of a keeper (keeper.py): start one with its script, or take over one that a killed agent left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.process import ProcessId
from agent.scripts.runs import RunRecord, RunStatus, RunStore

_KEEPER = str(Path(__file__).with_name("keeper.py"))
_START_LIMIT = 30.0
"""Seconds that a keeper has to start its script; it takes some 10 ms unless the machine is very busy."""
_RELEASE_LIMIT = 5.0
"""Seconds that a keeper has to end when it is asked to; then it is killed."""


class LaunchError(Exception):
    """A script could not be started; the text names what was at fault."""


@dataclass(frozen=True, slots=True)
class KeeperFds:
    """The read ends of the three pipes, by the numbers that they have in the keeper."""

    stdout: int
    stderr: int
    wake: int


@dataclass(slots=True)
class KeptScript:
    """One script that was started, and its keeper. `keeper` is None when that one is gone."""

    keeper: ProcessId | None
    script: ProcessId | None
    output: tuple[int | None, int | None]
    """The read ends of the script's stdout and stderr, non-blocking; whoever sets them to None has taken them over."""
    pipes: frozenset[int]
    """The inodes of those pipes."""
    _wake: int | None
    _status: int | None
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    async def wait(self) -> RunStatus:
        """How the script ended. Without an `exit_code` the keeper was lost, and with it the knowledge."""
        if self._wake is not None:
            await _end_of(self._wake)
        return self.status()

    def status(self) -> RunStatus:
        """What the keeper has reported so far."""
        return _read_status(self._status) if self._status is not None else RunStatus()

    def signal_group(self, number: int) -> bool:
        """Signal the script and what it started in its process group; False when nobody is left."""
        if self.script is None:
            return False
        try:
            if self._child is None or self._child.poll() is not None:
                return self.script.signal_group(number)
            # While its keeper is there the number means this script: no need to look, for which a descriptor may lack.
            os.killpg(self.script.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # all of it runs as another user (sudo): it is there, and out of reach
        return True

    async def release(self) -> None:
        """End the keeper, which closes its side of the pipes, and close everything. Does not end the script."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """`release`, blocking for at most some seconds."""
        for fd in (*self.output, self._wake, self._status):
            if fd is not None:
                os.close(fd)
        self.output = (None, None)
        self._wake = self._status = None
        keeper, self.keeper = self.keeper, None
        child, self._child = self._child, None
        if child is not None:
            child.send_signal(signal.SIGUSR1)
            _reap(child)
        elif keeper is not None:
            keeper.signal(signal.SIGUSR1)


def launch(
    argv: Sequence[str],
    directory: str,
    environment: Mapping[str, str],
    *,
    status_fd: int,
    before_start: Callable[[ProcessId, KeeperFds], None],
) -> KeptScript:
    """Start a script under a new keeper. Takes over `status_fd`. Blocks for some 15 ms: call it in a thread.

    `before_start` is called when the keeper exists and before the script does; what it raises is passed on. Raises
    `LaunchError`.
    """
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, status_fd)
        request = _request(argv, directory, environment)
        child, fds = _start_keeper(status_fd, undo)
        keeper = ProcessId.of(child.pid)  # it was not reaped, so it is there
        assert keeper is not None
        before_start(keeper, fds)
        until = time.monotonic() + _START_LIMIT
        assert child.stdin is not None
        _send(child.stdin.fileno(), request, until)
        child.stdin.close()
        started = _readable(fds.wake, until) and os.read(fds.wake, 1) != b""
        status = _read_status(status_fd)
        if status.failure is not None:
            raise LaunchError(_explain(*status.failure, argv, directory))
        if not started or status.pid is None:
            raise LaunchError(
                f"the process that keeps the script (pid {child.pid}) did not start it"
                + (f" and ended with status {child.poll()}" if child.poll() is not None else "")
            )
        undo.callback(_kill_group, status.pid)
        script = ProcessId.of(status.pid)
        for fd in (fds.stdout, fds.stderr, fds.wake):
            os.set_blocking(fd, False)
        pipes = frozenset(os.fstat(fd).st_ino for fd in (fds.stdout, fds.stderr))
        undo.pop_all()
    return KeptScript(keeper, script, (fds.stdout, fds.stderr), pipes, fds.wake, status_fd, child)


def take_over(record: RunRecord, store: RunStore) -> KeptScript:
    """The script of a former process, whose keeper may be gone. Raises `OSError` when its status cannot be read.

    Call it in a thread.
    """
    with contextlib.ExitStack() as undo:
        status_fd = store.open_status(record.run_id)
        undo.callback(os.close, status_fd)
        pid = _read_status(status_fd).pid
        script = ProcessId.of(pid) if pid is not None else None
        fds: list[int] = []
        try:
            if not record.keeper.alive():
                raise FileNotFoundError(f"keeper {record.keeper.pid} is gone")
            for number in (record.stdout_fd, record.stderr_fd, record.wake_fd):
                path = f"/proc/{record.keeper.pid}/fd/{number}"
                # Without O_NONBLOCK, opening a pipe that nobody writes to any more would wait for a writer.
                fds.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
                undo.callback(os.close, fds[-1])
        except (FileNotFoundError, ProcessLookupError):
            # Without the keeper there is no output to read, and the script's number may by now mean another.
            for fd in fds:
                os.close(fd)
            undo.pop_all()
            return KeptScript(None, None, (None, None), frozenset(), None, status_fd)
        stdout, stderr, wake = fds
        pipes = frozenset(os.fstat(fd).st_ino for fd in (stdout, stderr))
        undo.pop_all()
    return KeptScript(record.keeper, script, (stdout, stderr), pipes, wake, status_fd)


def _start_keeper(status_fd: int, undo: contextlib.ExitStack) -> tuple[subprocess.Popen[bytes], KeeperFds]:
    """A keeper that waits for its request. `undo` gets what ends it and closes the read ends."""
    with contextlib.ExitStack() as close_writers:
        pairs = []
        for _ in range(3):
            reader, writer = os.pipe()
            undo.callback(os.close, reader)
            close_writers.callback(os.close, writer)
            pairs.append((reader, writer))
        (stdout_r, stdout_w), (stderr_r, stderr_w), (wake_r, wake_w) = pairs
        passed = (stdout_r, stderr_r, stdout_w, stderr_w, wake_r, wake_w, status_fd)
        try:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", _KEEPER, *map(str, passed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=passed,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise LaunchError(f'cannot start "{sys.executable}" to keep the script: {error.strerror}') from error
    undo.callback(_discard, child)
    return child, KeeperFds(stdout_r, stderr_r, wake_r)


def _request(argv: Sequence[str], directory: str, environment: Mapping[str, str]) -> bytes:
    variables = [f"{name}={value}" for name, value in environment.items()]
    fields = [directory, str(len(argv)), *argv, str(len(variables)), *variables, "end", ""]
    for value in fields:
        if "\0" in value:
            raise LaunchError("a NUL character in the environment, the working directory or the script")
    return b"\0".join(os.fsencode(value) for value in fields)


def _send(fd: int, data: bytes, until: float) -> None:
    os.set_blocking(fd, False)
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            if not _ready(fd, select.POLLOUT, until):
                raise LaunchError(f"the process that keeps the script took no request in {_START_LIMIT:g} s") from None
        except BrokenPipeError:
            return  # it ended; its status file or its exit status says why


def _readable(fd: int, until: float) -> bool:
    return _ready(fd, select.POLLIN, until)


def _ready(fd: int, event: int, until: float) -> bool:
    poller = select.poll()
    poller.register(fd, event)
    return bool(poller.poll(max(until - time.monotonic(), 0) * 1000))


def _read_status(fd: int) -> RunStatus:
    return RunStatus.parse(os.pread(fd, 4096, 0))


def _explain(step: str, number: int, argv: Sequence[str], directory: str) -> str:
    reason = os.strerror(number)
    match step:
        case "directory":
            return f'cannot enter the working directory "{directory}": {reason}'
        case "exec":
            return f'cannot run "{argv[0]}": {reason}'
        case _:
            return f"cannot start a process for the script: {reason}"


def _kill_group(pid: int) -> None:
    """End a script whose keeper is there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _discard(child: subprocess.Popen[bytes]) -> None:
    """End a keeper whose script did not start."""
    assert child.stdin is not None
    child.stdin.close()
    child.kill()
    child.wait()


def _reap(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(_RELEASE_LIMIT)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


async def _end_of(pipe: int) -> None:
    """Return when all writers of a non-blocking pipe have closed it."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def readable() -> None:
        try:
            data = os.read(pipe, 64)
        except BlockingIOError:
            return
        if not data and not ended.done():
            loop.remove_reader(pipe)
            ended.set_result(None)

    loop.add_reader(pipe, readable)
    try:
        await ended
    finally:
        loop.remove_reader(pipe)
