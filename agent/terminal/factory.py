"""Makes terminals, and finds those that a former agent left."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol
from uuid import UUID, uuid4

from agent.clock import Clock
from agent.protocol.pty import Init
from agent.terminal.command import CommandContext, Program, build_program
from agent.terminal.counters import Counters
from agent.terminal.kept import Keeper, KeeperError, Kept
from agent.terminal.pty import Process, Pty
from agent.terminal.ring import Ring, RingError
from agent.terminal.screen import READY_LIMIT, ScreenTerminal, write_config
from agent.terminal.session import Limits, Session, State


class TerminalError(Exception):
    """A client does not get its terminal; the text says why. The wire has no place for it: it is logged."""


class Terminal(Protocol):
    """What is known by an id that a client chose."""

    @property
    def viewers(self) -> int:
        """How many look at it now."""

    def client(self, rows: int, columns: int) -> AbstractAsyncContextManager[Session]:
        """The session that one attachment talks to. Raises `TerminalError` on entering."""

    def close(self, reason: str) -> None:
        """End it. Idempotent."""

    def leave(self) -> None:
        """Let go of it for a later agent, where that is possible."""

    async def closed(self) -> None:
        """Wait for what `close` began, some seconds at most."""


class OwnTerminal:
    """A session of ours: all attachments share it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.close = session.close
        self.leave = session.leave

    @property
    def viewers(self) -> int:
        return self._session.viewers

    @asynccontextmanager
    async def client(self, rows: int, columns: int) -> AsyncIterator[Session]:
        if self._session.state is State.DONE:
            raise TerminalError("reconnecting pty closed before connection")
        yield self._session

    async def closed(self) -> None:
        """Its end takes no time."""


class Factory:
    """Everything that terminals are made of. `warn` is told when some do not outlive their agent, and why."""

    def __init__(
        self, context: CommandContext, clock: Clock, limits: Limits, counters: Counters, warn: Callable[[str], None]
    ) -> None:
        self._context = context
        self._clock = clock
        self._limits = limits
        self._counters = counters
        self._keeper = Keeper(clock, patience=limits.idle, warn=warn)
        self._directory: Path | None = None
        self._temporary: str | None = None

    async def find(self, directory: Path | None) -> list[Kept]:
        """What a former agent left in `directory`, where a later one will look, too."""
        self._directory = directory
        return await self._keeper.find(directory)

    def adopt(self, kept: Kept, closing: Callable[[], None]) -> Terminal:
        """Go on with what was found. Raises `TerminalError`."""
        return OwnTerminal(self._session(kept, closing, adopted=True))

    async def make(self, init: Init, closing: Callable[[], None]) -> Terminal:
        """A new terminal; `closing` is called when it begins to end. Raises `TerminalError`."""
        program = await self._program(init.command)
        if init.backend == "screen":
            return await self._screen(program, closing)
        kept = await self._start(init.id, program, init.rows, init.columns)
        return OwnTerminal(self._session(kept, closing, adopted=False))

    async def aclose(self) -> None:
        """Idempotent."""
        await self._keeper.aclose()
        if self._temporary is not None:
            await asyncio.to_thread(shutil.rmtree, self._temporary, True)
            self._temporary = None

    async def _program(self, script: str) -> Program:
        try:
            return await asyncio.to_thread(build_program, self._context, script)
        except Exception as error:  # the context is another room's: whatever it raises, this terminal cannot be made
            self._counters.error("create_command")
            raise TerminalError(f"the command of a terminal cannot be made: {error}") from error

    async def _start(self, terminal: UUID, program: Program, rows: int, columns: int) -> Kept:
        try:
            ring = await asyncio.to_thread(Ring.allocate, self._limits.history)
            return await self._keeper.start(
                terminal,
                program.command.argv,
                program.directory,
                program.environment,
                rows=rows,
                columns=columns,
                ring=ring,
            )
        except (KeeperError, OSError) as error:
            self._counters.error("create_command")
            raise TerminalError(f"the terminal cannot be made: {error}") from error

    def _session(
        self, kept: Kept, closing: Callable[[], None], *, adopted: bool, limits: Limits | None = None
    ) -> Session:
        """Takes over the descriptors. Raises `TerminalError`."""
        try:
            ring = Ring(kept.ring, adopt=adopted)
        except RingError as error:
            kept.close()
            self._keeper.forget(kept.id)
            raise TerminalError(f"the terminal has no history: {error}") from error
        os.close(kept.ring)

        def ends() -> None:
            closing()
            self._keeper.forget(kept.id)

        pty, process = Pty(kept.master), Process(kept.process)
        return Session(pty, ring, process, self._clock, limits or self._limits, adopted=adopted, closing=ends)

    async def _screen(self, program: Program, closing: Callable[[], None]) -> Terminal:
        screen = await asyncio.to_thread(shutil.which, "screen")
        if screen is None:
            self._counters.error("screen_spawn")
            raise TerminalError("a client asked for the screen backend, and there is no screen in PATH")
        try:
            config = await asyncio.to_thread(self._screen_config)
        except OSError as error:
            self._counters.error("screen_spawn")
            raise TerminalError(f"the configuration of screen cannot be written: {error}") from error
        return ScreenTerminal(
            screen, config, program, self._clock, self._limits, start=self._screen_client, closing=closing
        )

    def _screen_config(self) -> Path:
        if self._directory is not None:
            return write_config(self._directory)
        if self._temporary is None:
            self._temporary = tempfile.mkdtemp(prefix="terminal-")
        return write_config(Path(self._temporary))

    async def _screen_client(self, program: Program, rows: int, columns: int) -> Session:
        client = uuid4()
        try:
            kept = await self._start(client, program, rows, columns)
        except TerminalError:
            self._counters.error("screen_spawn")
            raise
        self._keeper.forget(client)  # nobody comes back to a client: it ends with this agent
        # The attachment for which it is made comes when screen is ready, and not before.
        limits = replace(self._limits, first_viewer=2 * READY_LIMIT)
        return self._session(kept, lambda: None, adopted=False, limits=limits)
