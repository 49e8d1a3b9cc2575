"""A node of the tailnet by itself: two engines in one process, joined in memory, so that only our work is measured."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from agent.clock import SystemClock
from agent.protocol import keys, stun
from agent.protocol.ip import Datagram, Endpoint
from agent.protocol.tcp import Connection
from agent.tailnet.engine import Engine
from agent.tailnet.paths import Answered
from agent.tailnet.streams import TailnetStream

REGION = 1
SIZE = 64 * 1024 * 1024
ECHOES = 2000


class End:
    """One node; the other is its whole network."""

    def __init__(self, number: int) -> None:
        self.address = bytes.fromhex("fd7a115ca1e0") + bytes(9) + bytes((number,))
        self.other: End = self
        self.accepted: asyncio.Queue[TailnetStream] = asyncio.Queue()
        self.engine = Engine(
            node_private=keys.generate(),
            disco_private=keys.generate(),
            addresses=(self.address,),
            outside=self,
            inside=self,
            clock=SystemClock(),
            direct=False,
        )

    def send_udp(self, endpoint: Endpoint, datagrams: Sequence[bytes]) -> None:
        raise NotImplementedError("there are only relayed paths here")

    def send_relay(self, region: int, peer: bytes, datagrams: Sequence[bytes]) -> None:
        source = self.engine.device.public_key
        packets = [(source, datagram) for datagram in datagrams]
        asyncio.get_running_loop().call_soon(self.other.engine.receive_relay, region, packets)

    def incoming(self, connection: Connection) -> None:
        self.engine.accept(connection)

    def connected(self, stream: TailnetStream) -> None:
        self.accepted.put_nowait(stream)

    def udp(self, datagram: Datagram) -> None: ...
    def stun(self, response: stun.Response) -> None: ...
    def answered(self, answered: Answered) -> None: ...


@asynccontextmanager
async def joined() -> AsyncIterator[tuple[End, End]]:
    """Two nodes that know each other."""
    one, two = End(1), End(2)
    one.other, two.other = two, one
    for end in (one, two):
        other = end.other
        end.engine.set_peer(other.engine.device.public_key, other.engine.paths.public, [other.address], REGION, [])
    timers = [asyncio.create_task(end.engine.keep_time()) for end in (one, two)]
    try:
        yield one, two
    finally:
        for end in (one, two):
            end.engine.close()
        for timer in timers:
            timer.cancel()
        await asyncio.gather(*timers, return_exceptions=True)


async def measure() -> dict[str, float]:
    """MB/s one way through WireGuard and TCP at both ends, and the round trip of one byte."""
    async with joined() as (one, two):
        stream = one.engine.dial(two.address, 7)
        await stream.connected()
        peer = await two.accepted.get()
        rate = await _bulk(stream, peer)
        trip = await _echo(stream, peer)
    return {
        "MB/s one way, both ends in one process": rate,
        "round trip of one byte, p50 in µs": trip * 1e6,
    }


async def _bulk(stream: TailnetStream, peer: TailnetStream) -> float:
    began = time.perf_counter()
    sending = asyncio.create_task(stream.write(bytes(SIZE)))
    left = SIZE
    while left:
        left -= len(await peer.read())
    await sending
    return SIZE / 1e6 / (time.perf_counter() - began)


async def _echo(stream: TailnetStream, peer: TailnetStream) -> float:
    trips = []
    for _ in range(ECHOES):
        began = time.perf_counter()
        await stream.write(b"x")
        await peer.write(await peer.read())
        await stream.read()
        trips.append(time.perf_counter() - began)
    return statistics.median(trips)
