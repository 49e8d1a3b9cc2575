"""TCP: a stack with live connections whose peer knows their numbers and breaks every rule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from agent.protocol.tcp import Connection, ConnectionClosedTcpError, Incoming, Limits, TcpStack
from agent.protocol.tcp.segment import build
from fuzz_parts import Input

OWN, PEER = b"\xfd" + bytes(15), b"\xfd" + bytes(14) + b"\1"
PORT = 80
BUFFER = 20_000
LIMITS = Limits(
    receive_buffer=BUFFER, send_buffer=BUFFER, pending=8, connections=16, time_waits=8, control=64, patience=5.0
)
MASK = 0xFFFFFFFF
SYN, ACK = 2, 16


def _flow(port: int) -> bytes:
    return PEER + OWN + (5000 + port).to_bytes(2, "big") + PORT.to_bytes(2, "big")


class _Peer:
    """What the other end knows of each of four connections."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._count = 0
        self.stack = TcpStack([OWN], self._random, limits=LIMITS)
        self.connections: dict[int, Connection] = {}
        self.next_from_stack = dict.fromkeys(range(4), 0)
        self.next_to_stack = dict.fromkeys(range(4), 1000)

    def _random(self, size: int) -> bytes:
        self._count += 1
        return self._count.to_bytes(size, "big")

    def take(self, packets: list[bytes]) -> None:
        for event in self.stack.receive(packets, self.now):
            if isinstance(event, Incoming):
                self.connections[event.connection.remote_port - 5000] = event.connection
                event.connection.accept()
        self.drain()

    def drain(self) -> None:
        for _ in range(1000):
            packets = self.stack.packets_to_send(self.now)
            if not packets:
                return
            for packet in packets:
                assert 60 <= len(packet) <= 1280
                port = int.from_bytes(packet[42:44], "big") - 5000
                if port in self.next_from_stack:
                    flags = packet[53]
                    length = len(packet) - 40 - (packet[52] >> 4) * 4 + bool(flags & SYN) + (flags & 1)
                    self.next_from_stack[port] = (int.from_bytes(packet[44:48], "big") + length) & MASK
        raise AssertionError("the stack never stops sending")

    def establish(self, port: int) -> None:
        seq = self.next_to_stack[port]
        options = bytes((2, 4, 4, 220, 3, 3, 7, 4, 2, 1, 1, 1))
        self.take([build(_flow(port), seq, 0, SYN, 60000, options, b"")])
        self.next_to_stack[port] = seq + 1 & MASK
        self.take([build(_flow(port), seq + 1 & MASK, self.next_from_stack[port], ACK, 60000, b"", b"")])

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        for _ in range(500):
            due = self.stack.next_timeout()
            if due is None or due > until:
                self.now = until
                return
            self.now = max(self.now, due)
            self.stack.handle_timeout(self.now)
            self.drain()
        raise AssertionError("timers fire without end")

    def check(self) -> None:
        stack = self.stack
        assert len(stack.connections) <= LIMITS.connections
        assert stack.pending <= LIMITS.pending
        assert len(stack._shared.time_waits) <= LIMITS.time_waits
        assert len(stack._timers) <= 256 + 5 * (LIMITS.connections + 1)
        for connection in stack.connections:
            assert connection.readable <= BUFFER
            assert connection.unsent <= BUFFER + 1
            receiver, sender = connection._receiver, connection._sender
            assert sum(run.end - run.start for run in receiver._ranges) <= BUFFER
            assert 0 <= sender._pipe <= max(sender.nxt - sender.una, 0)


def seeds() -> Iterator[bytes]:
    yield bytes((0, 0, 2, 0, 200, 1, 0, 0, 0, 0, 0, 0, 24, 255, 255, 0, 5)) + b"hello"
    yield bytes((0, 0, 3, 0, 100, 1, 0, 0, 0, 0, 0, 0, 17, 255, 255, 0, 0, 5, 0, 4, 6, 0))
    for flags in (1, 2, 4, 16, 17, 18, 20, 24, 41, 63):
        yield bytes((0, 0, 2, 0, 100, 1, 0, 0, 0, 0, 0, flags, 9, 1, 0, 0, 4, 200, 1))
    yield bytes((0, 0, 2, 0, 250, 1, 0, 0, 0, 200, 0, 16, 0, 0, 12, 1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 9, 0, 4, 255, 1))


def target(data: bytes) -> None:
    given, peer = Input(data), _Peer()
    while given:
        what = given.number() % 9
        port = given.number() % 4
        connection = peer.connections.get(port)
        match what:
            case 0:
                peer.establish(port)
            case 1:
                _segment(given, peer, port)
            case 2 if connection is not None and not connection.ended:
                with suppress(ConnectionClosedTcpError):
                    connection.write(bytes(given.number() * 8))
            case 3 if connection is not None:
                connection.read(given.number() * 100)
            case 4:
                peer.pass_time(given.number(2) / 200)
            case 5 if connection is not None:
                connection.close()
            case 6:
                peer.take([given.text()])
            case 7 if connection is not None:
                connection.abort()
            case 8 if connection is not None:
                connection.shutdown_write()
        peer.drain()
        peer.check()
    for connection in peer.stack.connections:
        connection.close()
    peer.drain()
    for _ in range(60):
        peer.pass_time(10)
    assert peer.stack.connections == [], "a closed connection ends, whatever the peer does"


def _segment(given: Input, peer: _Peer, port: int) -> None:
    seq = peer.next_to_stack[port] + given.near(3) & MASK
    ack = peer.next_from_stack[port] + given.near(3) & MASK
    flags, window = given.number(), given.number(2)
    options = given.take(given.number() % 11 * 4)
    options += bytes(-len(options) % 4)
    payload = given.take(given.number() * 5)
    if seq == peer.next_to_stack[port]:
        peer.next_to_stack[port] = seq + len(payload) & MASK
    peer.take([build(_flow(port), seq, ack, flags & 63, window, options, payload)])
