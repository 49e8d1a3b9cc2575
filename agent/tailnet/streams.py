"""TCP connections of the tailnet as asyncio-style streams with real back-pressure (tailnet.md §8)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.protocol.tcp import Connection, ConnectionClosedTcpError, TcpError


class TailnetStream:
    """One connection. One task reads and one writes; a reader that stops reading closes the peer's window.

    Errors are `agent.protocol.tcp.TcpError`: refused, reset, timed out, closed.
    """

    def __init__(self, connection: Connection, changed: Callable[[], None]) -> None:
        self._connection = connection
        self._changed = changed
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._connected = asyncio.Event()
        self._error: TcpError | None = None
        self._ended = False

    @property
    def peer(self) -> tuple[bytes, int]:
        """Address (16 bytes) and port at the other end."""
        return self._connection.remote_address, self._connection.remote_port

    @property
    def local_port(self) -> int:
        """The port at this end."""
        return self._connection.local_port

    @property
    def rtt(self) -> float | None:
        """Smoothed round trip in seconds."""
        return self._connection.rtt

    async def connected(self) -> None:
        """Wait for the handshake. Raises `TcpError` when the peer refuses or does not answer."""
        await self._connected.wait()
        if self._error is not None:
            raise self._error

    async def read(self, limit: int = 262_144) -> bytes:
        """What has arrived, at most `limit` bytes; empty at the end of the peer's data."""
        while True:
            if data := self._connection.read(limit):
                self._changed()
                return data
            if self._error is not None:
                raise self._error
            if self._ended or self._connection.at_eof:
                return b""
            self._readable.clear()
            await self._readable.wait()

    async def write(self, data: bytes | memoryview) -> None:
        """Hand all of `data` over, waiting while the send buffer is full."""
        view = memoryview(data)
        while view:
            self._check_writable()
            self._writable.clear()
            taken = self._connection.write(view if len(view) < len(data) else data)
            self._changed()
            view = view[taken:]
            if view:
                await self._writable.wait()

    async def sent(self, most: int) -> None:
        """Wait until at most `most` bytes of what was written wait because the peer or the network takes no more now.

        Whoever writes only then has little queued in front of what it writes next, and loses no speed. Raises
        `TcpError` when the connection broke before that.
        """
        while self._connection.backlog() > most and not self._ended:
            self._check_writable()
            self._writable.clear()
            self._connection.await_backlog(most)
            await self._writable.wait()
        if self._error is not None:
            raise self._error

    def allow(self, total: int) -> None:
        """Let the peer send `total` bytes in all, counted from the connection's beginning; never less than before.

        The connection must have been dialled with `allowed`; else as much as there is room for may be on its way.
        """
        self._connection.allow(total)
        self._changed()

    async def drained(self) -> None:
        """Wait until the peer has acknowledged everything. Raises `TcpError` when the connection broke before that."""
        while self._connection.unsent and not self._ended:
            self._check_writable()
            self._writable.clear()
            self._connection.await_drained()
            await self._writable.wait()
        if self._error is not None:
            # A broken connection has nothing unsent any more: what the peer did not get is gone.
            raise self._error

    def shutdown_write(self) -> None:
        """Send FIN after what was written; reading goes on."""
        self._connection.shutdown_write()
        self._changed()

    def close(self) -> None:
        """Send what was written and FIN, without waiting for it; what still arrives is thrown away."""
        self._connection.close()
        self.ended(None)
        self._changed()

    def abort(self, reason: str = "the connection was aborted") -> None:
        """RST: gone at once in both directions."""
        self._connection.abort()
        self.ended(ConnectionClosedTcpError(reason))
        self._changed()

    def _check_writable(self) -> None:
        if self._error is not None:
            raise self._error
        if self._ended:
            raise ConnectionClosedTcpError("the connection is closed")

    # ---- called by the engine

    def on_connected(self) -> None:
        self._connected.set()

    def on_readable(self) -> None:
        self._readable.set()

    def on_writable(self) -> None:
        self._writable.set()

    def ended(self, error: TcpError | None) -> None:
        """Nothing more happens on this connection; the first cause stays."""
        if not self._ended:
            self._ended = True
            self._error = error
        for event in (self._connected, self._readable, self._writable):
            event.set()
