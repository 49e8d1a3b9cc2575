"""Two connections joined in memory, with the interface of `agent.tailnet.streams.TailnetStream`."""

from __future__ import annotations

import asyncio

from agent.protocol.tcp import ConnectionClosedTcpError, ConnectionResetTcpError, TcpError

PEER = (bytes.fromhex("fd7a115ca1e0") + bytes(9) + b"\x02", 40000)


class MemoryStream:
    """One end of a pair. What the other end sends waits here, at most `capacity` bytes; then its writing waits."""

    def __init__(self, capacity: int = 65536) -> None:
        self.capacity = capacity
        self.arrived = bytearray()
        """What was sent to this end and not read yet."""
        self.taken = 0
        """Bytes that were read from this end."""
        self.closed = False
        self._allowed: int | None = None
        self._peer: MemoryStream | None = None
        self._eof = False
        self._shut = False
        self._error: TcpError | None = None
        self._changed = asyncio.Event()

    @property
    def peer(self) -> tuple[bytes, int]:
        """A made-up address and port of the other end."""
        return PEER

    @property
    def rtt(self) -> float | None:
        """Not measured."""
        return None

    @property
    def peer_stream(self) -> MemoryStream:
        """The other end."""
        assert self._peer is not None
        return self._peer

    async def read(self, limit: int = 262_144) -> bytes:
        while not self.arrived:
            if self._error is not None:
                raise self._error
            if self._eof or self.closed:
                return b""
            await self._wait()
        data = bytes(self.arrived[:limit])
        self.taken += len(data)
        del self.arrived[:limit]
        self.peer_stream._wake()
        return data

    async def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            if self._error is not None:
                raise self._error
            if self.closed or self._shut:
                raise ConnectionClosedTcpError("the connection is closed")
            peer = self.peer_stream
            room = peer._room
            if peer.closed:
                self._break(ConnectionResetTcpError("the peer reset the connection"))
            elif room > 0:
                peer.arrived += view[:room]
                view = view[room:]
                peer._wake()
            else:
                await self._wait()

    async def sent(self, most: int) -> None:
        """What was written is with the other end."""

    def allow(self, total: int) -> None:
        """The other end may send `total` bytes in all."""
        self._allowed = max(total, self._allowed or 0)
        self.peer_stream._wake()

    @property
    def _room(self) -> int:
        room = self.capacity - len(self.arrived)
        if self._allowed is not None:
            room = min(room, self._allowed - self.taken - len(self.arrived))
        return room

    async def drained(self) -> None:
        """Wait until the other end has read everything."""
        while self.peer_stream.arrived and not self.peer_stream.closed and self._error is None:
            await self._wait()

    def shutdown_write(self) -> None:
        self._shut = True
        self.peer_stream._eof = True
        self.peer_stream._wake()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.shutdown_write()
            self._wake()

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            self._break(ConnectionClosedTcpError("the connection was aborted"))
            self.peer_stream._break(ConnectionResetTcpError("the peer reset the connection"))

    def _break(self, error: TcpError) -> None:
        self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def stream_pair(capacity: int = 65536) -> tuple[MemoryStream, MemoryStream]:
    """Two joined ends. One task reads and one writes at each."""
    left, right = MemoryStream(capacity), MemoryStream(capacity)
    left._peer, right._peer = right, left
    return left, right
