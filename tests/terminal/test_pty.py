"""The master side of a real terminal; its program is the test."""

from __future__ import annotations

import asyncio
import os
import tty
from collections.abc import AsyncIterator

import pytest

from agent.terminal.pty import Pty, PtyClosedError


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Pty, int]]:
    """A terminal, raw, and the program's side of it."""
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    os.set_blocking(slave, False)
    pty = Pty(master)
    yield pty, slave
    pty.close()
    os.close(slave)


async def typed(slave: int, count: int, *unless: asyncio.Task[None]) -> bytes:
    """What the program reads, until it has `count` bytes."""
    result = b""
    async with asyncio.timeout(10):
        while len(result) < count:
            try:
                result += os.read(slave, 65536)
            except BlockingIOError:
                await asyncio.sleep(0)
    return result


async def printed(pty: Pty) -> list[bytes | None]:
    """What arrives, up to the end."""
    result: list[bytes | None] = []
    ended = asyncio.Event()

    def readable() -> None:
        data = pty.read(65536)
        result.append(data)
        if data is None:
            pty.stop_reading()
            ended.set()

    pty.start_reading(readable)
    async with asyncio.timeout(10):
        await ended.wait()
    return result


async def test_output_and_its_end() -> None:
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    pty = Pty(master)
    os.write(slave, b"x" * 3000)
    os.close(slave)
    *data, end = await printed(pty)
    assert (b"".join(piece or b"" for piece in data), end) == (b"x" * 3000, None)
    pty.close()


async def test_input_waits_for_the_program_and_is_not_torn_apart(pair: tuple[Pty, int]) -> None:
    pty, slave = pair
    writing = [asyncio.create_task(pty.write(letter * 200_000)) for letter in (b"a", b"b")]
    assert await typed(slave, 400_000) == b"a" * 200_000 + b"b" * 200_000
    await asyncio.gather(*writing)


async def test_who_waits_to_write_is_told_of_the_end(pair: tuple[Pty, int]) -> None:
    pty, _ = pair
    writing = [asyncio.create_task(pty.write(b"a" * 200_000)) for _ in range(2)]
    await asyncio.sleep(0.01)
    pty.close()
    for task in writing:
        with pytest.raises(PtyClosedError):
            await task
    with pytest.raises(PtyClosedError):
        await pty.write(b"x")


async def test_a_cancelled_write_lets_the_next_one_go_on(pair: tuple[Pty, int]) -> None:
    pty, slave = pair
    first = asyncio.create_task(pty.write(b"a" * 200_000))
    second = asyncio.create_task(pty.write(b"b" * 10))
    await asyncio.sleep(0.01)
    first.cancel()
    data = b""
    async with asyncio.timeout(10):
        while not data.endswith(b"b" * 10):
            data += await typed(slave, 1)
    await second
    assert first.cancelled()


async def test_sizes(pair: tuple[Pty, int]) -> None:
    pty, slave = pair
    pty.resize(30, 100)
    assert pty.size() == (30, 100)
    assert os.get_terminal_size(slave) == (100, 30)
    pty.close()
    pty.resize(1, 1)


async def test_closing_twice_is_closing_once(pair: tuple[Pty, int]) -> None:
    pty, _ = pair
    pty.close()
    pty.close()
    pty.start_reading(lambda: None)
    assert not pty.reading
