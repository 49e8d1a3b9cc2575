"""The programs of this package as child processes: for end-to-end tests, benches and the quickstart.

A child ends with its parent, however that one ended, and runs in a session of its own, so that a Ctrl-C at the
terminal reaches the parent alone, which then stops its children in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LOOK_AGAIN = 0.02  # seconds between looks at what a child printed


class ComponentError(Exception):
    """A child did not do what was waited for; the text names it and ends with the tail of its output."""


class Component:
    """One child process: `python -m agent ARGUMENTS`, its output in `<directory>/<name>.log`.

    `arguments` may be changed before it is started again; a subclass may have another `program`.
    """

    program: Sequence[str] = (sys.executable, "-m", "agent")

    def __init__(
        self, name: str, arguments: Sequence[str], *, directory: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self.arguments = arguments
        self._directory = directory
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._printed_before = 0

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it (again). What it prints is appended to the log."""
        assert not self.running, f"{self.name} runs already"
        output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._printed_before = os.fstat(output).st_size
            self._process = await asyncio.create_subprocess_exec(
                *self.program,
                *self.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._directory,
                env=None if self._environment is None else dict(self._environment),
                start_new_session=True,
                preexec_fn=_end_with_parent(),
            )
        finally:
            os.close(output)

    async def wait_for_output(self, pattern: str, seconds: float) -> re.Match[str]:
        """The first match in what it printed since its last start. ComponentError when it ends or time is over."""
        expression = re.compile(pattern)

        async def look() -> re.Match[str]:
            while True:
                running = self.running
                if match := expression.search(self.printed()):
                    return match
                if not running:
                    raise ComponentError(
                        f"{self.name} ended ({self._ending()}) without printing {pattern!r}{self.tail()}"
                    )
                await asyncio.sleep(_LOOK_AGAIN)

        try:
            return await asyncio.wait_for(look(), seconds)
        except TimeoutError:
            raise ComponentError(f"{self.name} did not print {pattern!r} within {seconds:g} s{self.tail()}") from None

    async def stop(self, seconds: float) -> int:
        """Ask it to end, and return its exit status. ComponentError when it had to be killed after `seconds`."""
        assert self._process is not None, f"{self.name} was not started"
        self.send_signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            await self.kill()
            raise ComponentError(f"{self.name} did not end within {seconds:g} s of SIGTERM{self.tail()}") from None

    async def kill(self) -> None:
        """End it the hard way, it alone: what it started goes on."""
        if self._process is not None:
            self.send_signal(signal.SIGKILL)
            await self._process.wait()

    async def wait(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return await self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                self._process.send_signal(number)

    def printed(self) -> str:
        """Everything since its last start."""
        with open(self.log, "rb") as file:
            file.seek(self._printed_before)
            return file.read().decode(errors="replace")

    def tail(self, lines: int = 20) -> str:
        """The end of its output as the last part of an error message."""
        try:
            last = self.printed().splitlines()[-lines:]
        except OSError as error:
            return f" (its log {self.log} cannot be read: {error.strerror})"
        if not last:
            return " (it printed nothing)"
        return f"; the end of {self.log}:\n" + "\n".join(f"  {line}" for line in last)

    def _ending(self) -> str:
        code = self._process.returncode if self._process is not None else None
        if code is None:
            return "never started"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _end_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # looked up before the fork, where little is safe
    parent = os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return prepare
