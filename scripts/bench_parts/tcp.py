"""The inner TCP by itself: two stacks in this process, packets handed over in memory; and long ways, simulated.

The first figures take the time of the processor, without encryption and sockets: what remains of a second for those is
what a driver has. The last ones are rates on a simulated clock, which say how well the congestion control does.
"""

from __future__ import annotations

import heapq
import os
import random
import time
from dataclasses import dataclass

from agent.protocol.tcp import Connection, Incoming, TcpStack

A = bytes.fromhex("fd7a115ca1e043338444555555555555")
B = bytes.fromhex("fd7a115ca1e04c2a9d6e1f2e3d4c5b6a")
BULK = 32 << 20
BLOCK = os.urandom(1 << 20)
BATCH = 64
ROUNDS = 3


@dataclass
class Pair:
    """Two stacks and a connection between them."""

    near: TcpStack
    far: TcpStack
    client: Connection
    server: Connection


def _pair() -> Pair:
    near, far = TcpStack([A]), TcpStack([B])
    now = time.perf_counter()
    client = near.connect(A, B, 8080, now)
    (event,) = far.receive(near.packets_to_send(now, BATCH), now)
    assert isinstance(event, Incoming)
    event.connection.accept()
    near.receive(far.packets_to_send(now, BATCH), now)
    far.receive(near.packets_to_send(now, BATCH), now)
    return Pair(near, far, client, event.connection)


async def measure(seconds: float = 1.0) -> dict[str, float]:
    """MB/s in memory, µs of one segment at either end, connections per second, Mbit/s on simulated links."""
    del seconds
    figures: dict[str, float] = {}
    best = min((_one_way() for _ in range(ROUNDS)), key=lambda each: each["total"])
    figures["memory MB/s, one way"] = BULK / 1e6 / best["total"]
    for name in ("send", "receive", "acknowledge"):
        figures[f"µs per segment, {name}"] = best[name] / best["segments"] * 1e6
    figures["memory MB/s, both ways together"] = max(_both_ways() for _ in range(ROUNDS))
    figures["connections/s, opened and closed"] = _connections()
    for name, loss, rate in (
        ("100 ms, 1 % loss", 0.01, None),
        ("100 ms, 5 % loss", 0.05, None),
        ("100 ms, 200 Mbit/s, queue of 500", 0.0, 25e6),
        ("100 ms, 20 Mbit/s, queue of 32", 0.0, 2.5e6),
    ):
        figures[f"simulated Mbit/s, {name}"] = _simulated(loss, rate, 500 if rate == 25e6 else 32)
    return figures


def _one_way() -> dict[str, float]:
    pair = _pair()
    clock = time.perf_counter
    spent = {"send": 0.0, "receive": 0.0, "acknowledge": 0.0, "segments": 0.0}
    sent = received = 0
    began = clock()
    while received < BULK:
        start = clock()
        while sent < BULK and (taken := pair.client.write(BLOCK)):
            sent += taken
        packets = pair.near.packets_to_send(start, BATCH)
        middle = clock()
        pair.far.receive(packets, middle)
        received += len(pair.server.read(1 << 22))
        answers = pair.far.packets_to_send(middle, BATCH)
        end = clock()
        pair.near.receive(answers, end)
        pair.near.handle_timeout(end)
        spent["acknowledge"] += clock() - end
        spent["receive"] += end - middle
        spent["send"] += middle - start
        spent["segments"] += len(packets)
    spent["total"] = clock() - began
    return spent


def _both_ways() -> float:
    pair = _pair()
    ends = ((pair.near, pair.client, pair.far), (pair.far, pair.server, pair.near))
    clock = time.perf_counter
    sent = {pair.client: 0, pair.server: 0}
    received = 0
    began = clock()
    while received < 2 * BULK:
        for stack, connection, other in ends:
            while sent[connection] < BULK and (taken := connection.write(BLOCK)):
                sent[connection] += taken
            now = clock()
            other.receive(stack.packets_to_send(now, BATCH), now)
            received += len(connection.read(1 << 22))
            stack.handle_timeout(now)
    return received / 1e6 / (clock() - began)


def _connections(count: int = 2000) -> float:
    near, far = TcpStack([A]), TcpStack([B])
    clock = time.perf_counter
    began = clock()
    for _ in range(count):
        now = clock()
        near.connect(A, B, 80, now).shutdown_write()
        while packets := near.packets_to_send(now, BATCH):
            for event in far.receive(packets, now):
                if isinstance(event, Incoming):
                    event.connection.accept()
                    event.connection.shutdown_write()
            near.receive(far.packets_to_send(now, BATCH), now)
    assert not near.connections
    return count / (clock() - began)


def _simulated(loss: float, rate: float | None, queue: int, delay: float = 0.05, limit: float = 30.0) -> float:
    """Mbit/s of a bulk transfer of up to 48 MiB over a link of that kind, or of 30 s of it."""
    chance = random.Random(1).random
    near, far = TcpStack([A]), TcpStack([B])
    now, free_at, serial, sent, received = 1.0, 0.0, 0, 0, 0
    way: list[tuple[float, int, TcpStack, bytes]] = []
    client = near.connect(A, B, 80, now)
    server: Connection | None = None
    while received < 48 << 20 and now < limit:
        while sent < 48 << 20 and (taken := client.write(BLOCK)):
            sent += taken
        for stack, other in ((near, far), (far, near)):
            for packet in stack.packets_to_send(now, 1 << 16):
                serial += 1
                arrives = now + delay
                if rate is not None and stack is near:
                    if (free_at - now) * rate > queue * 1280:
                        continue
                    free_at = max(free_at, now) + len(packet) / rate
                    arrives = free_at + delay
                if chance() >= loss:
                    heapq.heappush(way, (arrives, serial, other, packet))
        times = [each for each in (near.next_timeout(), far.next_timeout(), way[0][0] if way else None) if each]
        now = max(now, min(times))
        while way and way[0][0] <= now:
            _, _, stack, packet = heapq.heappop(way)
            for event in stack.receive([packet], now):
                if isinstance(event, Incoming):
                    server = event.connection
                    server.accept()
        if server is not None:
            received += len(server.read(1 << 22))
        near.handle_timeout(now)
        far.handle_timeout(now)
    return received * 8 / 1e6 / (now - 1.0)
