"""The byte stream under a connection, and its form over a WebSocket (agent-api.md §1.8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from agent.rpc.errors import TransportError

if TYPE_CHECKING:
    from aiohttp import ClientWebSocketResponse
    from aiohttp.web import WebSocketResponse

MAX_MESSAGE = 4 * 1024 * 1024 + 1
"""For aiohttp's `max_msg_size`, which refuses messages of this many bytes and more.

Peers of 2024 accept 4 MiB, those of 2026 anything; none sends more than one yamux window (256 KiB) in a message.
"""
NORMAL, GOING_AWAY, UNSUPPORTED_DATA, ABNORMAL, INTERNAL_ERROR = 1000, 1001, 1003, 1006, 1011
MAX_CLOSE_REASON = 123


class Transport(Protocol):
    """An ordered stream of bytes in both directions. One task receives, one task sends."""

    async def receive(self) -> bytes:
        """The next bytes; empty at the end of the stream. Raises `TransportError` when it broke."""

    async def send(self, chunks: Sequence[bytes]) -> None:
        """Write the chunks in order; returns when the peer may take more. Raises `TransportError`."""

    async def aclose(self, code: int = NORMAL, reason: str = "") -> None:
        """Close; a pending `receive` ends, and must not be cancelled before: it may be needed for the handshake."""


class WebSocketTransport:
    """Binary messages as a byte stream: where a message ends means nothing. A text message closes it with 1003."""

    def __init__(self, socket: ClientWebSocketResponse | WebSocketResponse) -> None:
        self._socket = socket
        self._closing = False

    async def receive(self) -> bytes:
        from aiohttp import ClientError, WSMsgType

        while True:
            try:
                message = await self._socket.receive()
            except (ClientError, OSError, RuntimeError) as error:
                raise TransportError(f"the WebSocket broke: {error}") from error
            if message.type is WSMsgType.BINARY:
                if message.data:
                    return bytes(message.data)
            elif message.type is WSMsgType.TEXT:
                await self._socket.close(code=UNSUPPORTED_DATA, message=b"expected binary message")
                raise TransportError("the peer sent a text message on a binary WebSocket")
            elif message.type is WSMsgType.ERROR:
                raise TransportError(f"the WebSocket broke: {message.data}") from message.data
            else:
                code = self._socket.close_code
                if self._closing or code in (NORMAL, GOING_AWAY):
                    return b""
                if code in (None, ABNORMAL):
                    raise TransportError("the connection was cut off without a closing handshake")
                reason = f", {message.extra}" if message.extra else ""
                raise TransportError(f"the WebSocket was closed with {code}{reason}")

    async def send(self, chunks: Sequence[bytes]) -> None:
        from aiohttp import ClientError

        try:
            await self._socket.send_bytes(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        except (ClientError, OSError, RuntimeError) as error:
            raise TransportError(f"the WebSocket broke: {error}") from error

    async def aclose(self, code: int = NORMAL, reason: str = "") -> None:
        self._closing = True
        text = reason.encode()[:MAX_CLOSE_REASON].decode(errors="ignore")  # not cut within a character
        await self._socket.close(code=code, message=text.encode())
