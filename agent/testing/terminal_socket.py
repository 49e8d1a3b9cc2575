"""A client of the server's terminals over a WebSocket, as the page is one (terminal-ssh-http.md §1.10)."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID

import aiohttp

KEPT = 1024 * 1024
"""Bytes of what was shown that are kept to look for something in."""


class TerminalSocket:
    """Reads all the time, and says that it has drawn what it got unless `draws` is cleared."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, *, acknowledge: bool) -> None:
        self.socket = socket
        self.shown = bytearray()
        self.received = 0
        self.taken = 0
        """Bytes of input that the agent has."""
        self.reads = asyncio.Event()
        self.reads.set()
        self.draws = True
        self.drew: Callable[[], None] = lambda: None
        """Called after each message."""
        self._acknowledge = acknowledge
        self._changed = asyncio.Event()
        self._reader = asyncio.create_task(self._read(), name="terminal client")

    async def _read(self) -> None:
        try:
            while True:
                await self.reads.wait()
                message = await self.socket.receive()
                if message.type is aiohttp.WSMsgType.BINARY:
                    self.received += len(message.data)
                    self.shown += message.data
                    if len(self.shown) > 2 * KEPT:
                        del self.shown[:-KEPT]
                    self.drew()
                    if self._acknowledge and self.draws:
                        await self.socket.send_str(f'{{"drawn":{self.received}}}')
                elif message.type is aiohttp.WSMsgType.TEXT:
                    self.taken = json.loads(message.data).get("taken", self.taken)
                else:
                    return
                self._changed.set()
        except ConnectionError:
            return
        finally:
            self._changed.set()

    async def type(self, text: str) -> None:
        await self.socket.send_bytes(json.dumps({"data": text}).encode())

    async def resize(self, rows: int, columns: int) -> None:
        await self.socket.send_bytes(json.dumps({"height": rows, "width": columns}).encode())

    async def match(self, pattern: bytes, seconds: float = 20.0) -> re.Match[bytes]:
        """Wait until something is shown; what was shown up to its end is forgotten."""
        try:
            async with asyncio.timeout(seconds):
                while (found := re.search(pattern, self.shown)) is None:
                    if self._reader.done():
                        raise AssertionError(f"closed ({self.socket.close_code}) before {self._missing(pattern)}")
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{seconds:g} s without {self._missing(pattern)}") from None
        # A match is of its text, and this text changes.
        kept = re.search(pattern, bytes(self.shown[: found.end()]))
        assert kept is not None
        del self.shown[: found.end()]
        return kept

    def _missing(self, pattern: bytes) -> str:
        return f"{pattern!r}; shown was {bytes(self.shown[-2000:])!r}"

    async def ended(self, seconds: float = 30.0) -> int | None:
        """The code with which the server closes."""
        async with asyncio.timeout(seconds):
            await asyncio.wait([self._reader])
        return self.socket.close_code

    async def aclose(self) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self.socket.close()


@asynccontextmanager
async def terminal_socket(
    http: aiohttp.ClientSession,
    url: str,
    token: str,
    agent: str,
    terminal: UUID,
    *,
    acknowledge: bool = True,
    **query: str,
) -> AsyncIterator[TerminalSocket]:
    """A terminal of an agent for as long as the body runs."""
    parameters = {"reconnect": str(terminal), "height": "24", "width": "80", **query}
    if acknowledge:
        parameters["acknowledge"] = "1"
    socket = await http.ws_connect(
        f"{url}/api/v2/workspaceagents/{agent}/pty",
        params=parameters,
        headers={"Coder-Session-Token": token},
        max_msg_size=0,
    )
    client = TerminalSocket(socket, acknowledge=acknowledge)
    try:
        yield client
    finally:
        await client.aclose()
