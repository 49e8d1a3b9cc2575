"""Between a browser and a terminal, without either."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import pytest
from aiohttp import WSMessage, WSMsgType
from hypothesis import given
from hypothesis import strategies as st

from agent.server.pace import FIRST, SMALLEST
from agent.server.pty_bridge import (
    ALLOWED,
    AWAY,
    BROKEN,
    CHUNK,
    LAST_INPUT_LIMIT,
    MAX_INPUT,
    NORMAL,
    POLICY,
    SEND_LIMIT,
    UNSUPPORTED,
    Bridge,
    Close,
)
from agent.testing import ManualClock, settle
from agent.testing.streams import MemoryStream, stream_pair


class Socket:
    """The server's end of a WebSocket; the client is the test."""

    def __init__(self) -> None:
        self.shown = bytearray()
        self.largest = 0
        self.told: list[dict[str, Any]] = []
        self.takes = asyncio.Event()
        self.takes.set()
        self.broken = False
        self._said: asyncio.Queue[WSMessage] = asyncio.Queue()
        self.waiting = 0
        """Messages that the bridge has not received yet."""

    def say(self, kind: WSMsgType, data: bytes | str | None = None) -> None:
        self.waiting += 1
        self._said.put_nowait(WSMessage(kind, data, None))

    def type(self, data: bytes) -> None:
        self.say(WSMsgType.BINARY, data)

    def tell(self, **said: object) -> None:
        self.say(WSMsgType.TEXT, json.dumps(said))

    def leave(self) -> None:
        self.say(WSMsgType.CLOSE)

    async def receive(self) -> WSMessage:
        message = await self._said.get()
        self.waiting -= 1
        return message

    async def send_bytes(self, data: bytes) -> None:
        await self._send()
        self.shown += data
        self.largest = max(self.largest, len(data))

    async def send_str(self, text: str) -> None:
        await self._send()
        self.told.append(json.loads(text))

    async def _send(self) -> None:
        if self.broken:
            raise ConnectionResetError("Cannot write to closing transport")
        await self.takes.wait()


@dataclass
class Joined:
    socket: Socket
    agent: MemoryStream
    """The agent's end of the stream."""
    run: asyncio.Task[Close]

    async def result(self) -> Close:
        await settle()
        assert self.run.done()
        return self.run.result()

    async def print(self, data: bytes) -> None:
        await self.agent.write(data)
        await settle()


@asynccontextmanager
async def joined(clock: ManualClock, *, acknowledge: bool = True, capacity: int = 65536) -> AsyncIterator[Joined]:
    near, far = stream_pair(capacity)
    near.allow(ALLOWED)
    socket = Socket()
    before = asyncio.all_tasks()
    run = asyncio.create_task(Bridge(cast(Any, socket), cast(Any, near), clock, acknowledge=acknowledge).run())
    await settle()
    try:
        yield Joined(socket, far, run)
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        await settle()
        assert asyncio.all_tasks() <= before, "nothing is left behind"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.mark.parametrize("acknowledge", [False, True])
async def test_bytes_both_ways_and_the_end_of_the_terminal(clock: ManualClock, acknowledge: bool) -> None:
    async with joined(clock, acknowledge=acknowledge) as it:
        it.socket.type(b'{"data":"l')
        it.socket.type(b's"}')
        await settle()
        assert await it.agent.read() == b'{"data":"ls"}'
        await it.print(b"README\r\n")
        assert it.socket.shown == b"README\r\n"
        it.agent.shutdown_write()
        assert await it.result() == Close(NORMAL)


@pytest.mark.spec("terminal-ssh-http", 17)
@given(data=st.binary(min_size=1, max_size=200), cuts=st.lists(st.integers(0, 200)))
async def test_input_arrives_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    async with joined(ManualClock()) as it:
        for begin, end in pairwise(places):
            it.socket.type(data[begin:end])
        await settle()
        assert await it.agent.read() == data


async def test_the_client_learns_what_was_taken_and_that_the_server_lives(clock: ManualClock) -> None:
    async with joined(clock, capacity=4) as it:
        it.socket.tell(ping=7)
        it.socket.type(b"123456")
        await settle()
        assert it.socket.told == [{"pong": 7}], "what the agent has not got does not count"
        assert await it.agent.read() == b"1234"
        await settle()
        assert await it.agent.read() == b"56"
        await settle()
        assert it.socket.told[1:] == [{"taken": 6}]


async def test_only_what_is_drawn_soon_is_under_way(clock: ManualClock) -> None:
    async with joined(clock, capacity=1 << 20) as it:
        printing = asyncio.create_task(it.agent.write(bytes(FIRST * 20)))
        await settle()
        assert len(it.socket.shown) == FIRST
        for _ in range(10):
            await clock.advance(0.5)
            it.socket.tell(drawn=len(it.socket.shown))
            before = len(it.socket.shown)
            await settle()
        assert len(it.socket.shown) - before <= 2 * SMALLEST, "this client is slow"
        printing.cancel()


async def test_a_quick_client_gets_more_and_more(clock: ManualClock) -> None:
    async with joined(clock, capacity=1 << 20) as it:
        printing = asyncio.create_task(it.agent.write(bytes(FIRST * 40)))
        rounds = 0
        while len(it.socket.shown) < FIRST * 40:
            await settle()
            it.socket.tell(drawn=len(it.socket.shown))
            await clock.advance(0.001)
            rounds += 1
        assert rounds < 20
        assert it.socket.largest <= CHUNK
        await printing


async def test_a_client_that_acknowledges_nothing_is_held_back_by_its_socket(clock: ManualClock) -> None:
    async with joined(clock, acknowledge=False, capacity=1 << 20) as it:
        it.socket.takes.clear()
        printing = asyncio.create_task(it.agent.write(bytes(1 << 20)))
        await settle()
        assert not printing.done()
        assert it.agent.peer_stream.taken <= FIRST
        it.socket.takes.set()
        for _ in range(200):
            await settle()
        assert len(it.socket.shown) == 1 << 20
        await printing


@pytest.mark.parametrize("acknowledge", [False, True])
async def test_a_client_that_takes_nothing_is_cut(clock: ManualClock, acknowledge: bool) -> None:
    async with joined(clock, acknowledge=acknowledge) as it:
        it.socket.takes.clear()
        await it.print(b"x")
        await clock.advance(SEND_LIMIT - 1)
        assert not it.run.done()
        await clock.advance(2)
        assert (await it.result()).code == AWAY


async def test_a_client_that_draws_nothing_is_cut(clock: ManualClock) -> None:
    async with joined(clock, capacity=1 << 20) as it:
        printing = asyncio.create_task(it.agent.write(bytes(1 << 20)))
        await settle()
        await clock.advance(SEND_LIMIT + 1)
        assert await it.result() == Close(AWAY, "nothing was drawn for 60 s")
        printing.cancel()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"drawn": 1}', POLICY),
        ('{"drawn": -1}', POLICY),
        ('{"drawn": "1"}', UNSUPPORTED),
        ('{"ping": []}', UNSUPPORTED),
        ("[]", UNSUPPORTED),
        ("", UNSUPPORTED),
        ("{" * 100_000, UNSUPPORTED),
    ],
)
async def test_nonsense_in_text_messages(clock: ManualClock, text: str, code: int) -> None:
    async with joined(clock) as it:
        it.socket.say(WSMsgType.TEXT, text)
        assert (await it.result()).code == code


@given(text=st.text() | st.dictionaries(st.sampled_from(["drawn", "ping", "x"]), st.integers()).map(json.dumps))
async def test_any_text_message_is_answered_in_order(text: str) -> None:
    async with joined(ManualClock()) as it:
        it.socket.say(WSMsgType.TEXT, text)
        await settle()
        if it.run.done():
            assert it.run.result().code in (UNSUPPORTED, POLICY)


@pytest.mark.spec("terminal-ssh-http", 16)
async def test_text_of_a_client_that_did_not_ask_for_it(clock: ManualClock) -> None:
    async with joined(clock, acknowledge=False) as it:
        it.socket.tell(drawn=0)
        assert (await it.result()).code == 1003 == UNSUPPORTED


async def test_a_large_paste_waits_outside(clock: ManualClock) -> None:
    """Of a client that acknowledges nothing, no more is received than the agent takes."""
    async with joined(clock, acknowledge=False, capacity=1000) as it:
        for _ in range(1000):
            it.socket.type(bytes(1 << 20))
        await settle()
        assert it.socket.waiting == 999
        for _ in range(1100):
            await it.agent.read()
            await settle()
        assert it.socket.waiting == 998


async def test_a_client_that_types_on_though_nothing_is_taken(clock: ManualClock) -> None:
    async with joined(clock, capacity=1000) as it:
        it.socket.type(bytes(MAX_INPUT))
        await settle()
        assert not it.run.done()
        it.socket.type(bytes(2000))
        assert (await it.result()).code == POLICY


@pytest.mark.parametrize("acknowledge", [False, True])
async def test_what_was_typed_before_the_client_left_still_arrives(clock: ManualClock, acknowledge: bool) -> None:
    async with joined(clock, acknowledge=acknowledge, capacity=4) as it:
        it.socket.type(b"exit\r")
        it.socket.leave()
        await settle()
        assert not it.run.done()
        assert await it.agent.read() + await it.agent.read() == b"exit\r"
        assert await it.result() == Close(NORMAL)


async def test_an_agent_that_takes_nothing_holds_up_no_client_that_leaves(clock: ManualClock) -> None:
    async with joined(clock, capacity=1) as it:
        it.socket.type(b"exit\r")
        it.socket.leave()
        await clock.advance(LAST_INPUT_LIMIT - 1)
        assert not it.run.done()
        await clock.advance(2)
        assert await it.result() == Close(NORMAL)


@pytest.mark.parametrize("typing", [False, True])
async def test_an_agent_that_breaks_off(clock: ManualClock, typing: bool) -> None:
    async with joined(clock, capacity=1) as it:
        if typing:
            it.socket.type(b"ls\r")
            await settle()
        it.agent.abort()
        assert await it.result() == Close(BROKEN, "dial: the peer reset the connection")


async def test_a_socket_that_breaks_while_something_is_sent(clock: ManualClock) -> None:
    async with joined(clock) as it:
        it.socket.broken = True
        await it.print(b"x")
        assert (await it.result()).code == AWAY


@pytest.mark.parametrize("phase", ["idle", "sending", "waiting for the client", "writing", "leaving"])
@pytest.mark.parametrize("acknowledge", [False, True])
async def test_a_cancellation_leaves_nothing_behind(clock: ManualClock, phase: str, acknowledge: bool) -> None:
    async with joined(clock, acknowledge=acknowledge, capacity=1 if phase in ("writing", "leaving") else 65536) as it:
        if phase == "sending":
            it.socket.takes.clear()
            await it.print(b"x")
        elif phase == "waiting for the client":
            printing = asyncio.create_task(it.agent.write(bytes(1 << 20)))
            it.socket.takes.clear()
            await settle()
            printing.cancel()
        elif phase in ("writing", "leaving"):
            it.socket.type(b"exit\r")
            if phase == "leaving":
                it.socket.leave()
            await settle()
        assert not it.run.done()
        it.run.cancel()
        await settle()
        assert it.run.cancelled()
