"""What nodes of the tailnet send each other in tests and benches: three services, and what uses them.

The foreign peer (tests/peers/tailnet) has the same services at the same ports, so that either end may be either's.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final
from zlib import crc32

from agent.tailnet.streams import TailnetStream
from agent.tailnet.tailnet import Tailnet

ECHO: Final = 7
SINK: Final = 9
"""Takes bytes until they end, then says `COUNT CRC32` and a line feed, and ends."""
SOURCE: Final = 19
"""Takes a line with a count, gives as many bytes, then says `COUNT CRC32` and a line feed, and ends."""
BLOCK: Final = 256 * 1024
STALL: Final = 30.0
"""Seconds that an exchange may make no progress at all."""
NOISE: Final = random.Random(1).randbytes(BLOCK)

Dial = Callable[[], Awaitable[TailnetStream]]


class TrafficError(Exception):
    """What arrived is not what was sent."""


def serve(node: Tailnet) -> None:
    """Offer the three services."""
    node.listen_tcp(ECHO, echo)
    node.listen_tcp(SINK, sink)
    node.listen_tcp(SOURCE, source)


async def echo(stream: TailnetStream) -> None:
    while data := await stream.read():
        await stream.write(data)


async def sink(stream: TailnetStream) -> None:
    count = checksum = 0
    while data := await stream.read(BLOCK):
        count, checksum = count + len(data), crc32(data, checksum)
    await stream.write(b"%d %d\n" % (count, checksum))


async def source(stream: TailnetStream) -> None:
    line = b""
    while not line.endswith(b"\n"):
        part = await stream.read()
        if not part or len(line) > 20:
            raise TrafficError(f"not a line with a count: {line!r}")
        line += part
    count = int(line)
    await stream.write(b"%d %d\n" % (count, await fill(stream, count)))


async def fill(stream: TailnetStream, count: int) -> int:
    """Write `count` bytes; their checksum."""
    checksum, left = 0, count
    while left:
        part = NOISE[:left]
        async with asyncio.timeout(STALL):
            await stream.write(part)
        checksum, left = crc32(part, checksum), left - len(part)
    return checksum


async def upload(stream: TailnetStream, count: int) -> None:
    """Give `count` bytes to a sink. Raises `TrafficError`."""
    checksum = await fill(stream, count)
    stream.shutdown_write()
    said = b""
    while part := await _read(stream):
        said += part
    _compare(said, count, checksum)


async def download(stream: TailnetStream, count: int) -> None:
    """Take `count` bytes from a source. Raises `TrafficError`."""
    await stream.write(b"%d\n" % count)
    left, checksum = count, 0
    while left:
        if not (data := await _read(stream, min(left, BLOCK))):
            raise TrafficError(f"the other end stopped {left} bytes too early")
        left, checksum = left - len(data), crc32(data, checksum)
    said = b""
    while part := await _read(stream):
        said += part
    _compare(said, count, checksum)


async def bulk(dial: Dial, *, up: bool, size: int, streams: int) -> float:
    """Move `size` bytes on several connections at once; the seconds from the first SYN to the last answer."""
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(_transfer(dial, up, size // streams))
    return time.perf_counter() - began


async def _transfer(dial: Dial, up: bool, size: int) -> None:
    stream = await dial()
    try:
        await (upload if up else download)(stream, size)
    finally:
        stream.close()


async def round_trips(dial: Dial, *, size: int, count: int, pause: float = 0.0) -> list[float]:
    """Send messages to an echo, each after the answer to the one before and a pause; the seconds that each took."""
    stream = await dial()
    trips = []
    try:
        for _ in range(count):
            began = time.perf_counter()
            await stream.write(NOISE[:size])
            back = b""
            while len(back) < size:
                if not (part := await _read(stream)):
                    raise TrafficError("the echo ended")
                back += part
            trips.append(time.perf_counter() - began)
            if back != NOISE[:size]:
                raise TrafficError("what came back is not what was sent")
            if pause:
                await asyncio.sleep(pause)
    finally:
        stream.close()
    return trips


async def _read(stream: TailnetStream, limit: int = BLOCK) -> bytes:
    async with asyncio.timeout(STALL):
        return await stream.read(limit)


def _compare(said: bytes, count: int, checksum: int) -> None:
    if said != (here := b"%d %d\n" % (count, checksum)):
        raise TrafficError(f"the other end counted {said!r}, this end {here!r}")
