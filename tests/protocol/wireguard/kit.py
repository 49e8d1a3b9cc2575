"""Two devices, and a link between them that a test can make as bad as it likes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from agent.protocol.wireguard import Device, Peer, Received

AGENT_PRIVATE = bytes.fromhex("1011111111111111111111111111111111111111111111111111111111111151")
CLIENT_PRIVATE = bytes.fromhex("2022222222222222222222222222222222222222222222222222222222222262")
AGENT_EPHEMERAL = bytes.fromhex("7077777777777777777777777777777777777777777777777777777777777777")
CLIENT_EPHEMERAL = bytes.fromhex("6066666666666666666666666666666666666666666666666666666666666666")
AGENT_ADDRESS = bytes.fromhex("fd7a115ca1e04c2a9d6e1f2e3d4c5b6a")
CLIENT_ADDRESS = bytes.fromhex("fd7a115ca1e043338444555555555555")
WALL_NS = 1_750_000_000_123_456_789


def scripted(script: dict[int, Iterable[bytes]]) -> Callable[[int], bytes]:
    """A source of random bytes that gives what the script says for each size, and zeros for jitter."""
    iterators = {size: iter(values) for size, values in script.items()}
    return lambda size: bytes(2) if size == 2 else next(iterators[size])


def counting() -> Callable[[int], bytes]:
    """A source of different bytes each time that is the same in each run."""
    calls = 0

    def random(size: int) -> bytes:
        nonlocal calls
        calls += 1
        return struct.pack("<Q", calls * 0x9E3779B97F4A7C15 % 2**64).ljust(size, b"\x5a")[:size]

    return random


def packet(source: bytes, destination: bytes, content: bytes, next_header: int = 59) -> bytes:
    return struct.pack(">IHBB", 6 << 28, len(content), next_header, 64) + source + destination + content


def to_agent(content: bytes) -> bytes:
    return packet(CLIENT_ADDRESS, AGENT_ADDRESS, content)


def to_client(content: bytes) -> bytes:
    return packet(AGENT_ADDRESS, CLIENT_ADDRESS, content)


def outgoing(output: Sequence[tuple[Peer, list[bytes]]]) -> list[bytes]:
    return [datagram for _, datagrams in output for datagram in datagrams]


def contents(received: Received) -> list[bytes]:
    return [bytes(inner[40:]) for _, packets in received.packets for inner in packets]


@dataclass
class Side:
    """One device with its peer, and what it received so far."""

    device: Device
    peer: Peer
    got: list[bytes] = field(default_factory=list)
    established: int = 0


class Pair:
    """A client and an agent on one time line. What one sends is in its outbox until the test delivers it."""

    def __init__(self, keepalive: float = 0) -> None:
        self.now = 1000.0
        client, agent = Device(CLIENT_PRIVATE, counting()), Device(AGENT_PRIVATE, counting())
        self.agent = Side(agent, agent.add_peer(client.public_key, [CLIENT_ADDRESS]))
        self.client = Side(client, client.add_peer(agent.public_key, [AGENT_ADDRESS], keepalive))
        self.to_agent: list[bytes] = []
        self.to_client: list[bytes] = []

    @property
    def wall_ns(self) -> int:
        return WALL_NS + int(self.now * 1e9)

    def client_sends(self, *texts: bytes) -> None:
        self.to_agent += outgoing(self.client.device.send([to_agent(text) for text in texts], self.now, self.wall_ns))

    def agent_sends(self, *texts: bytes) -> None:
        self.to_client += outgoing(self.agent.device.send([to_client(text) for text in texts], self.now, self.wall_ns))

    def agent_receives(self, datagrams: Sequence[bytes], source: bytes = b"client") -> Received:
        received = self.agent.device.receive(datagrams, self.now, self.wall_ns, source)
        self.to_client += outgoing(received.output) + received.replies
        self.agent.got += contents(received)
        self.agent.established += len(received.established)
        return received

    def client_receives(self, datagrams: Sequence[bytes], source: bytes = b"agent") -> Received:
        received = self.client.device.receive(datagrams, self.now, self.wall_ns, source)
        self.to_agent += outgoing(received.output) + received.replies
        self.client.got += contents(received)
        self.client.established += len(received.established)
        return received

    def exchange(self) -> None:
        """Delivers until neither side has anything to say."""
        for _ in range(100):
            if not self.to_agent and not self.to_client:
                return
            datagrams, self.to_agent = self.to_agent, []
            if datagrams:
                self.agent_receives(datagrams)
            datagrams, self.to_client = self.to_client, []
            if datagrams:
                self.client_receives(datagrams)
        raise AssertionError("the two devices never fall silent")

    def fire(self) -> None:
        """Lets both do what is due now."""
        self.to_agent += outgoing(self.client.device.handle_timeout(self.now, self.wall_ns))
        self.to_client += outgoing(self.agent.device.handle_timeout(self.now, self.wall_ns))

    def connect(self) -> None:
        """A session of which the client is the initiator."""
        self.client_sends(b"hello")
        self.exchange()
        assert self.agent.got == [b"hello"]
        self.agent.got.clear()

    def advance(self, seconds: float, exchange: bool = True) -> None:
        """Time passes, and timers fire when they are due."""
        until = self.now + seconds
        while True:
            due = min(
                until if deadline is None else deadline
                for deadline in (self.client.device.next_timeout(), self.agent.device.next_timeout())
            )
            if due >= until:
                break
            self.now = max(self.now, due)
            self.fire()
            if exchange:
                self.exchange()
        self.now = until
        self.fire()
        if exchange:
            self.exchange()
