"""The relay's packets per second: clients in one process, the relay in another, both over loopback.

The baseline is the same number of bytes through a bare asyncio protocol that sends each piece on to its partner.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import struct
import time
from collections.abc import Callable
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe
from typing import Any

from aiohttp import web

from agent.clock import SystemClock
from agent.protocol import keys
from agent.protocol.derp import Packets
from agent.server.api.derp import Derp
from agent.server.http import Call
from agent.server.longlived import LongLived
from agent.server.relay import Relay
from agent.tailnet.derp_client import DerpClient
from agent.tailnet.derp_dial import DialOptions, Tls
from agent.tailnet.derp_map import Node, Region

DATAGRAM = 1312
WINDOW = 64
"""Datagrams that are on their way at a time, between each pair."""


async def measure(seconds: float = 3.0) -> dict[str, float]:
    """Packets per second through the relay, its CPU per packet, and the round trip of one packet alone."""
    figures: dict[str, float] = {}
    with _process(_forwarder) as (port, _):
        figures["bare forwarder MB/s, 2 clients"] = await _bare(port, seconds)
    for clients in (2, 200):
        with _process(_relay) as (port, cpu):
            rate, used = await _relayed(port, clients, seconds, cpu)
            figures[f"relay packets/s, {clients} clients"] = rate
            figures[f"relay MB/s, {clients} clients"] = rate * DATAGRAM / 1e6
            figures[f"relay CPU us per packet, {clients} clients"] = used / (rate * seconds) * 1e6
    with _process(_relay) as (port, _):
        figures["relay round trip p50 us"] = await _round_trip(port)
    return figures


class _Owner:
    """Counts, and sends each datagram that arrived back as another."""

    def __init__(self) -> None:
        self.received = 0
        self.answer: Callable[[int], None] = lambda count: None

    def derp_packets(self, region: int, packets: Packets) -> None:
        self.received += len(packets)
        self.answer(len(packets))

    def derp_peer_gone(self, region: int, key: bytes) -> None:
        raise RuntimeError("a client is gone")

    def derp_changed(self, region: int) -> None: ...


def _clients(port: int, count: int) -> list[tuple[DerpClient, _Owner, bytes]]:
    region = Region(1, nodes=(Node("1a", 1, "127.0.0.1", derp_port=port, force_http=True),))
    made = []
    for _ in range(count):
        private, owner = keys.generate(), _Owner()
        client = DerpClient(
            region, private, owner, SystemClock(), home=False, tls=Tls(), options=DialOptions(environment={})
        )
        made.append((client, owner, keys.public_key(private)))
    return made


async def _relayed(port: int, count: int, seconds: float, cpu: Callable[[], float]) -> tuple[float, float]:
    """Each client keeps `WINDOW` datagrams on their way to its partner."""
    made = _clients(port, count)
    tasks = [asyncio.create_task(client.run()) for client, _, _ in made]
    await asyncio.gather(*(client.wait_connected() for client, _, _ in made))
    datagram = bytes(DATAGRAM)
    for index, (client, owner, _) in enumerate(made):
        partner = made[index ^ 1][2]
        # What arrived makes room for as many in the other direction.
        owner.answer = lambda n, client=client, partner=partner: client.send(partner, [datagram] * n)  # type: ignore[misc]
        client.send(partner, [datagram] * WINDOW)
    await asyncio.sleep(0.5)
    before, began, used = sum(owner.received for _, owner, _ in made), time.perf_counter(), cpu()
    await asyncio.sleep(seconds)
    received = sum(owner.received for _, owner, _ in made) - before
    elapsed, used = time.perf_counter() - began, cpu() - used
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return received / elapsed, used


async def _round_trip(port: int, rounds: int = 3000) -> float:
    (one, owner, key), (two, other, other_key) = _clients(port, 2)
    tasks = [asyncio.create_task(client.run()) for client in (one, two)]
    await asyncio.gather(one.wait_connected(), two.wait_connected())
    arrived = asyncio.Event()

    def echo(_: int) -> None:
        two.send(key, [b"x" * 64])

    owner.answer = lambda _: arrived.set()
    other.answer = echo
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        arrived.clear()
        one.send(other_key, [b"x" * 64])
        await arrived.wait()
        times.append(time.perf_counter() - began)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return sorted(times)[rounds // 2] * 1e6


# ---- the other process


@contextmanager
def _process(serve: Callable[[], Any]) -> Any:
    """Runs `serve` in a process of its own; gives its port and a function for the CPU time it has used."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=_serve, args=(serve, far), daemon=True)
    process.start()
    try:
        port = near.recv()

        def cpu() -> float:
            near.send(None)
            return float(near.recv())

        yield port, cpu
    finally:
        process.terminate()
        process.join()


def _serve(serve: Callable[[], Any], pipe: Pipe) -> None:
    async def run() -> None:
        def tell() -> None:
            pipe.recv()
            usage = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send(usage.ru_utime + usage.ru_stime)

        pipe.send(await serve())
        asyncio.get_running_loop().add_reader(pipe.fileno(), tell)
        await asyncio.Event().wait()

    asyncio.run(run())


async def _relay() -> int:
    relay = Relay(SystemClock())
    part = Derp(relay, LongLived(), SystemClock())
    app = web.Application()

    async def handle(request: web.Request) -> web.StreamResponse:
        return await part.connect(Call(request, part.routes()[0], SystemClock(), None))

    app.router.add_get("/derp", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return int(runner.addresses[0][1])


async def _forwarder() -> int:
    waiting: list[_Forward] = []

    class _Forward(asyncio.Protocol):
        partner: asyncio.Transport

        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            if waiting:
                other = waiting.pop()
                self.partner, other.partner = other.transport, transport
            else:
                waiting.append(self)

        def data_received(self, data: bytes) -> None:
            self.partner.write(data)

    server = await asyncio.get_running_loop().create_server(_Forward, "127.0.0.1", 0)
    return int(server.sockets[0].getsockname()[1])


async def _bare(port: int, seconds: float) -> float:
    """MB/s of both directions together, with as many bytes on their way as `_relayed` has."""

    class _End(asyncio.Protocol):
        received = 0

        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.received += len(data)
            self.transport.write(data)

    loop = asyncio.get_running_loop()
    _, one = await loop.create_connection(_End, "127.0.0.1", port)
    _, two = await loop.create_connection(_End, "127.0.0.1", port)
    await asyncio.sleep(0.1)
    piece = struct.pack(">BI", 4, DATAGRAM + 32) + bytes(DATAGRAM + 32)
    for end in (one, two):
        end.transport.write(piece * WINDOW)
    await asyncio.sleep(0.3)
    before, began = one.received + two.received, time.perf_counter()
    await asyncio.sleep(seconds)
    rate = (one.received + two.received - before) / (time.perf_counter() - began) / 1e6
    one.transport.abort()
    two.transport.abort()
    return rate
