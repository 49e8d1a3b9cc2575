"""Terminals kept by GNU screen, for clients that ask for it (terminal-ssh-http.md §1.5).

Each attachment has a screen client of its own in a terminal of its own; the screen daemon holds the shell. Our own
sessions (session.py) restore the screen as well, and damage neither UTF-8 nor colours: screen is not chosen unasked.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

from agent.clock import Clock
from agent.process import Command
from agent.process.bounded import Job, StartError, run_command
from agent.terminal.command import Program
from agent.terminal.expiry import Expiry
from agent.terminal.session import Limits, Session, State

_CONFIG: Final = """\
startup_message off
msgminwait 0
msgwait 0
termcapinfo xterm* ti@:te@
altscreen on
defbce on
term xterm-256color
escape ^Ss
"""
_RETRY: Final = 0.25
READY_LIMIT: Final = 30.0
"""Seconds that a screen client gets to reach its daemon."""
_QUIT_LIMIT: Final = 5.0
_COMMAND_LIMIT: Final = 5.0
_GONE: Final = b"No screen session found"


class StartClient(Protocol):
    """Makes a session of a program, one that ends with this agent."""

    def __call__(self, program: Program, rows: int, columns: int) -> Awaitable[Session]: ...


class ScreenTerminal:
    """One screen session. `closing` is called once, when no viewer may come any more."""

    def __init__(
        self,
        screen: str,
        config: Path,
        program: Program,
        clock: Clock,
        limits: Limits,
        *,
        start: StartClient,
        closing: Callable[[], None],
    ) -> None:
        self._screen = screen
        # Short, because it becomes part of a socket's path; random, because screen takes a part for the whole.
        self._name = secrets.token_hex(4)
        self._config = config
        self._program = program
        self._clock = clock
        self._limits = limits
        self._start = start
        self._closing = closing
        self._clients: set[Session] = set()
        self._entering = asyncio.Lock()
        self._quitting: asyncio.Task[None] | None = None
        self._expiry = Expiry(clock, lambda: self.close("reconnecting pty timeout"))
        self._expiry.start(limits.first_viewer)

    @property
    def viewers(self) -> int:
        return len(self._clients)

    @asynccontextmanager
    async def client(self, rows: int, columns: int) -> AsyncIterator[Session]:
        """A client for one attachment; what starting it raises is passed on."""
        self._expiry.stop()
        client: Session | None = None
        try:
            async with self._entering:  # two that both found no daemon would start two
                client = await self._start(self._client_program(), rows, columns)
                self._clients.add(client)
                await self._until_ready(client)
            yield client
        finally:
            if client is not None:
                client.close("detached")
                self._clients.discard(client)
            if not self._clients and self._quitting is None:
                self._expiry.start(self._limits.idle)

    def close(self, reason: str) -> None:
        """End the shell and the daemon; `closed` waits for it. Idempotent."""
        if self._quitting is not None:
            return
        self._expiry.stop()
        self._closing()
        self._quitting = asyncio.create_task(self._quit(), name="screen quit")
        for client in list(self._clients):
            client.close(reason)

    def leave(self) -> None:
        """A later agent does not know the daemon: it ends, too."""
        self.close("the agent ends")

    async def closed(self) -> None:
        """Wait for what `close` began, some seconds at most."""
        if self._quitting is not None:
            await self._quitting

    def _client_program(self) -> Program:
        command = Command((self._screen, "-S", self._name, "-UxRRqc", str(self._config), *self._program.command.argv))
        return Program(command, self._program.directory, self._program.environment)

    async def _until_ready(self, client: Session) -> None:
        """Until the daemon answers, or the client has ended: it was a short command."""
        until = self._clock.now() + READY_LIMIT
        while client.state is State.READY and self._clock.now() < until:
            if (await self._command("version"))[0] == 0:
                return
            await self._clock.sleep(_RETRY)

    async def _quit(self) -> None:
        until = self._clock.now() + _QUIT_LIMIT
        while self._clock.now() < until:
            status, output = await self._command("quit")
            if status == 0 or _GONE in output:
                return
            await self._clock.sleep(_RETRY)

    async def _command(self, *words: str) -> tuple[int | None, bytes]:
        """Tell the daemon; exit status, None when there was none, and output."""
        argv = (self._screen, "-x", self._name, "-c", str(self._config), "-X", *words)
        job = Job(Command(argv), dict(self._program.environment), "/")
        try:
            outcome = await run_command(lambda: job, limit=_COMMAND_LIMIT, max_output=4096, clock=self._clock)
        except StartError:
            return None, b""
        return outcome.status, outcome.output


def write_config(directory: Path) -> Path:
    """The configuration file in a private directory; the same text every time. Raises `OSError`."""
    path = directory / "screen.conf"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(_CONFIG)
    return path
