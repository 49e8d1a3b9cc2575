"""A shell or a command of one session, from its start to its exit status (terminal-ssh-http.md §3.5)."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from agent.process.command import build_command
from agent.ssh.child import Child, Job, TerminalRequest, start
from agent.ssh.streams import Sink, Source, Window

if TYPE_CHECKING:
    from asyncssh import SSHServerChannel

STDERR: Final = 1
"""SSH_EXTENDED_DATA_STDERR."""
AGENT_FAILURE: Final = 229
SIGNALLED: Final = 255
MAX_SIGNALS: Final = 128
"""Signals that wait for the process to exist."""
_SIGNALS: Final = frozenset(
    ("ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2")
)


class CommandContext(Protocol):
    """What every command of the workspace runs with. All of it is called in a thread and may raise."""

    def environment(self, requested: dict[str, str] | None = None) -> dict[str, str]:
        """daemon.md §2.4 steps 1-7; `requested` is what the client asks for."""

    def shell(self) -> str:
        """The user's login shell."""

    def directory(self) -> str:
        """The working directory."""


class CommandWork:
    """Runs `script`, empty for the login shell, between a channel and a process.

    Callbacks of the channel come at any time, also before there is a process and after the channel is gone.
    """

    def __init__(
        self,
        channel: SSHServerChannel[bytes],
        context: CommandContext,
        script: str,
        terminal: TerminalRequest | None,
        requested: dict[str, str],
        *,
        started: Callable[[Child], None],
        ended: Callable[[Child], None],
    ) -> None:
        self._channel = channel
        self._context = context
        self._script = script
        self._terminal = terminal
        self._requested = requested
        self._started = started
        self._ended = ended
        self._agent = channel.get_agent_path()
        self._child: Child | None = None
        self._sink: Sink | None = None
        self._sources: list[Source] = []
        self._early: list[bytes] = []
        self._signals: list[int] = []
        self._input_ended = False
        self._gone = False
        self.failures: list[str] = []
        """What did not work while it ran, by the names of the metric."""

    async def run(self) -> int:
        """The exit status, negative for a signal. Raises `StartError` and what making the command raises."""
        child = self._child = await start(self._prepare)
        self._started(child)
        try:
            self._connect(child)
            for number in self._signals:
                self._send(number)
            await child.exited.wait()
            for source in self._sources:
                await source.ended.wait()
        finally:
            self._ended(child)
            self._disconnect()
        assert child.status is not None
        return child.status

    # ---- from the channel

    def data_received(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.write(data)
        elif not self._gone:
            self._early.append(data)  # bounded by the channel's window

    def eof_received(self) -> None:
        """A terminal has no end of input: the program gets on, as with the Go agent."""
        self._input_ended = True
        if self._sink is not None and self._terminal is None:
            self._sink.end()

    def pause_writing(self) -> None:
        for source in self._sources:
            source.pause()

    def resume_writing(self) -> None:
        for source in self._sources:
            source.resume()

    def resize(self, window: Window) -> None:
        if self._terminal is None:
            return
        self._terminal = replace(self._terminal, window=window)
        if self._sink is not None:
            try:
                self._sink.resize(window)
            except OSError:
                self.failures.append("resize")

    def signal(self, name: str) -> None:
        number = signal.Signals[f"SIG{name}"] if name in _SIGNALS else signal.SIGKILL
        if self._child is not None:
            self._send(number)
        elif len(self._signals) < MAX_SIGNALS:
            self._signals.append(number)

    def channel_lost(self) -> None:
        """The client closed the channel. A command without a terminal goes on without its streams, one with a terminal
        is hung up."""
        self._gone = True
        self._early.clear()
        self._disconnect()

    # ---- the process

    def _prepare(self) -> Job:
        """Called in a thread."""
        environment = self._context.environment(self._requested)
        if self._agent is not None:
            environment["SSH_AUTH_SOCK"] = self._agent
        command = build_command(self._script, self._context.shell())
        return Job(command, self._context.directory(), environment, self._terminal)

    def _connect(self, child: Child) -> None:
        pause, resume = self._channel.pause_reading, self._channel.resume_reading
        if child.master >= 0:
            # One descriptor for each direction: each is closed by who uses it.
            try:
                second = os.dup(child.master)
            except OSError:
                os.close(child.master)  # hangs it up
                raise
            self._sources = [Source(child.master, self._write)]
            self._sink = Sink(second, pause, resume, tty=True)
        else:
            self._sources = [Source(child.stdout, self._write), Source(child.stderr, self._write_error)]
            self._sink = Sink(child.stdin, pause, resume, tty=False)
        if self._gone:
            self._disconnect()
            return
        early, self._early = self._early, []
        for data in early:
            self._sink.write(data)
        if self._input_ended:
            self.eof_received()
        if self._terminal is not None:
            self.resize(self._terminal.window)  # it may have changed since

    def _disconnect(self) -> None:
        if self._sink is not None:
            self._sink.close()
        for source in self._sources:
            source.close()

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # the client closed the channel: `channel_lost` comes next
            self._channel.write(data)

    def _write_error(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._channel.write(data, STDERR)

    def _send(self, number: int) -> None:
        assert self._child is not None
        try:
            self._child.signal(number)
        except OSError:
            self.failures.append("signal")
