"""The reconnecting PTY service: terminals by the ids that clients choose (terminal-ssh-http.md §1)."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from agent.clock import Clock, wait_for
from agent.protocol.pty import Init, PtyDecoder, PtyProtocolError
from agent.terminal.attachment import Attachment, Stream, read_init
from agent.terminal.command import CommandContext, build_program
from agent.terminal.counters import ConnectionReports, Counters, Ending, NoReports
from agent.terminal.kept import Keeper, KeeperError, Kept
from agent.terminal.pty import Process, Pty
from agent.terminal.ring import Ring, RingError
from agent.terminal.session import Limits, Session, State

INIT_LIMIT = 30.0
"""Seconds that a client has to say which terminal it wants."""
CLOSE_LIMIT = 2.0
"""Seconds that the last output has to reach the viewers when everything closes."""


class TerminalError(Exception):
    """A client does not get its terminal; the text says why. The wire has no place for it: it is logged."""


class TerminalService:
    """Serves connections to port 2. `open` comes first."""

    def __init__(
        self,
        context: CommandContext,
        clock: Clock,
        *,
        limits: Limits = Limits(),
        reports: ConnectionReports | None = None,
    ) -> None:
        self._context = context
        self._clock = clock
        self._limits = limits
        self._reports = reports or NoReports()
        self._keeper = Keeper(clock, patience=limits.idle, lost=self._keeper_lost)
        self._sessions: dict[UUID, asyncio.Future[Session]] = {}
        self._connections: dict[asyncio.Task[Any], Stream] = {}
        self._closed = False
        self.counters = Counters()

    @property
    def terminals(self) -> int:
        """How many there are now."""
        return len(self._sessions)

    async def open(self, directory: Path | None) -> None:
        """Go on with the terminals that a killed agent left in `directory` (0700), where a later agent will find those
        of this one; None: it will not. Never fails."""
        for kept in await self._keeper.find(directory):
            self._go_on_with(kept)

    async def serve(self, stream: Stream) -> None:
        """One connection, until it ends; closes the stream. Raises nothing but cancellation."""
        connection = uuid4()
        self.counters.connections += 1
        self.counters.active += 1
        self._reports.connected(connection, stream.peer[0])
        ending = Ending.HARD_SHUTDOWN  # if nothing else is known, it was cancelled
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = stream
        try:
            ending = await self._serve(stream)
        finally:
            del self._connections[task]
            stream.close()
            self.counters.active -= 1
            self._reports.disconnected(connection, ending)

    async def leave(self) -> None:
        """Like `aclose`, but the terminals go on: a later agent finds them."""
        await self._end(Session.leave)

    async def aclose(self) -> None:
        """End every terminal and its connections (§1.7). Idempotent, takes some seconds at most."""
        await self._end(lambda session: session.close("the agent shuts down"))

    async def _end(self, end: Callable[[Session], None]) -> None:
        self._closed = True
        for made in list(self._sessions.values()):
            if not made.done():
                made.cancel()
            elif not made.cancelled() and made.exception() is None:
                end(made.result())
        if self._connections:
            await asyncio.sleep(0)
            waiting = asyncio.wait(list(self._connections))
            with contextlib.suppress(TimeoutError):
                await wait_for(self._clock, waiting, CLOSE_LIMIT)
        for stream in self._connections.values():
            stream.abort()
        if self._connections:
            await asyncio.wait(list(self._connections), timeout=1.0)
        await self._keeper.aclose()

    # ---- connections

    async def _serve(self, stream: Stream) -> Ending:
        # Where there is a stream it has been imported; before, it would hold up the start of the process.
        from agent.protocol.tcp import TcpError

        decoder = PtyDecoder()
        try:
            began = await wait_for(self._clock, read_init(stream, decoder), INIT_LIMIT)
            if began is None:
                return Ending.GRACEFUL
            init, first = began
            session = await self._session(init)
            if session.state is State.DONE:
                raise TerminalError("reconnecting pty closed before connection")
            if session.viewers >= self._limits.viewers:
                raise TerminalError(f"terminal {init.id} has {session.viewers} viewers, the most that are possible")
            await Attachment(stream, decoder, session, self.counters).run(init, first)
        except PtyProtocolError as error:
            _log().warning("a client of a terminal broke the protocol", error=error)
            return Ending.GRACEFUL
        except TimeoutError:
            _log().warning(f"a client did not say in {INIT_LIMIT:g} s which terminal it wants")
            return Ending.NETWORK_ERROR
        except (TcpError, OSError) as error:
            _log().debug("the connection to a terminal's viewer broke", error=error)
            return Ending.SHUTDOWN if self._closed else Ending.NETWORK_ERROR
        except TerminalError as error:
            _log().warning("no terminal for a client", error=error)
            return Ending.SHUTDOWN if self._closed else Ending.NETWORK_ERROR
        return Ending.GRACEFUL

    # ---- sessions

    async def _session(self, init: Init) -> Session:
        """The terminal of that id; whoever asks first makes it, the others wait. Raises `TerminalError`."""
        making = self._sessions.get(init.id)
        if making is None:
            if self._closed:
                raise TerminalError("the agent shuts down")
            if len(self._sessions) >= self._limits.terminals:
                raise TerminalError(f"there are {self._limits.terminals} terminals, the most that are possible")
            making = asyncio.create_task(self._make(init), name="make a terminal")
            self._sessions[init.id] = making
            making.add_done_callback(lambda task: self._made(init.id, task))
        # Shielded: a client that goes away takes no terminal from those who wait for the same one.
        return await asyncio.shield(making)

    def _made(self, terminal: UUID, making: asyncio.Future[Session]) -> None:
        # A later client with the id tries anew.
        if making.cancelled() or making.exception() is not None:
            self._sessions.pop(terminal, None)

    async def _make(self, init: Init) -> Session:
        if init.backend == "screen":
            raise TerminalError("the screen backend is not there")
        try:
            program = await asyncio.to_thread(build_program, self._context, init.command)
            ring = await asyncio.to_thread(Ring.allocate, self._limits.history)
        except Exception as error:  # the context is another room's: whatever it raises, this terminal cannot be made
            self.counters.error("create_command")
            raise TerminalError(f"the command of a terminal cannot be made: {error}") from error
        try:
            kept = await self._keeper.start(
                init.id,
                program.command.argv,
                program.directory,
                program.environment,
                rows=init.rows,
                columns=init.columns,
                ring=ring,
            )
        except KeeperError as error:
            self.counters.error("create_command")
            raise TerminalError(f"the terminal cannot be made: {error}") from error
        return self._open(kept, adopted=False)

    def _open(self, kept: Kept, *, adopted: bool) -> Session:
        """Take over the descriptors. Raises `TerminalError`."""
        try:
            ring = Ring(kept.ring, adopt=adopted)
        except RingError as error:
            kept.close()
            self._keeper.forget(kept.id)
            raise TerminalError(f"the terminal has no history: {error}") from error
        os.close(kept.ring)

        def closing() -> None:
            # Before anybody else runs: the next client with this id gets a new terminal (§1.2, 6).
            self._sessions.pop(kept.id, None)
            self._keeper.forget(kept.id)

        pty, process = Pty(kept.master), Process(kept.process)
        return Session(pty, ring, process, self._clock, self._limits, adopted=adopted, closing=closing)

    def _go_on_with(self, kept: Kept) -> None:
        try:
            session = self._open(kept, adopted=True)
        except TerminalError as error:
            _log().warning("a terminal of a former agent is lost", terminal=str(kept.id), error=error)
            return
        made: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        made.set_result(session)
        self._sessions[kept.id] = made
        _log().info("going on with a terminal of a former agent", terminal=str(kept.id))

    def _keeper_lost(self) -> None:
        _log().warning("the process that keeps terminals has ended: those that are open now end with this agent")


def _log() -> Any:
    """The agent's own log. structlog is imported by the daemon anyway, and too slow to import for nothing."""
    import structlog

    return structlog.get_logger("agent.terminal")
