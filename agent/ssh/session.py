"""One session channel: what the client asks for, what becomes of it, what it is told (terminal-ssh-http.md §3.5)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

import asyncssh
import structlog

from agent.clock import Clock
from agent.ssh import transfer
from agent.ssh.channel import SessionChannel
from agent.ssh.child import Child, StartError, TerminalRequest
from agent.ssh.command import AGENT_FAILURE, SIGNALLED, STDERR, CommandContext, CommandWork
from agent.ssh.counters import Counters, Kind, SessionReports
from agent.ssh.environment import Requested
from agent.ssh.forwarding import UnixSockets
from agent.ssh.greeting import Greeting
from agent.ssh.jetbrains import PortLooks
from agent.ssh.options import Options
from agent.ssh.sftp import SftpWork
from agent.ssh.streams import Window
from agent.ssh.x11 import Display, Displays, X11Error, X11Request

if TYPE_CHECKING:
    _ServerSession = asyncssh.SSHServerSession[bytes]
else:
    _ServerSession = asyncssh.SSHServerSession


class Services(Protocol):
    """What sessions need of the server that they belong to."""

    context: CommandContext
    counters: Counters
    reports: SessionReports
    options: Options
    displays: Displays
    sockets: UnixSockets
    looks: PortLooks
    clock: Clock

    def greeting(self) -> Greeting:
        """What an interactive shell begins with."""

    def jetbrains(self, origin: str) -> Callable[[], None]:
        """A forwarded connection of a JetBrains client begins; call the result when it has ended."""

    def run(self, work: asyncio.Task[None], session: Session) -> None:
        """Wait for it before the agent ends."""

    def child_started(self, child: Child, *, terminal: bool) -> None:
        """Hang it up when the agent ends."""

    def child_ended(self, child: Child) -> None: ...


class Opener(Protocol):
    """What sessions need of their connection."""

    def child_started(self, child: Child, *, terminal: bool) -> None:
        """A command runs; what runs in a terminal ends with the connection."""

    def child_ended(self, child: Child) -> None: ...

    async def open_display(self, request: X11Request, evict: Callable[[], None]) -> Display:
        """Raises `X11Error`."""


class Work(Protocol):
    """What the channel's data goes to."""

    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def resize(self, window: Window) -> None: ...
    def signal(self, name: str) -> None: ...
    def channel_lost(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """The exit status that the client is told, and the reason of the report."""

    status: int
    reason: str = "graceful"


class Session(_ServerSession):
    """Serves one channel; `peer` is the client's address as text."""

    def __init__(self, services: Services, opener: Opener, channel: SessionChannel, peer: str) -> None:
        self._services = services
        self._opener = opener
        self._channel = channel
        self._peer = peer
        self._id = uuid4()
        self._terminal: TerminalRequest | None = None
        self._requested = Requested()
        self._work: Work | None = None
        self._gone = False

    # ---- requests of the client

    def pty_requested(self, term_type: str, term_size: tuple[int, int, int, int], term_modes: Any) -> bool:
        self._terminal = TerminalRequest(term_type, _window(*term_size), dict(term_modes))
        return True

    def shell_requested(self) -> bool:
        return self._begin("")

    def exec_requested(self, command: str) -> bool:
        return self._begin(command)

    def subsystem_requested(self, subsystem: str) -> bool:
        if subsystem != "sftp":
            _log().info("a client asked for a subsystem that does not exist", subsystem=subsystem[:100])
            return False
        self._requested = self._channel.variables.resolve()
        self._work = SftpWork(self._channel, self._services.context)
        return True

    def _begin(self, script: str) -> bool:
        self._requested = self._channel.variables.resolve()
        self._work = CommandWork(
            self._channel,
            self._services.context,
            script,
            self._terminal,
            self._requested.variables,
            started=self._child_started,
            ended=self._opener.child_ended,
        )
        return True

    def session_started(self) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(), name=f"SSH session {self._id}")
        self._services.run(task, self)

    def data_received(self, data: bytes, datatype: Any) -> None:
        if self._work is not None:
            self._work.data_received(data)

    def eof_received(self) -> bool:
        if self._work is not None:
            self._work.eof_received()
        return True  # the command's output goes on

    def pause_writing(self) -> None:
        if self._work is not None:
            self._work.pause_writing()

    def resume_writing(self) -> None:
        if self._work is not None:
            self._work.resume_writing()

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        window = _window(width, height, pixwidth, pixheight)
        if self._work is not None:
            self._work.resize(window)
        elif self._terminal is not None:
            self._terminal = TerminalRequest(self._terminal.term, window, self._terminal.modes)

    def signal_received(self, signal: str) -> None:
        if self._work is not None:
            self._work.signal(signal)

    def break_received(self, msec: int) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        if self._work is not None:
            self._work.channel_lost()

    # ---- what becomes of it

    def close(self) -> None:
        """Close the channel without an exit status: the agent ends, or its display is another's now."""
        self._channel.abort()
        self.connection_lost(None)  # the client may never close its side

    async def _serve(self) -> None:
        kind, terminal = self._requested.kind, self._terminal is not None
        counters, counted = self._services.counters, kind in (Kind.SSH, Kind.VSCODE)
        if kind is Kind.UNKNOWN:
            _log().warning("a session of an unknown type", type=self._requested.kind_text[:100])
        reported = kind is not Kind.JETBRAINS  # its clients open hundreds
        if reported:
            self._services.reports.connected(self._id, kind, self._peer)
        counters.session(kind, terminal)
        counters.live[kind] += counted
        outcome = Outcome(1, "the agent is shutting down")  # if nothing else is known, this was cancelled
        try:
            outcome = await self._outcome()
            if not self._gone:
                self._channel.exit(outcome.status)
            else:
                outcome = Outcome(1, outcome.reason)
        except BaseException:
            self.close()
            raise
        finally:
            counters.live[kind] -= counted
            if reported:
                self._services.reports.disconnected(self._id, outcome.status, outcome.reason)

    async def _outcome(self) -> Outcome:
        if self._services.options.block_file_transfer and self._transfers():
            if not isinstance(self._work, SftpWork):  # its client would take the text for an answer
                self._write(transfer.REFUSAL)
            return Outcome(transfer.STATUS, "file transfer blocked")
        if isinstance(self._work, SftpWork):
            return await self._transfer(self._work)
        assert isinstance(self._work, CommandWork)
        return await self._command(self._work)

    def _transfers(self) -> bool:
        return isinstance(self._work, SftpWork) or transfer.is_file_transfer(self._channel.get_command() or "")

    async def _transfer(self, work: SftpWork) -> Outcome:
        counters = self._services.counters
        counters.sftp += 1
        try:
            error = await work.run()
        except Exception as broken:  # what SFTP starts in can fail: the client is told, others go on
            error = broken
        if error is None:
            return Outcome(0, "")
        counters.sftp_errors += 1
        _log().warning("an SFTP session failed", error=error)
        return Outcome(1, str(error))

    async def _command(self, work: CommandWork) -> Outcome:
        if self._channel.x11 is not None and not await self._open_display(self._channel.x11):
            return Outcome(1, "x11 handler failed")
        if self._terminal is not None and not self._channel.get_command():
            await self._greet()
        try:
            status = await work.run()
        except Exception as error:  # whatever a command is made of can fail: the client is told, others go on
            kind = "start_command" if isinstance(error, StartError) else "create_command"
            self._error(kind)
            _log().warning("no command for a client", error=error)
            self._tell(f"workspace-agent: cannot start the command: {error}\n")
            return Outcome(AGENT_FAILURE, str(error))
        finally:
            for failure in work.failures:
                self._error(failure)
        if status == 0:
            return Outcome(0)
        code = status if status > 0 else SIGNALLED
        return Outcome(code, f"process exited with error status: {max(status, -1)}")

    async def _open_display(self, request: X11Request) -> bool:
        try:
            display = await self._opener.open_display(request, self.close)
        except X11Error as error:
            self._services.counters.x11_error(error.step)
            _log().warning("no X11 forwarding for a client", error=error)
            return False
        # The client's own variables come first, as with every name.
        self._requested.variables.setdefault("DISPLAY", f"localhost:{display.number}.{request.screen}")
        return True

    async def _greet(self) -> None:
        try:
            text = await asyncio.to_thread(self._services.greeting().render)
        except OSError as error:
            self._error("motd")
            _log().warning("the message of the day cannot be shown", error=error)
            return
        self._write(text)

    def _child_started(self, child: Child) -> None:
        self._opener.child_started(child, terminal=self._terminal is not None)

    def _tell(self, text: str) -> None:
        if self._terminal is not None:
            self._write(text.replace("\n", "\r\n").encode("utf-8", "replace"))
        else:
            self._write(text.encode("utf-8", "replace"), STDERR)

    def _write(self, data: bytes, datatype: int | None = None) -> None:
        with contextlib.suppress(BrokenPipeError):  # the client has closed the channel
            self._channel.write(data, datatype)

    def _error(self, what: str) -> None:
        self._services.counters.error(self._requested.kind, self._terminal is not None, what)


def _window(width: int, height: int, pixwidth: int, pixheight: int) -> Window:
    return Window(height, width, pixwidth, pixheight)


def _log() -> Any:
    return structlog.get_logger("agent.ssh")
