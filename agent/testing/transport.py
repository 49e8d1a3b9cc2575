"""Two transports joined in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from agent.rpc.errors import TransportError

MAX_QUEUED = 256 * 1024


class MemoryTransport:
    """One end of a pair. A test may cut what arrives (`chunker`), stop the flow (`stalled`) or `break_off`."""

    def __init__(self, chunker: Callable[[bytes], Sequence[bytes]] | None = None) -> None:
        self._chunker = chunker
        self._inbox: list[bytes] = []
        self._size = 0
        self._changed = asyncio.Condition()
        self._eof = False
        self._error: TransportError | None = None
        self._peer: MemoryTransport | None = None
        self.stalled = False
        """While true, `send` of the other end waits for ever: this end does not take anything."""
        self.closed_with: tuple[int, str] | None = None
        """Code and reason with which this end was closed."""
        self.sent = bytearray()
        """Everything that this end sent."""

    def join(self, peer: MemoryTransport) -> None:
        """Make the two ends a pair."""
        self._peer, peer._peer = peer, self

    async def receive(self) -> bytes:
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._inbox) or self._eof or self._error is not None)
            if self._error is not None:
                raise self._error
            if not self._inbox:
                return b""
            data = self._inbox.pop(0)
            self._size -= len(data)
            self._changed.notify_all()
            return data

    async def send(self, chunks: Sequence[bytes]) -> None:
        peer = self._peer
        assert peer is not None
        data = b"".join(chunks)
        async with peer._changed:
            await peer._changed.wait_for(
                lambda: (peer._size < MAX_QUEUED and not peer.stalled) or peer._eof or self._error is not None
            )
            if self._error is not None or peer._eof:
                raise self._error or TransportError("the other end is closed")
            self.sent += data
            peer._inbox += peer._chunker(data) if peer._chunker else [data]
            peer._size += len(data)
            peer._changed.notify_all()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        if self.closed_with is None:
            self.closed_with = (code, reason)
        for end in (self, self._peer):
            assert end is not None
            async with end._changed:
                end._eof = True
                end._changed.notify_all()

    async def resume(self) -> None:
        """End a stall."""
        self.stalled = False
        async with self._changed:
            self._changed.notify_all()

    async def break_off(self, text: str = "connection reset by peer") -> None:
        """Both ends fail with `TransportError`, as when a cable is cut."""
        for end in (self, self._peer):
            assert end is not None
            async with end._changed:
                end._error = TransportError(text)
                end._changed.notify_all()


def memory_pair(
    chunker: Callable[[bytes], Sequence[bytes]] | None = None,
) -> tuple[MemoryTransport, MemoryTransport]:
    """Two joined ends; `chunker` cuts what arrives at either."""
    left, right = MemoryTransport(chunker), MemoryTransport(chunker)
    left.join(right)
    return left, right
