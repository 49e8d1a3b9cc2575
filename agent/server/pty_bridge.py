"""Between a browser's WebSocket and an agent's terminal: bytes both ways, each at the pace of who takes them.

Binary messages are the terminal's (terminal-ssh-http.md §1.10). A client that asked for `acknowledge=1`, an extension
of ours, also gets and sends text messages:

    server → client   {"taken": N}   bytes of its binary messages that the agent's terminal has got so far
                      {"pong": X}    the answer to a ping
    client → server   {"drawn": N}   bytes of output that it has drawn so far
                      {"ping": X}    X is any number

The agent is then never far ahead of what was drawn, and the server knows at any time that the client is alive. Of
other clients counts what their sockets took.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec
from aiohttp import WSMsgType, web

from agent.clock import Clock, deadline, wait_for
from agent.protocol.tcp import TcpError
from agent.server.pace import FIRST, Pace
from agent.tailnet.streams import TailnetStream

ALLOWED: Final = FIRST
"""Bytes that the agent may send at first."""
CHUNK: Final = 32 * 1024
"""Bytes of one message to the client at most: older ones take no larger ones."""
MAX_INPUT: Final = 512 * 1024
"""Bytes of input that wait for an agent: a client that is told what was taken sends no more than 256 KiB ahead."""
SEND_LIMIT: Final = 60.0
"""Seconds in which a client must take one message, or draw something while it is waited for."""
LAST_INPUT_LIMIT: Final = 5.0
NORMAL, AWAY, UNSUPPORTED, POLICY, BROKEN = 1000, 1001, 1003, 1008, 1011


class Close(NamedTuple):
    """How the socket is to be closed."""

    code: int
    reason: str = ""


class Said(msgspec.Struct):
    """A text message of the client."""

    drawn: int | None = None
    ping: float | None = None


class Bridge:
    """Joins a WebSocket that was accepted and a stream to port 2, dialled with `ALLOWED` and given the init."""

    def __init__(
        self, socket: web.WebSocketResponse, stream: TailnetStream, clock: Clock, *, acknowledge: bool
    ) -> None:
        self._socket, self._stream, self._clock = socket, stream, clock
        self._acknowledge = acknowledge
        self._pace = Pace()
        self._drawn = asyncio.Event()
        self._input: deque[bytes] = deque()
        self._waiting = self._taken = 0
        self._has_input = asyncio.Event()
        self._taken_up = asyncio.Event()

    async def run(self) -> Close:
        """Until one side ends, or the client breaks the rules."""
        listening = asyncio.create_task(self._listen(), name="terminal: client")
        typing = asyncio.create_task(self._type(), name="terminal: input")
        showing = asyncio.create_task(self._show(), name="terminal: output")
        tasks = [listening, typing, showing]
        if self._acknowledge:
            tasks.append(asyncio.create_task(self._report(), name="terminal: what was taken"))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next(task.result() for task in tasks if task.done())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self) -> Close:
        """Take what the client says. Without acknowledgements its input is held back by not reading it; with them that
        would hold back the acknowledgements, too, on which the output waits, and the terminal could stand still."""
        while True:
            message = await self._socket.receive()
            if message.type is WSMsgType.BINARY:
                self._input.append(message.data)
                self._waiting += len(message.data)
                self._has_input.set()
                if not self._acknowledge:
                    await self._until_taken()
                elif self._waiting > MAX_INPUT:
                    return Close(POLICY, "more input than was acknowledged")
            elif message.type is WSMsgType.TEXT:
                if not self._acknowledge:
                    return Close(UNSUPPORTED, "unexpected text message")
                if (mistake := await self._hear(message.data)) is not None:
                    return mistake
            else:
                # Closed. What was typed before that still gets there, if the agent takes it.
                with suppress(TimeoutError):
                    await wait_for(self._clock, self._until_taken(), LAST_INPUT_LIMIT)
                return Close(NORMAL)

    async def _hear(self, text: str) -> Close | None:
        try:
            said = msgspec.json.decode(text, type=Said)
        except msgspec.DecodeError:
            return Close(UNSUPPORTED, "this text message is not understood")
        if said.drawn is not None and not self._draw(said.drawn):
            return Close(POLICY, "more was drawn than was sent")
        if said.ping is not None:
            await self._say(msgspec.json.encode({"pong": said.ping}).decode())
        return None

    async def _until_taken(self) -> None:
        while self._waiting:
            self._taken_up.clear()
            await self._taken_up.wait()

    async def _type(self) -> Close:
        """Give the input to the agent."""
        try:
            while True:
                while not self._input:
                    self._has_input.clear()
                    await self._has_input.wait()
                data = self._input.popleft()
                await self._stream.write(data)
                self._taken += len(data)
                self._waiting -= len(data)
                self._taken_up.set()
        except TcpError as error:
            return _broken(error)

    async def _report(self) -> Close:
        """Tell the client what the agent has got: that survives the loss of this connection. On its own, so that no
        key waits for the acknowledgement of the one before."""
        told = 0
        try:
            while True:
                while (taken := self._taken) == told:
                    self._taken_up.clear()
                    await self._taken_up.wait()
                await self._stream.drained()
                await self._say(f'{{"taken": {taken}}}')
                told = taken
        except TcpError as error:
            return _broken(error)

    async def _show(self) -> Close:
        """Give the output to the client."""
        pace = self._pace
        while True:
            if pace.full and not await self._until_drawn():
                return Close(AWAY, f"nothing was drawn for {SEND_LIMIT:g} s")
            try:
                data = await self._stream.read(CHUNK)
            except TcpError as error:
                return _broken(error)
            if not data:
                return Close(NORMAL)
            pace.arrive(len(data), self._clock.now(), self._stream.rtt or 0.0)
            try:
                async with deadline(self._clock, SEND_LIMIT):
                    await self._socket.send_bytes(data)
            except (TimeoutError, ConnectionError, RuntimeError):
                return Close(AWAY, f"nothing was taken for {SEND_LIMIT:g} s")
            if not self._acknowledge:
                self._draw(pace.arrived)

    def _draw(self, total: int) -> bool:
        """The client has drawn so much: the agent may send more. False for a number that cannot be."""
        if not self._pace.draw(total, self._clock.now()):
            return False
        self._stream.allow(self._pace.allowed)
        self._drawn.set()
        return True

    async def _until_drawn(self) -> bool:
        """Wait until the agent may send. False for a client that draws nothing for too long: it is gone."""
        while self._pace.full:
            self._drawn.clear()
            try:
                async with deadline(self._clock, SEND_LIMIT):
                    await self._drawn.wait()
            except TimeoutError:
                return False
        return True

    async def _say(self, text: str) -> None:
        try:
            async with deadline(self._clock, SEND_LIMIT):
                await self._socket.send_str(text)
        except (ConnectionError, RuntimeError, TimeoutError):
            # The listener learns it, too, and says who ended it.
            return


def _broken(error: TcpError) -> Close:
    """Not the end of the terminal, which would be 1000: who wants it may come back."""
    return Close(BROKEN, f"dial: {error}")
