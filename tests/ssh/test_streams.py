"""The ends of a command, on pipes."""

from __future__ import annotations

import asyncio
import os
import random

from agent.ssh.streams import Sink, Source
from tests.ssh.support import until


class Flow:
    """Whether more is wanted."""

    def __init__(self) -> None:
        self.paused = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


async def test_everything_arrives_in_order_and_a_full_pipe_pauses() -> None:
    reading, writing = os.pipe()
    flow, chunks = Flow(), random.Random(1)
    arrived = bytearray()
    sink = Sink(writing, flow.pause, flow.resume, tty=False)
    sent = b""
    while not flow.paused:
        data = chunks.randbytes(10_000)
        sent += data
        sink.write(data)
    sink.write(b"more than is allowed")  # a session that pauses still gets what was on its way
    sink.end()
    source = Source(reading, arrived.extend)
    await asyncio.wait_for(source.ended.wait(), 5)
    assert bytes(arrived) == sent + b"more than is allowed"


async def test_a_paused_source_reads_nothing() -> None:
    reading, writing = os.pipe()
    got: list[bytes] = []
    source = Source(reading, got.append)
    source.pause()
    source.pause()
    os.write(writing, b"x")
    for _ in range(5):
        await asyncio.sleep(0)
    assert not got
    source.resume()
    await until(lambda: got == [b"x"])
    source.close()
    source.close()
    source.resume()
    os.close(writing)
    assert source.ended.is_set()


async def test_who_reads_no_more_loses_no_time_of_the_writer() -> None:
    reading, writing = os.pipe()
    flow = Flow()
    sink = Sink(writing, flow.pause, flow.resume, tty=False)
    while not flow.paused:
        sink.write(bytes(65536))
    os.close(reading)
    await until(lambda: not flow.paused)
    sink.write(b"x")
    sink.end()
    sink.close()
