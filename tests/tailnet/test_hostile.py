"""A peer that means harm at a node, beside an honest one: what it sends is counted and dropped at a bounded price, and
the honest one notices nothing. The prices are measured by `scripts/bench` (hostile); here is what becomes of each."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agent.protocol import disco, ip, keys
from agent.protocol.ip import Datagram
from agent.protocol.tcp.segment import SYN, build
from agent.protocol.wireguard.admission import SOURCE_BURST
from agent.tailnet.engine import MAX_HELD
from agent.testing import ManualClock, settle
from tests.tailnet.nodes import REGION, Net, Node


@dataclass
class Three:
    victim: Node
    hostile: Node
    honest: Node
    clock: ManualClock

    async def still_fine(self) -> None:
        """The honest one makes a new connection without any time passing."""
        began = self.clock.now()
        stream = self.honest.engine.dial(self.victim.address, 7)
        async with asyncio.timeout(5):
            await stream.connected()
            await stream.write(b"hello")
            assert await stream.read() == b"hello"
        assert self.clock.now() == began
        stream.abort()
        await settle()

    def seal(self, packets: list[bytes]) -> list[bytes]:
        """Anything, with the keys of the hostile one's session."""
        peer = self.hostile.engine.device.peer(self.victim.key)
        assert peer is not None
        assert peer._keypairs.current is not None
        return peer._keypairs.current.seal(packets)

    def flood(self, datagrams: list[bytes]) -> None:
        """What the hostile one puts into the relay."""
        self.victim.engine.receive_relay(REGION, [(self.hostile.key, datagram) for datagram in datagrams])


@asynccontextmanager
async def three(clock: ManualClock) -> AsyncIterator[Three]:
    net = Net(clock)
    nodes = [Node(net, number, clock) for number in (1, 2, 3)]
    net.nodes += nodes
    victim, hostile, honest = nodes
    for node in (hostile, honest):
        node.know(victim, direct=False)
        victim.know(node, direct=False)
    timers = [asyncio.ensure_future(node.engine.keep_time()) for node in nodes]
    try:
        await hostile.engine.ping(victim.address)
        yield Three(victim, hostile, honest, clock)
    finally:
        for node in nodes:
            node.engine.close()
            for task in node.tasks:
                task.cancel()
        for timer in timers:
            timer.cancel()
        await asyncio.gather(*timers, *(task for node in nodes for task in node.tasks), return_exceptions=True)


async def test_forged_boxes_and_messages(clock: ManualClock) -> None:
    async with three(clock) as w:
        head = disco.MAGIC + w.hostile.engine.paths.public
        w.flood([head + os.urandom(100) for _ in range(500)])
        assert w.victim.engine.paths.counters.bad_box == 500
        w.flood([disco.MAGIC + os.urandom(132) for _ in range(500)])
        assert w.victim.engine.paths.counters.unknown_sender == 500
        (index,) = w.victim.engine.device._keypairs
        w.flood([b"\4\0\0\0" + index.to_bytes(4, "little") + os.urandom(60) for _ in range(500)])
        assert w.victim.engine.device.counters.forged == 500
        w.flood([b"\4\0\0\0" + os.urandom(1300) for _ in range(500)])
        assert w.victim.engine.device.counters.unknown_index == 500
        await w.still_fine()


async def test_foreign_inner_addresses(clock: ManualClock) -> None:
    async with three(clock) as w:
        counters = w.victim.engine.device.counters
        for _ in range(300):
            packet = ip.build_udp(Datagram(w.honest.address, 1, w.victim.address, 2, b"I am the other one"))
            w.hostile.engine.send_packet(packet)
        await settle()
        assert counters.foreign_source == 300
        for _ in range(300):
            elsewhere = ip.build(w.hostile.address, w.victim.address[:15] + b"\x63", 59, b"")
            w.flood(w.seal([elsewhere]))
        assert w.victim.engine.counters.foreign == 300
        assert w.victim.datagrams == []
        await w.still_fine()


async def test_datagrams_larger_than_any(clock: ManualClock) -> None:
    async with three(clock) as w:
        for kind in range(6):
            w.flood([bytes((kind, 0, 0, 0)) + bytes(65_532)] * 20)
        counters = w.victim.engine.device.counters
        assert counters.malformed == 100
        assert counters.unknown_index == 20
        await w.still_fine()


async def test_handshakes_without_end_and_again(clock: ManualClock) -> None:
    async with three(clock) as w:
        device, victim = w.hostile.engine.device, w.victim.engine.device
        fresh = []
        for number in range(100):
            device.forget_keys(w.victim.key)
            packet = ip.build(w.hostile.address, w.victim.address, 59, b"")
            fresh += [each for _, out in device.send([packet], clock.now(), clock.wall() + number) for each in out]
        w.flood(fresh)
        await w.still_fine()
        counters = victim.counters
        await clock.advance(1)
        w.flood(fresh[:SOURCE_BURST])
        assert counters.replayed_initiation + counters.hasty_initiation >= SOURCE_BURST
        w.flood(fresh * 20)
        assert counters.over_rate > 1500
        assert counters.cookies_issued <= 3 * SOURCE_BURST
        assert len(victim._keypairs) <= 2 * 3
        await w.still_fine()


async def test_initiations_of_strangers(clock: ManualClock) -> None:
    async with three(clock) as w:
        initiation = b"\1\0\0\0" + os.urandom(144)
        w.victim.engine.receive_relay(REGION, [(os.urandom(32), initiation) for _ in range(3000)])
        w.victim.engine.receive_relay(REGION, [(os.urandom(32), bytes(200)) for _ in range(3000)])
        assert len(w.victim.engine._held) == MAX_HELD
        assert w.victim.engine.counters.unknown_relayed == 3000
        await w.still_fine()
        await clock.advance(120)
        assert len(w.victim.engine._held) <= MAX_HELD
        endpoint = (bytes(16), 1)
        w.victim.engine.receive_udp(endpoint, [initiation] * 1000)
        assert w.victim.engine.counters.unbound == 1000


async def test_connections_without_end(clock: ManualClock) -> None:
    async with three(clock) as w:
        w.victim.net.nodes.remove(w.hostile)  # it does not answer
        for port in range(2000):
            flow = w.hostile.address + w.victim.address + (1024 + port).to_bytes(2, "big") + (7).to_bytes(2, "big")
            w.flood(w.seal([build(flow, 1, 0, SYN, 1000)]))
        stack = w.victim.engine.stack
        assert stack.pending == stack.limits.pending_of_peer
        assert stack.counters.backlog_full == 2000 - stack.pending
        await w.still_fine()
        await clock.advance(300)
        assert (stack.pending, stack.connections) == (0, [])


async def test_pings_without_end_are_answered_one_by_one(clock: ManualClock) -> None:
    async with three(clock) as w:
        sent = w.victim.relayed
        for number in range(1000):
            w.hostile.engine.send_packet(ip.tsmp_ping(w.hostile.address, w.victim.address, number.to_bytes(8, "big")))
        echo = bytearray(ip.build(w.hostile.address, w.victim.address, ip.ICMPV6, bytes((128, 0, 0, 0)) + bytes(1000)))
        echo[42:44] = ip.checksum_of(bytes(echo)).to_bytes(2, "big")
        for _ in range(1000):
            w.hostile.engine.send_packet(bytes(echo))
        await settle()
        assert w.victim.relayed - sent <= 2000 + 10
        assert w.victim.engine._packets == []
        box = keys.box_key(w.hostile.engine.paths._private, w.victim.engine.paths.public)
        ping = disco.Ping(bytes(12), w.hostile.key)
        sent = w.victim.relayed
        w.flood([disco.seal(ping, w.hostile.engine.paths.public, box, os.urandom(24)) for _ in range(1000)])
        assert w.victim.relayed - sent == 1000
        await w.still_fine()
