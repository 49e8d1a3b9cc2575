"""The reconnecting PTY service: terminals by the ids that clients choose (terminal-ssh-http.md §1)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from agent.clock import Clock, wait_for
from agent.protocol.pty import Init, PtyDecoder, PtyProtocolError
from agent.terminal.attachment import Attachment, Stream, read_init
from agent.terminal.command import CommandContext
from agent.terminal.counters import ConnectionReports, Counters, Ending, NoReports
from agent.terminal.factory import Factory, Terminal, TerminalError
from agent.terminal.kept import Kept
from agent.terminal.session import Limits

INIT_LIMIT = 30.0
"""Seconds that a client has to say which terminal it wants."""
CLOSE_LIMIT = 2.0
"""Seconds that the last output has to reach the viewers when everything closes."""


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
        self._clock = clock
        self._limits = limits
        self._reports = reports or NoReports()
        self.counters = Counters()
        self._factory = Factory(context, clock, limits, self.counters, _warn)
        self._terminals: dict[UUID, asyncio.Future[Terminal]] = {}
        self._connections: dict[asyncio.Task[Any], Stream] = {}
        self._closed = False

    @property
    def terminals(self) -> int:
        """How many there are now."""
        return len(self._terminals)

    async def open(self, directory: Path | None) -> None:
        """Go on with the terminals that a killed agent left in `directory` (0700), where a later agent will find those
        of this one; None: it will not. Never fails."""
        for kept in await self._factory.find(directory):
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
        await self._end(lambda terminal: terminal.leave())

    async def aclose(self) -> None:
        """End every terminal and its connections (§1.7). Idempotent, takes some seconds at most."""
        await self._end(lambda terminal: terminal.close("the agent shuts down"))

    async def _end(self, end: Callable[[Terminal], None]) -> None:
        self._closed = True
        ending = []
        for made in list(self._terminals.values()):
            if not made.done():
                made.cancel()
            elif not made.cancelled() and made.exception() is None:
                end(made.result())
                ending.append(made.result())
        if self._connections:
            waiting = asyncio.wait(list(self._connections))
            with contextlib.suppress(TimeoutError):
                await wait_for(self._clock, waiting, CLOSE_LIMIT)
        for stream in self._connections.values():
            stream.abort()
        if self._connections:
            await asyncio.wait(list(self._connections), timeout=1.0)
        await asyncio.gather(*(terminal.closed() for terminal in ending))
        await self._factory.aclose()

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
            terminal = await self._terminal(init)
            if terminal.viewers >= self._limits.viewers:
                raise TerminalError(f"terminal {init.id} has {terminal.viewers} viewers, the most that are possible")
            async with terminal.client(init.rows, init.columns) as session:
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

    # ---- terminals

    async def _terminal(self, init: Init) -> Terminal:
        """The terminal of that id; whoever asks first makes it, the others wait. Raises `TerminalError`."""
        making = self._terminals.get(init.id)
        if making is None:
            if self._closed:
                raise TerminalError("the agent shuts down")
            if len(self._terminals) >= self._limits.terminals:
                raise TerminalError(f"there are {self._limits.terminals} terminals, the most that are possible")
            making = asyncio.create_task(
                self._factory.make(init, lambda: self._forget(init.id)), name=f"make terminal {init.id}"
            )
            self._terminals[init.id] = making
            making.add_done_callback(lambda made: self._made(init.id, made))
        # A client that goes away takes no terminal from those who wait for the same one.
        await asyncio.wait({making})
        if making.cancelled():
            raise TerminalError("the agent shuts down")
        return making.result()

    def _made(self, terminal: UUID, made: asyncio.Future[Terminal]) -> None:
        if made.cancelled() or made.exception() is not None:
            self._forget(terminal)  # a later client with the id tries anew

    def _forget(self, terminal: UUID) -> None:
        """From now on the id is free: the next client gets a new terminal (§1.2, 6)."""
        self._terminals.pop(terminal, None)

    def _go_on_with(self, kept: Kept) -> None:
        try:
            terminal = self._factory.adopt(kept, lambda: self._forget(kept.id))
        except TerminalError as error:
            _log().warning("a terminal of a former agent is lost", terminal=str(kept.id), error=error)
            return
        made: asyncio.Future[Terminal] = asyncio.get_running_loop().create_future()
        made.set_result(terminal)
        self._terminals[kept.id] = made
        _log().info("going on with a terminal of a former agent", terminal=str(kept.id))


def _warn(reason: str) -> None:
    _log().warning("terminals do not outlive their agent", reason=reason)


def _log() -> Any:
    """The agent's own log. structlog is imported by the daemon anyway, and too slow to import for nothing."""
    import structlog

    return structlog.get_logger("agent.terminal")
