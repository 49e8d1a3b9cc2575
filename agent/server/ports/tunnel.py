"""Two connections that were upgraded become one: the bytes of a WebSocket go through as they are.

So its messages may be of any size, and sub-protocols, extensions and close codes are the business of its two ends.
"""

from __future__ import annotations

import asyncio

from aiohttp import ClientResponse, web


class _End(asyncio.Protocol):
    """Takes one connection over from aiohttp, by way of asyncio's `set_protocol`. What cannot be written to the other
    one is not read from this one."""

    other: _End

    def __init__(self, transport: asyncio.Transport, http: asyncio.BaseProtocol) -> None:
        self.transport, self._http = transport, http
        self.lost = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.other.transport.write(data)

    def pause_writing(self) -> None:
        self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._http.connection_lost(exc)  # aiohttp's own protocol still has it in its books
        self.other.transport.close()
        self.lost.set()


class _Early:
    """What aiohttp read beyond the heads, in the form of a parser that it hands this to."""

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """`connection_lost` tells of it."""


class Tunnel:
    """Between the browser of an answered upgrade request and a workspace that answered it with 101."""

    def __init__(self, request: web.Request, answer: ClientResponse) -> None:
        """Raises `ConnectionResetError` where one of them is gone already."""
        near, connection = request.transport, answer.connection
        if near is None or connection is None or connection.transport is None or connection.protocol is None:
            raise ConnectionResetError("a peer went away while the connection was upgraded")
        early_near, early_far = _Early(), _Early()
        request.protocol.set_parser(early_near)  # type: ignore[arg-type] # as much of a parser as is asked of one
        connection.protocol.set_parser(early_far, None)
        self._near = _End(near, request.protocol)
        self._far = _End(connection.transport, connection.protocol)
        self._near.other, self._far.other = self._far, self._near
        for end, early in ((self._near, early_near), (self._far, early_far)):
            end.transport.set_protocol(end)
            if early.data:
                end.data_received(early.data)
            end.transport.resume_reading()

    async def wait_closed(self) -> None:
        """Until both connections have ended."""
        await self._near.lost.wait()
        await self._far.lost.wait()

    def abort(self) -> None:
        """End both at once; idempotent."""
        self._near.transport.abort()
        self._far.transport.abort()
