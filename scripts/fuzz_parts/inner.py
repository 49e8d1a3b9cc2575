"""Inner packets: a whole node whose peer has good keys and sends any IPv6 packet: TSMP, ICMPv6, UDP, TCP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from agent.protocol import ip, keys, stun
from agent.protocol.ip import Datagram, Endpoint
from agent.protocol.tcp import Connection, Limits
from agent.protocol.wireguard import Device
from agent.tailnet.engine import MAX_HELD, Engine
from agent.tailnet.paths import Answered
from agent.tailnet.streams import TailnetStream
from agent.testing import ManualClock
from fuzz_parts import Input

OWN, PEER = b"\xfd" + bytes(15), b"\xfd" + bytes(14) + b"\1"
NODE, DISCO, CLIENT = bytes(range(1, 33)), bytes(range(2, 34)), bytes(range(3, 35))
REGION = 7
LIMITS = Limits(receive_buffer=20_000, send_buffer=20_000, pending=8, connections=16, time_waits=8, control=64)


class _World:
    """The node's surroundings, and its peer."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.client = Device(CLIENT)
        self.to_client: list[bytes] = []
        self.sent = 0
        self.engine = Engine(
            node_private=NODE,
            disco_private=DISCO,
            addresses=(OWN,),
            outside=self,
            inside=self,
            clock=self.clock,
            limits=LIMITS,
        )
        self.engine.set_peer(self.client.public_key, keys.public_key(CLIENT), [PEER], REGION, [])
        self.client.add_peer(self.engine.device.public_key, [OWN])

    def send_udp(self, endpoint: Endpoint, datagrams: Sequence[bytes]) -> None:
        self.sent += len(datagrams)

    def send_relay(self, region: int, peer: bytes, datagrams: Sequence[bytes]) -> None:
        assert region == REGION
        self.sent += len(datagrams)
        if peer == self.client.public_key:
            self.to_client += datagrams

    def incoming(self, connection: Connection) -> None:
        if connection.local_port % 2:
            self.engine.accept(connection)
        else:
            self.engine.refuse(connection)

    def connected(self, stream: TailnetStream) -> None:
        stream.abort()

    def udp(self, datagram: Datagram) -> None:
        if len(datagram.payload) <= ip.MAX_UDP_PAYLOAD:
            ip.build_udp(Datagram(OWN, datagram.destination_port, PEER, datagram.source_port, datagram.payload))

    def stun(self, response: stun.Response) -> None: ...
    def answered(self, answered: Answered) -> None: ...

    def client_sends(self, packets: list[bytes]) -> None:
        """Sealed, through the relay, with handshakes where they are due."""
        for _, datagrams in self.client.send(packets, self.clock.now(), self.clock.wall()):
            self.deliver(datagrams)

    def deliver(self, datagrams: list[bytes]) -> None:
        for _ in range(4):
            self.engine.receive_relay(REGION, [(self.client.public_key, datagram) for datagram in datagrams])
            waiting, self.to_client = self.to_client, []
            received = self.client.receive(waiting, self.clock.now(), self.clock.wall())
            datagrams = [datagram for _, output in received.output for datagram in output]
            if not datagrams:
                return


def seeds() -> Iterator[bytes]:
    echo = bytearray(ip.build(PEER, OWN, ip.ICMPV6, bytes((128, 0, 0, 0)) + b"12345678"))
    echo[42:44] = ip.checksum_of(bytes(echo)).to_bytes(2, "big")
    for packet in (
        bytes(echo),
        ip.tsmp_ping(PEER, OWN, b"12345678"),
        ip.build_udp(Datagram(PEER, 1, OWN, 2, b"hello")),
        ip.build(PEER, OWN, ip.TCP, bytes((0, 1, 0, 1)) + bytes(8) + bytes((80, 2, 255, 255, 0, 0, 0, 0))),
    ):
        yield bytes((0, len(packet))) + packet
        yield bytes((1, packet[6], len(packet) - 40)) + packet[40:]
    yield bytes((2, 148, 1, 0, 0, 0)) + bytes(144)
    yield bytes((3, 148, 1, 0, 0, 0)) + bytes(144)


def target(data: bytes) -> None:
    asyncio.run(_run(Input(data)))


async def _run(given: Input) -> None:
    world = _World()
    world.client_sends([ip.tsmp_ping(PEER, OWN, bytes(8))])
    strangers = 0
    while given:
        form = given.number() % 5
        before, size = world.sent, 1
        if form == 0:
            world.client_sends([given.text()])
        elif form == 1:  # with a checksum that holds, where the protocol has one there
            protocol = given.number()
            packet = bytearray(ip.build(PEER, OWN, protocol, given.text()))
            at = {ip.ICMPV6: 42, ip.UDP: 46, ip.TCP: 56}.get(protocol, 1 << 20)
            if at + 2 <= len(packet):
                packet[at : at + 2] = bytes(2)
                packet[at : at + 2] = ip.checksum_of(bytes(packet)).to_bytes(2, "big")
            world.client_sends([bytes(packet)])
        elif form == 2:
            strangers += 1
            world.engine.receive_relay(REGION, [(strangers.to_bytes(32, "big"), given.text())])
        elif form == 3:
            world.engine.receive_udp((given.number().to_bytes(16, "big"), given.number(2)), [given.text()])
        else:
            await world.clock.advance(given.number(2) / 200)
            world.engine.handle_timeout()
            size = 64
        await asyncio.sleep(0)
        assert world.sent - before <= 16 * size, "no packet is worth so many answers"
        engine = world.engine
        assert len(engine._held) <= MAX_HELD
        assert len(engine.stack.connections) <= LIMITS.connections
        assert len(engine._streams) <= LIMITS.connections
    world.engine.close()
    await asyncio.sleep(0)
