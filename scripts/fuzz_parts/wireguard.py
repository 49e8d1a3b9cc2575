"""WireGuard: a device with one peer that misbehaves with good keys, and strangers that send anything."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from agent.protocol.wireguard import Device
from agent.protocol.wireguard.peer import MAX_QUEUED
from fuzz_parts import Input

AGENT, CLIENT = bytes(range(32)), bytes(range(1, 33))
AGENT_ADDRESS, CLIENT_ADDRESS = b"\xfd" + bytes(15), b"\xfd" + bytes(14) + b"\1"
WALL = 1_750_000_000_000_000_000


class _Link:
    """Both devices, and what was sent but not delivered."""

    def __init__(self) -> None:
        self.now, self._count = 1000.0, 0
        self.agent, self.client = Device(AGENT, self._random), Device(CLIENT, self._random)
        self.agent.add_peer(self.client.public_key, [CLIENT_ADDRESS])
        self.client.add_peer(self.agent.public_key, [AGENT_ADDRESS])
        self.to_agent: list[bytes] = []
        self.to_client: list[bytes] = []

    def _random(self, size: int) -> bytes:
        self._count += 1
        return (self._count * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "little").ljust(size, b"\x5a")[:size]

    @property
    def wall(self) -> int:
        return WALL + int(self.now * 1e9)

    def client_sends(self, content: bytes) -> None:
        packet = (
            b"\x60\0\0\0" + len(content).to_bytes(2, "big") + b"\x3b\x40" + CLIENT_ADDRESS + AGENT_ADDRESS + content
        )
        for _, datagrams in self.client.send([packet], self.now, self.wall):
            self.to_agent += datagrams

    def agent_takes(self, datagrams: list[bytes], source: bytes = b"client") -> None:
        received = self.agent.receive(datagrams, self.now, self.wall, source)
        for _, packets in received.packets:
            assert all(packet[8:24] == CLIENT_ADDRESS and len(packet) >= 40 for packet in packets)
        for _, output in received.output:
            self.to_client += output
        assert len(received.replies) <= len(datagrams)
        self.to_client += received.replies

    def deliver(self) -> None:
        """Both ways, once."""
        datagrams, self.to_agent = self.to_agent, []
        self.agent_takes(datagrams)
        datagrams, self.to_client = self.to_client, []
        for _, output in self.client.receive(datagrams, self.now, self.wall, b"agent").output:
            self.to_agent += output

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for device, sent in ((self.agent, self.to_client), (self.client, self.to_agent)):
            for _, datagrams in device.handle_timeout(self.now, self.wall):
                sent += datagrams
            due = device.next_timeout()
            assert due is None or due > self.now

    def check(self) -> None:
        for device in (self.agent, self.client):
            assert len(device._keypairs) <= 3
            assert len(device._initiations) <= 1
            assert len(device._deadlines) <= 4 * len(device._peers) + 64
            (peer,) = device._peers.values()
            assert len(peer._queue) <= MAX_QUEUED
            assert peer._scheduled == inf or peer._scheduled > 0
        del self.to_agent[:-256], self.to_client[:-256]


def seeds() -> Iterator[bytes]:
    yield bytes((0, 3, 1, 2, 3, 1, 1, 1))
    yield bytes((0, 0, 1, 2, 5, 8, 4, 1, 1, 4, 0, 0, 0, 0, 9, 1))
    for kind, size in ((1, 148), (2, 92), (3, 64), (4, 32)):
        yield bytes((1, 1, 4, size, kind)) + bytes(size - 1)
        yield bytes((0, 0, 1, 1, 1, 3, 0, 4, 1, kind, 1))
    yield bytes((0, 0, 1, 1, 1, 6, 30)) + b"\x60\0\0\0\0\0" + bytes(24)


def target(data: bytes) -> None:
    given, link = Input(data), _Link()
    while given:
        match given.number() % 8:
            case 0:
                link.client_sends(given.take(given.number() % 32))
            case 1:
                link.deliver()
            case 2:
                link.pass_time(given.number(2) / 50)
            case 3:  # what is on its way, changed in one place
                if link.to_agent:
                    at, where = given.number() % len(link.to_agent), given.number()
                    datagram = bytearray(link.to_agent[at])
                    datagram[where % len(datagram)] ^= given.number()
                    link.agent_takes([bytes(datagram)])
            case 4:  # a stranger's datagrams
                link.agent_takes([given.text()], b"stranger")
            case 5:  # the same again
                if link.to_agent:
                    link.agent_takes(link.to_agent[given.number() % len(link.to_agent) :])
            case 6:  # whatever it likes, sealed with good keys
                (peer,) = link.client._peers.values()
                keypair = peer._keypairs.current
                if keypair is not None and keypair.may_send(link.now):
                    link.agent_takes(keypair.seal([given.text()]))
            case _:
                link.agent.forget_keys(link.client.public_key)
        link.check()
