"""Whole nodes without sockets: WireGuard, TCP, TSMP and path choice together."""

from __future__ import annotations

import asyncio
import os

import pytest

from agent.protocol import ip
from agent.protocol.ip import Datagram
from agent.protocol.tcp import ConnectionRefusedTcpError, TcpError, TcpStack
from agent.tailnet.streams import TailnetStream
from agent.testing import ManualClock, settle
from tests.tailnet.nodes import pair


async def test_bytes_go_there_and_come_back(clock: ManualClock) -> None:
    async with pair(clock) as (a, b):
        stream = a.engine.dial(b.address, 7)
        await stream.connected()
        data = os.urandom(3_000_000)

        async def send() -> None:
            await stream.write(data)
            stream.shutdown_write()

        sending = asyncio.ensure_future(send())
        back = bytearray()
        while part := await stream.read():
            back += part
        await sending
        assert bytes(back) == data
        assert a.relayed > 1000
        assert a.direct == 0


@pytest.mark.spec("tailnet", 54)
async def test_a_closed_port_refuses_at_once(clock: ManualClock) -> None:
    async with pair(clock) as (a, b):
        stream = a.engine.dial(b.address, 8)
        with pytest.raises(ConnectionRefusedTcpError):
            await stream.connected()


@pytest.mark.spec("tailnet", 46)
async def test_tsmp_pings_in_parallel(clock: ManualClock) -> None:
    async with pair(clock) as (a, b):
        assert await asyncio.gather(*(a.engine.ping(b.address) for _ in range(20))) == [0.0] * 20
        assert await b.engine.ping(a.address) == 0


@pytest.mark.spec("tailnet", 59)
async def test_icmp_echo_and_udp(clock: ManualClock) -> None:
    async with pair(clock) as (a, b):
        await a.engine.ping(b.address)
        echo = bytearray(ip.build(a.address, b.address, ip.ICMPV6, bytes((128, 0, 0, 0)) + b"12345678"))
        checksum = ip.checksum_of(bytes(echo))
        echo[42:44] = checksum.to_bytes(2, "big")
        before = a.engine.counters.rx_packets
        a.engine.send_packet(bytes(echo))
        a.engine.send_packet(ip.build_udp(Datagram(a.address, 1, b.address, 2, b"hello")))
        await settle()
        assert a.engine.counters.rx_packets == before + 1
        assert [datagram.payload for datagram in b.datagrams] == [b"hello"]


async def test_traffic_moves_to_udp_and_streams_survive_its_loss(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair(clock, direct=True) as (a, b):
        moves: list[object] = []
        monkeypatch.setattr(
            TcpStack, "way_changed", lambda stack, of: moves.append(of) if stack is a.engine.stack else None
        )
        stream = a.engine.dial(b.address, 7)
        await stream.connected()

        async def turn(text: bytes) -> None:
            await stream.write(text)
            while True:
                reading = asyncio.ensure_future(stream.read())
                while not reading.done():
                    await clock.advance(0.1)
                assert reading.result() == text
                return

        await turn(b"one")
        await turn(b"two")
        before = a.direct
        await turn(b"three")
        assert a.direct > before
        assert moves == [{b.address}], "from the relay to UDP"
        a.net.udp = False
        await turn(b"lost on the way, then through the relay")
        assert len(moves) == 2
        a.net.udp = True
        for number in range(40):
            await turn(b"%d" % number)
            await clock.advance(0.5)
        relayed = a.relayed
        await turn(b"direct again")
        assert a.relayed == relayed
        assert len(moves) == 3


async def test_a_new_disco_key_drops_sessions_and_streams_go_on(clock: ManualClock) -> None:
    async with pair(clock) as (a, b):
        stream = a.engine.dial(b.address, 7)
        await stream.connected()
        b.engine.device.forget_keys(a.key)
        writing = asyncio.ensure_future(stream.write(b"still there"))
        reading = asyncio.ensure_future(stream.read())
        for _ in range(400):
            if reading.done():
                break
            await clock.advance(0.1)
        assert await reading == b"still there"
        await writing


async def test_the_first_initiation_of_a_peer_that_is_not_yet_known_waits_for_it(clock: ManualClock) -> None:
    async with pair(clock) as (a, b):
        b.engine.remove_peer(a.key)
        stream = a.engine.dial(b.address, 7)
        await settle()
        b.know(a, direct=False)
        await asyncio.wait_for(stream.connected(), 5)
        assert clock.now() < 1


async def test_back_pressure_reaches_the_writer(clock: ManualClock) -> None:
    async with pair(clock) as (a, b):
        held: list[TailnetStream] = []
        b.handler = held.append
        stream = a.engine.dial(b.address, 7)
        await stream.connected()
        writing = asyncio.ensure_future(stream.write(bytes(64 << 20)))
        for _ in range(200):
            await clock.advance(0.05)
        assert not writing.done()
        assert held[0]._connection.readable <= 4 << 20
        stream.abort()
        with pytest.raises(TcpError):
            await writing


async def test_what_a_broken_connection_did_not_deliver_is_not_taken_for_delivered(clock: ManualClock) -> None:
    async with pair(clock) as (a, b):
        held: list[TailnetStream] = []
        b.handler = held.append
        stream = a.engine.dial(b.address, 7)
        await stream.connected()
        await stream.write(b"got")
        await stream.drained()
        a.net.relays = False
        await stream.write(b"lost")
        draining = asyncio.ensure_future(stream.drained())
        await settle()
        stream.abort()
        with pytest.raises(TcpError):
            await draining
        with pytest.raises(TcpError):
            await stream.drained()


async def test_garbage_costs_little_and_does_nothing(clock: ManualClock) -> None:
    async with pair(clock) as (a, b):
        await a.engine.ping(b.address)
        for size in (0, 1, 4, 32, 148, 1310, 65_000):
            for start in (b"", b"\x01\0\0\0", b"\x04\0\0\0", b"TS\xf0\x9f\x92\xac" + a.engine.paths.public):
                datagram = (start + os.urandom(size))[: max(size, len(start))]
                b.engine.receive_udp(a.endpoint, [datagram])
                b.engine.receive_relay(999, [(a.key, datagram), (os.urandom(32), datagram)])
        assert await a.engine.ping(b.address) == 0
        assert b.engine.counters.unbound
        assert b.engine.counters.unknown_relayed


async def test_a_peer_sends_what_it_is_allowed_and_knows_what_waits_for_more(clock: ManualClock) -> None:
    async with pair(clock) as (a, b):
        written: list[int] = []

        async def print_much(stream: TailnetStream) -> None:
            for _ in range(100):
                await stream.write(bytes(10_000))
                await stream.sent(4000)
                written.append(10_000)
            stream.close()

        b.handler = print_much
        stream = a.engine.dial(b.address, 7, allowed=16_384)
        await stream.connected()
        allowed, received, at_end = 16_384, 0, False
        for _ in range(1000):
            for _ in range(3):
                await clock.advance(0.01)
            while stream._connection.readable:
                received += len(await stream.read())
            assert received <= allowed
            assert received > allowed - 4096 or sum(written) == 1_000_000
            assert sum(written) <= allowed + 4000
            if at_end := received == 1_000_000:
                break
            allowed += 5000
            stream.allow(allowed)
            stream.allow(1)  # what was allowed is not taken back
        assert at_end
        assert await stream.read() == b""


async def test_who_waits_for_a_broken_connection_to_send_is_told(clock: ManualClock) -> None:
    async with pair(clock) as (a, b):
        b.handler = lambda stream: None
        stream = a.engine.dial(b.address, 7)
        await stream.connected()
        a.net.relays = False
        await stream.write(bytes(1_000_000))
        waiting = asyncio.ensure_future(stream.sent(0))
        await settle()
        assert not waiting.done()
        stream.abort()
        with pytest.raises(TcpError):
            await waiting
