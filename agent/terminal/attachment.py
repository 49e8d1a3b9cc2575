"""One connection to one terminal: output one way, requests the other (terminal-ssh-http.md §1.1)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from agent.protocol.pty import Event, Init, Input, PtyDecoder, Resize
from agent.terminal.counters import Counters
from agent.terminal.pty import PtyClosedError
from agent.terminal.session import Session

READ_SIZE = 65536


class Stream(Protocol):
    """A connection, as the tailnet has it. `read` and `write` raise exceptions of the tailnet's own."""

    @property
    def peer(self) -> tuple[bytes, int]:
        """Address (16 bytes) and port at the other end."""

    async def read(self, limit: int = ...) -> bytes:
        """What has arrived; empty at the end."""

    async def write(self, data: bytes) -> None:
        """Returns when the stream has room again."""

    async def sent(self, most: int) -> None:
        """Returns when at most `most` bytes wait because they cannot be sent now."""

    def close(self) -> None:
        """Send what was written, then the end."""

    def abort(self) -> None:
        """Gone at once."""


async def read_init(stream: Stream, decoder: PtyDecoder) -> tuple[Init, list[Event]] | None:
    """The init and what came right behind it; None when the client left before. Raises `PtyProtocolError`."""
    while data := await stream.read(READ_SIZE):
        if events := decoder.receive(data):
            first = events[0]
            assert isinstance(first, Init)
            return first, events[1:]
    return None


class Attachment:
    """Carries bytes between a stream and a session until one of them ends."""

    def __init__(self, stream: Stream, decoder: PtyDecoder, session: Session, counters: Counters) -> None:
        self._stream = stream
        self._decoder = decoder
        self._session = session
        self._counters = counters

    async def run(self, init: Init, first: Sequence[Event]) -> None:
        """Until the client or the terminal ends, or the stream breaks: raises what that raises, `PtyProtocolError` for
        a client that says nonsense."""
        session = self._session
        viewer = session.attach()
        viewer.rows = init.rows
        if init.rows and init.columns:
            self._resize(Resize(init.rows, init.columns))

        async def output() -> None:
            while data := await session.output(viewer):
                await self._stream.write(data)
                # What waits there waits in front of the answer to a Ctrl-C.
                await self._stream.sent(viewer.ahead.size // 2)
                session.sent(viewer, data)

        async def requests() -> None:
            await self._handle(first)
            while data := await self._stream.read(READ_SIZE):
                await self._handle(self._decoder.receive(data))

        shown = asyncio.create_task(output(), name="terminal output")
        asked = asyncio.create_task(requests(), name="terminal input")
        try:
            await asyncio.wait({shown, asked}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done() and isinstance(asked.exception(), PtyClosedError):
                self._counters.error("input_writer")
                await shown  # the process has ended: what it said last is on its way
            if shown.done() and (error := shown.exception()) is not None:
                self._counters.error("write")
                raise error
            if asked.done() and (error := asked.exception()) is not None and not isinstance(error, PtyClosedError):
                raise error
        finally:
            for task in (shown, asked):
                task.cancel()
            await asyncio.gather(shown, asked, return_exceptions=True)
            self._counters.resyncs += viewer.resyncs
            session.detach(viewer)
            session.release()

    async def _handle(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Input):
                await self._session.write(event.data)
            elif isinstance(event, Resize):
                self._resize(event)

    def _resize(self, size: Resize) -> None:
        try:
            self._session.resize(size.rows, size.columns)
        except OSError:
            self._counters.error("resize")
