"""What a peer that means harm costs an honest one: they share an agent's node and a relay, each in its own process.

The attacks go on at a fixed pace while the honest pair is measured; the first lines are the same without any. All
processes share this machine, so that what the attacker itself computes is in the round trips, too. What each of its
datagrams costs the node and the server is therefore measured apart, by their processor time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import MappingProxyType

import psutil

from agent.api.tailnet import TAILSCALE_PREFIX
from agent.clock import SystemClock
from agent.protocol import disco, ip, keys
from agent.protocol.derp import Packets
from agent.protocol.tcp import Connected, Limits, TcpStack
from agent.protocol.tcp.segment import SYN, build
from agent.protocol.wireguard import Device
from agent.tailnet.derp_client import DerpClient
from agent.tailnet.derp_dial import DialOptions, Tls
from agent.tailnet.derp_map import NO_STUN, DerpMap, Region
from agent.tailnet.derp_map import Node as RelayNode
from agent.testing.deployment import Deployment
from agent.testing.nodes import OURS, Node
from agent.testing.traffic import ECHO, SOURCE

REGION = 999
TICK = 0.01
ECHOES = 1000
SIZE = 20_000_000
DEAF, WINDOW = 200, 65_536
ALONE = 3.0
"""Seconds of an attack alone."""
CLOCK = SystemClock()


def _address(number: int) -> bytes:
    return TAILSCALE_PREFIX + bytes(9) + bytes((number,))


class Attacker:
    """A peer of the victim's node, with good keys, at the same relay."""

    def __init__(self, region: Region, victim: Node) -> None:
        private, self._disco = keys.generate(), keys.generate()
        self.device = Device(private)
        self.victim = bytes.fromhex(victim.state["node"])
        self._box = keys.box_key(self._disco, bytes.fromhex(victim.state["disco"]))
        self._to = victim.packed[0]
        self.device.add_peer(self.victim, [self._to])
        tls, options = Tls(), DialOptions(environment={})
        self.relay = DerpClient(region, private, self, CLOCK, home=True, tls=tls, options=options)
        self._port = 1024
        self._stack = TcpStack([_address(3)], limits=Limits(receive_buffer=WINDOW))
        self.sent = 0

    @property
    def as_peer(self) -> dict[str, object]:
        return {
            "node": self.device.public_key.hex(),
            "disco": keys.public_key(self._disco).hex(),
            "home": REGION,
            "addresses": [str(ipaddress.IPv6Address(_address(3)))],
            "endpoints": [],
            "keep_alive": False,
        }

    def derp_packets(self, region: int, packets: Packets) -> None:
        datagrams = [datagram for _, datagram in packets if not disco.is_disco(datagram)]
        received = self.device.receive(datagrams, CLOCK.now(), CLOCK.wall())
        for _, output in received.output:
            self.send(output)
        if self._stack.connections:
            segments = [packet for _, packets in received.packets for packet in packets if packet[6] == ip.TCP]
            for event in self._stack.receive(segments, CLOCK.now()):
                if isinstance(event, Connected):
                    event.connection.write(b"1000000000\n")
            self._flush()

    def _flush(self) -> None:
        while packets := self._stack.packets_to_send(CLOCK.now()):
            self.send_inner(packets)

    def derp_peer_gone(self, region: int, key: bytes) -> None: ...
    def derp_changed(self, region: int) -> None: ...

    def send(self, datagrams: Sequence[bytes]) -> None:
        self.sent += self.relay.send(self.victim, datagrams)

    def send_inner(self, packets: Sequence[bytes]) -> None:
        for _, datagrams in self.device.send(packets, CLOCK.now(), CLOCK.wall()):
            self.send(datagrams)

    # ---- what it does, so many at a time

    def handshakes(self, count: int) -> None:
        for _ in range(count):
            self.device.forget_keys(self.victim)
            self.send_inner([ip.build(_address(3), self._to, 59, b"")])

    def garbage(self, count: int) -> None:
        self.send([b"\4\0\0\0" + os.urandom(1300) for _ in range(count)])

    def bad_boxes(self, count: int) -> None:
        head = disco.MAGIC + keys.public_key(self._disco)
        self.send([head + os.urandom(100) for _ in range(count)])

    def pings(self, count: int) -> None:
        public = keys.public_key(self._disco)
        message = disco.Ping(os.urandom(12), self.device.public_key)
        self.send([disco.seal(message, public, self._box, os.urandom(24)) for _ in range(count)])

    def connections(self, count: int) -> None:
        packets = []
        for _ in range(count):
            self._port = 1024 + (self._port - 1023) % 60_000
            flow = _address(3) + self._to + self._port.to_bytes(2, "big") + ECHO.to_bytes(2, "big")
            packets.append(build(flow, 1, 0, SYN, 1000))
        self.send_inner(packets)

    def foreign(self, count: int) -> None:
        self.send_inner([ip.build(_address(77), self._to, 59, bytes(1200)) for _ in range(count)])

    def deaf(self, count: int) -> None:
        """Asks for a gigabyte on each of more and more connections, and reads nothing."""
        for _ in range(min(count, DEAF - len(self._stack.connections))):
            self._stack.connect(_address(3), self._to, SOURCE, CLOCK.now())
        self._stack.handle_timeout(CLOCK.now())
        self._flush()

    def strays(self, count: int) -> None:
        """To nobody: the relay drops them."""
        self.sent += self.relay.send(os.urandom(32), [bytes(1300)] * count)


ATTACKS: dict[str, tuple[Callable[[Attacker, int], None], int]] = {
    "nobody": (lambda attacker, count: None, 0),
    "2,000 handshakes/s": (Attacker.handshakes, 2000),
    "5,000 datagrams of garbage/s": (Attacker.garbage, 5000),
    "5,000 disco boxes that do not open/s": (Attacker.bad_boxes, 5000),
    "2,000 disco pings/s": (Attacker.pings, 2000),
    "2,000 SYN/s": (Attacker.connections, 2000),
    "2,000 packets/s from another's address": (Attacker.foreign, 2000),
    f"{DEAF} connections that read nothing": (Attacker.deaf, 100),
    "5,000 datagrams/s to nobody": (Attacker.strays, 5000),
}


@asynccontextmanager
async def _going_on(attack: Callable[[Attacker, int], None], attacker: Attacker, rate: int) -> AsyncIterator[None]:
    async def run() -> None:
        began, done = time.perf_counter(), 0
        while True:
            due = int((time.perf_counter() - began) * rate)
            attack(attacker, due - done)
            done = due
            await asyncio.sleep(TICK)

    task = asyncio.create_task(run())
    try:
        await asyncio.sleep(0.3)
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def measure() -> dict[str, float]:
    """Round trip of one byte and MB/s down of the honest pair for each attack, and what the attack costs."""
    figures: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="workspace-agent-bench-"))
        running = await stack.enter_async_context(Deployment(Path(directory)))
        region = Region(REGION, "t", "Test", nodes=(_relay(running.url),))
        relays = DerpMap(MappingProxyType({REGION: region}))
        victim, honest = Node(OURS, [_address(1)], "--relayed"), Node(OURS, [_address(2)], "--relayed")
        for node in (victim, honest):
            await stack.enter_async_context(node)
            await node.set_map(relays)
            await node.wait_state()
        attacker = Attacker(region, victim)
        relaying = asyncio.create_task(attacker.relay.run())
        stack.callback(relaying.cancel)
        await attacker.relay.wait_connected()
        await honest.set_peers(victim.as_peer())
        await victim.set_peers(honest.as_peer(), attacker.as_peer)
        await honest.echo(victim.addresses[0], count=200)
        processes = [psutil.Process(victim.pid), psutil.Process(running.server.pid)]
        for name, (attack, rate) in ATTACKS.items():
            async with _going_on(attack, attacker, rate):
                if rate:
                    costs = await _costs(attacker, processes)
                    figures |= {f"{name}: µs of the {who} for each": cost for who, cost in costs.items()}
                figures |= {f"{name}: {what}": value for what, value in (await _honest(honest, victim)).items()}
    return figures


async def _costs(attacker: Attacker, processes: Sequence[psutil.Process]) -> dict[str, float]:
    """Processor time for each datagram of the attacker, in microseconds, while nobody else does anything."""
    before = [sum(process.cpu_times()[:2]) for process in processes]
    sent = attacker.sent
    await asyncio.sleep(ALONE)
    used = [sum(process.cpu_times()[:2]) - then for process, then in zip(processes, before, strict=True)]
    return {who: each / (attacker.sent - sent) * 1e6 for who, each in zip(("node", "server"), used, strict=True)}


def _relay(url: str) -> RelayNode:
    port = int(url.rpartition(":")[2])
    return RelayNode("999b", REGION, "127.0.0.1", derp_port=port, force_http=True, stun_port=NO_STUN)


async def _honest(honest: Node, victim: Node) -> dict[str, float]:
    trips = await honest.echo(victim.addresses[0], count=ECHOES, pause=0.002)
    rates = [SIZE / 1e6 / await honest.bulk(victim.addresses[0], up=False, size=SIZE) for _ in range(3)]
    return {
        "echo p50 ms": statistics.median(trips) * 1e3,
        "echo p99 ms": statistics.quantiles(trips, n=100)[98] * 1e3,
        "MB/s down, best of 3": max(rates),
    }


if __name__ == "__main__":
    for what, value in asyncio.run(measure()).items():
        print(f"{what:70} {value:10.2f}")
