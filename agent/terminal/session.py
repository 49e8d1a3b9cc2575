"""One terminal, whoever looks at it: reading, its history, its viewers, its end (terminal-ssh-http.md §1.3, §1.4)."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agent.clock import Clock
from agent.terminal.ahead import Ahead
from agent.terminal.expiry import Expiry
from agent.terminal.pty import Process, Pty
from agent.terminal.ring import Ring

NUDGE: Final = 0.1
"""Seconds that a full-screen program sees another size for, so that it draws everything again."""
_RESET: Final = b"\x1bc"
_PIECE: Final = 32768
_LEAST: Final = 1024
"""Bytes of one look at what the program prints: fewer are not worth it."""
UNSEEN_RATE: Final = 2 * 1024 * 1024
"""Bytes in a second that a program may print at most while nobody looks. A forgotten `yes` would take all of the
agent's time from those who do look, for nothing: all but the last of it is forgotten."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What terminals may use. Times in seconds, sizes in bytes."""

    first_viewer: float = 30.0
    """How long a new terminal waits for its first viewer."""
    idle: float = 300.0
    """How long a terminal goes on after its last viewer left."""
    history: int = 65536
    """Output that a viewer gets when it comes back: at least the last so many bytes."""
    staging: int = 65536
    """Output that waits for the fastest viewer before the program has to wait. So much only for one that takes it
    quickly: it is in front of what a Ctrl-C does."""
    terminals: int = 100
    viewers: int = 100
    """For each terminal."""


class State(enum.Enum):
    """The life of a session, in this order. While it is being made there is no `Session` yet (service.py)."""

    READY = enum.auto()
    CLOSING = enum.auto()
    DONE = enum.auto()


class Viewer:
    """One attachment's place in the output. It has no queue of its own: what waits for it is in the session's ring."""

    def __init__(self, position: int, ahead: Ahead, *, restore: bool) -> None:
        self.position = position
        self.ahead = ahead
        self.restore = restore
        """Whether the next thing it gets is the whole history."""
        self.rows = 0
        self.resyncs = 0
        """How often it fell behind."""
        self._wake = asyncio.Event()

    def wake(self) -> None:
        self._wake.set()

    async def wait(self) -> None:
        await self._wake.wait()
        self._wake.clear()


class Session:
    """A terminal that was made; owns its parts. `closing` is called once, when no viewer may come any more."""

    def __init__(
        self,
        pty: Pty,
        ring: Ring,
        process: Process,
        clock: Clock,
        limits: Limits,
        *,
        adopted: bool,
        closing: Callable[[], None],
    ) -> None:
        self._pty = pty
        self._ring = ring
        self._process = process
        self._clock = clock
        self._limits = limits
        self._closing = closing
        self._viewers: set[Viewer] = set()
        self._seen = adopted
        """Whether somebody may have seen output, so that a viewer's screen may not be empty."""
        self._nudging: asyncio.Task[None] | None = None
        self._unseen = 0
        """Bytes that were read since the last rest, and that nobody looked at."""
        self._resting: asyncio.Task[None] | None = None
        self._size = (0, 0)
        self.state = State.READY
        self.reason = ""
        """Why the session ended; empty when its process did."""
        self._expiry = Expiry(clock, lambda: self.close("reconnecting pty timeout"))
        self._expiry.start(limits.idle if adopted else limits.first_viewer)
        self._pty.start_reading(self._readable)

    @property
    def viewers(self) -> int:
        return len(self._viewers)

    # ---- viewers

    def attach(self) -> Viewer:
        """A new viewer; the first one ever sees the output from its beginning, another one the restored screen."""
        restore = self._seen or self._ring.tail > 0
        viewer = Viewer(
            self._ring.head if restore else 0, Ahead(self._limits.staging, self._clock.now()), restore=restore
        )
        self._seen = True
        self._viewers.add(viewer)
        self._expiry.stop()
        self._read_on()
        return viewer

    def detach(self, viewer: Viewer) -> None:
        """Idempotent."""
        self._viewers.discard(viewer)
        if not self._viewers and self.state is State.READY:
            self._expiry.start(self._limits.idle)
        self._read_on()

    async def output(self, viewer: Viewer) -> bytes:
        """What the viewer is to show next; empty when there is no more and never will be.

        Say `sent` when it was taken. A viewer that fell behind what is kept gets the restored screen.
        """
        while True:
            if viewer.restore or viewer.position < self._ring.tail:
                viewer.resyncs += not viewer.restore
                return self._restored(viewer)
            if viewer.position < self._ring.head:
                return self._ring.read(viewer.position, min(_PIECE, viewer.ahead.size))
            if self.state is not State.READY:
                return b""
            await viewer.wait()

    def sent(self, viewer: Viewer, data: bytes) -> None:
        """The viewer has taken what `output` gave."""
        viewer.ahead.taken(len(data), self._clock.now())
        if viewer.restore:
            viewer.restore = False
        else:
            viewer.position += len(data)
        self._read_on()

    async def write(self, data: bytes) -> None:
        """Input, in pieces as the terminal takes it. Raises `PtyClosedError`."""
        await self._pty.write(data)

    def resize(self, rows: int, columns: int) -> None:
        """The last size that anybody asked for counts. Raises `OSError`."""
        self._size = (rows, columns)
        if self._nudging is None:
            self._pty.resize(rows, columns)

    # ---- the end

    def close(self, reason: str) -> None:
        """Kill the process and hang up; viewers get what was read, then the end. Idempotent."""
        if self.state is not State.READY:
            return
        self._closing()
        self._process.kill()
        self._let_go(reason)

    def leave(self) -> None:
        """Let go of the terminal without ending it: a later agent goes on with it. Idempotent."""
        if self.state is State.READY:
            self._let_go("left to a later agent")

    def _let_go(self, reason: str) -> None:
        self.state = State.CLOSING
        self.reason = reason
        self._expiry.stop()
        if self._nudging is not None:
            self._nudging.cancel()
        if self._resting is not None:
            self._resting.cancel()
        self._pty.close()
        self._process.close()
        self._wake_all()

    def release(self) -> None:
        """Forget the history, once no viewer needs it any more. Idempotent."""
        if self.state is State.CLOSING and not self._viewers:
            self.state = State.DONE
            self._ring.close()

    # ---- reading

    def _readable(self) -> None:
        data = self._pty.read(max(self._room(), _LEAST))
        if data is None:
            self.close("")
            return
        if data:
            self._ring.append(data)
            self._wake_all()
        if not self._viewers:
            self._unseen += len(data)
        if self._room() <= 0:
            self._pty.stop_reading()
            if not self._viewers and self._resting is None:
                self._resting = asyncio.create_task(self._rest(), name="rest of a terminal that nobody looks at")

    def _read_on(self) -> None:
        if self.state is State.READY and not self._pty.reading and self._room() > 0:
            self._pty.start_reading(self._readable)

    def _room(self) -> int:
        """Bytes that may be read now: as the viewer wants that is ahead of the others. If nobody looks, what is left of
        a piece after which there is a rest."""
        if not self._viewers:
            return self._limits.staging - self._unseen
        return max(viewer.position + viewer.ahead.size for viewer in self._viewers) - self._ring.head

    async def _rest(self) -> None:
        await self._clock.sleep(self._unseen / UNSEEN_RATE)
        self._resting = None
        self._unseen = 0
        self._read_on()

    def _wake_all(self) -> None:
        for viewer in self._viewers:
            viewer.wake()

    def _restored(self, viewer: Viewer) -> bytes:
        replay = self._ring.replay(viewer.rows)
        viewer.restore = True  # until it was sent
        viewer.position = self._ring.head
        if replay.full_screen and self.state is State.READY and self._nudging is None:
            self._nudging = asyncio.create_task(self._nudge(), name="resize nudge")
        return _RESET + replay.data

    async def _nudge(self) -> None:
        """Make a full-screen program draw again: what it drew before the history begins is not in the replay. For a
        moment it has a column less: with a row less, editors scroll, and stay scrolled."""
        try:
            rows, columns = self._size if all(self._size) else self._pty.size()
            if columns > 1:
                self._size = (rows, columns)
                self._pty.resize(rows, columns - 1)
                await self._clock.sleep(NUDGE)
                self._pty.resize(*self._size)
        except OSError:
            pass  # no size can be set, so none was changed: the program does not draw again, no more
        finally:
            self._nudging = None
