"""The thread that does everything slow: reading pipes, writing files. The event loop only hands it jobs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from agent.logs.disk import Logger

T = TypeVar("T")


class Worker:
    """Runs jobs one after another, and callbacks of descriptors that can be read. It begins with `start`.

    `call`, `post` and `stop` belong to the loop; `watch` and `unwatch` to the thread. `tick` is called in the thread
    before each wait and returns the longest time to wait in seconds.
    """

    def __init__(self, tick: Callable[[], float | None], logger: Logger) -> None:
        self._tick = tick
        self._logger = logger
        self._jobs: deque[Callable[[], object]] = deque()
        self._stopping = self._over = False

    @property
    def backlog(self) -> int:
        """Jobs that wait."""
        return len(self._jobs)

    def start(self) -> None:
        self._selector: selectors.BaseSelector = selectors.DefaultSelector()
        self._wakeup, self._alarm = socket.socketpair()
        self._wakeup.setblocking(False)
        self._alarm.setblocking(False)
        self._selector.register(self._wakeup, selectors.EVENT_READ, None)
        threading.Thread(target=self._run, name="logs", daemon=True).start()

    def post(self, job: Callable[[], object]) -> None:
        """Run it in the thread, some time; after `stop` it is forgotten."""
        if self._stopping:
            return
        self._jobs.append(job)
        with contextlib.suppress(BlockingIOError):  # alarms enough
            self._alarm.send(b"\0")

    def call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Run it in the thread and wait for what it returns or raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            try:
                result = function()
            except Exception as error:
                deliver(loop, _settle, future, None, error)
            else:
                deliver(loop, _settle, future, result, None)

        if self._stopping:
            raise RuntimeError("the log service is closed")
        self.post(job)
        return future

    def stop(self, last: Callable[[], object]) -> asyncio.Future[None]:
        """Run the jobs that wait, then `last`, then end; the future is done when the thread has nothing open."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._last = last

        def stopped() -> None:
            deliver(loop, _settle, future, None, None)

        self._stopped = stopped
        self.post(self._stop)
        self._stopping = True
        return future

    def watch(self, descriptor: int, ready: Callable[[], object]) -> None:
        """Call `ready` whenever the descriptor can be read or has ended."""
        self._selector.register(descriptor, selectors.EVENT_READ, ready)

    def unwatch(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)

    def _run(self) -> None:
        while not self._over:
            for key, _ in self._selector.select(0 if self._jobs else self._tick()):
                if key.data is None:
                    with contextlib.suppress(BlockingIOError):
                        self._wakeup.recv(4096)
                else:
                    self._guarded(key.data)
            while self._jobs and not self._over:
                self._guarded(self._jobs.popleft())
        self._guarded(self._last)
        self._selector.close()
        self._wakeup.close()
        self._alarm.close()
        self._stopped()

    def _stop(self) -> None:
        self._over = True

    def _guarded(self, job: Callable[[], object]) -> None:
        try:
            job()
        except Exception:
            # One run's trouble must not end the others' capture; it is a bug, so it is told with its traceback.
            self._logger.exception("The log service failed at something; it goes on.")


def deliver(loop: asyncio.AbstractEventLoop, callback: Callable[..., Any], *arguments: Any) -> None:
    """Have the loop call something, from the thread. When the loop is closed nobody is left to tell."""
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:
        if not loop.is_closed():
            raise


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return  # who asked was cancelled
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


class Syncer:
    """Has what was written put on the medium about once a second, without waiting for it."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None

    @property
    def busy(self) -> bool:
        return self._running is not None and not self._running.done()

    def sync(self, files: list[Path]) -> None:
        """Begin with these. `OSError`: what the round before met, or this one."""
        assert not self.busy
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="logs-sync")
        before, self._running = self._running, None
        try:
            self._running = self._executor.submit(_sync, files)
        except RuntimeError:  # no thread can be started, so it is waited for after all
            self._executor = None
            _sync(files)
        if before is not None:
            before.result()

    def close(self, files: list[Path]) -> None:
        """Wait for the round that runs, and do a last one with these. `OSError`."""
        if self._executor is not None:
            self._executor.shutdown()
        _sync(files)


def _sync(files: list[Path]) -> None:
    for path in files:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # acknowledged and removed by now
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
