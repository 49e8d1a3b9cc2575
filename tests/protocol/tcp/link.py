"""Two stacks joined by a link on a manual time line: it may drop, double, reorder, corrupt, delay, and be narrow."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.protocol.tcp import Closed, Connected, Connection, Event, Incoming, Limits, PeerClosed, State, TcpStack

A = bytes.fromhex("fd7a115ca1e043338444555555555555")
B = bytes.fromhex("fd7a115ca1e04c2a9d6e1f2e3d4c5b6a")
PORT = 8080

Fate = Callable[[bytes], list[tuple[float, bytes]]]
"""What becomes of a packet: copies, each with the seconds that it takes."""


def steady(delay: float = 0.0) -> Fate:
    """Everything arrives."""
    return lambda packet: [(delay, packet)]


@dataclass
class Rough:
    """A link with faults at random. `rate`: bytes per second, with a queue of `queue` packets in front."""

    delay: float = 0.05
    loss: float = 0.0
    double: float = 0.0
    corrupt: float = 0.0
    late: float = 0.0
    lateness: float = 0.02
    rate: float | None = None
    queue: int = 1000
    seed: int = 1
    clock: Callable[[], float] = lambda: 0.0
    dropped: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._departures: deque[float] = deque()

    def __call__(self, packet: bytes) -> list[tuple[float, bytes]]:
        chance = self._random.random
        if chance() < self.loss:
            self.dropped += 1
            return []
        delay = self.delay
        if self.rate is not None:
            now = self.clock()
            while self._departures and self._departures[0] <= now:
                self._departures.popleft()
            if len(self._departures) >= self.queue:
                self.dropped += 1
                return []
            departs = max(now, self._departures[-1] if self._departures else now) + len(packet) / self.rate
            self._departures.append(departs)
            delay += departs - now
        if chance() < self.late:
            delay += chance() * self.lateness
        if chance() < self.corrupt:
            at = self._random.randrange(len(packet))
            packet = packet[:at] + bytes([packet[at] ^ 1 << self._random.randrange(8)]) + packet[at + 1 :]
        copies = [(delay, packet)]
        if chance() < self.double:
            copies.append((delay + chance() * self.lateness, packet))
        return copies


@dataclass
class End:
    """One side: what it sends, what it has received, what has happened to it."""

    stack: TcpStack
    connection: Connection | None = None
    to_send: memoryview = field(default_factory=lambda: memoryview(b""))
    shut_when_sent: bool = True
    reading: bool = True
    accepting: bool = True
    received: bytearray = field(default_factory=bytearray)
    events: list[Event] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    keep: bool = False
    largest: int = 0

    def act(self, events: list[Event]) -> None:
        """What an application does."""
        self.events += events
        for event in events:
            if isinstance(event, Incoming):
                self.connection = event.connection
                if self.accepting:
                    event.connection.accept()
        connection = self.connection
        if connection is None:
            return
        if self.reading:
            while data := connection.read(1 << 20):
                self.received += data
        if connection.state in (State.PENDING, State.CLOSED):
            return
        while self.to_send:
            taken = connection.write(self.to_send)
            if not taken:
                break
            self.to_send = self.to_send[taken:]
        if not self.to_send and self.shut_when_sent:
            connection.shutdown_write()

    @property
    def closed(self) -> Closed | None:
        """How the connection ended."""
        return next((event for event in self.events if isinstance(event, Closed)), None)

    def saw(self, kind: type[Event]) -> bool:
        return any(isinstance(event, kind) for event in self.events)


class Network:
    """Time, the packets under way, and both ends."""

    def __init__(
        self,
        forth: Fate | None = None,
        back: Fate | None = None,
        limits: Limits | None = None,
        limits_b: Limits | None = None,
        mtu_b: int = 1280,
        seed: int = 0,
    ) -> None:
        self.now = 1000.0
        source = random.Random(seed)
        self.a = End(TcpStack([A], source.randbytes, limits=limits))
        self.b = End(TcpStack([B], source.randbytes, mtu_b, limits_b or limits))
        self.forth = forth or steady()
        self.back = back or steady()
        for fate in (self.forth, self.back):
            if isinstance(fate, Rough):
                fate.clock = lambda: self.now
        self._under_way: list[tuple[float, int, End, bytes]] = []
        self._serial = 0
        self.packets = 0

    def connect(self, data: bytes = b"", reply: bytes = b"", shut: bool = True) -> Connection:
        self.a.to_send, self.b.to_send = memoryview(data), memoryview(reply)
        self.a.shut_when_sent = self.b.shut_when_sent = shut
        self.a.connection = self.a.stack.connect(A, B, PORT, self.now)
        self.a.act([])
        return self.a.connection

    def flush(self) -> None:
        """Put on the link what the stacks want to send."""
        for end, fate, other in ((self.a, self.forth, self.b), (self.b, self.back, self.a)):
            while packets := end.stack.packets_to_send(self.now, 64):
                for packet in packets:
                    self.packets += 1
                    end.largest = max(end.largest, len(packet))
                    if end.keep:
                        end.sent.append(packet)
                    for delay, copy in fate(packet):
                        self._serial += 1
                        heapq.heappush(self._under_way, (self.now + delay, self._serial, other, copy))

    def inject(self, end: End, packet: bytes) -> None:
        """A packet out of nowhere."""
        end.act(end.stack.receive([packet], self.now))
        self.flush()

    def step(self, until: float) -> bool:
        """Go on to the next thing that happens; False if nothing does before `until`."""
        self.flush()
        times = [self.a.stack.next_timeout(), self.b.stack.next_timeout()]
        if self._under_way:
            times.append(self._under_way[0][0])
        due = min((each for each in times if each is not None), default=None)
        if due is None or due > until:
            self.now = max(self.now, until)
            return False
        self.now = max(self.now, due)
        batches: dict[int, tuple[End, list[bytes]]] = {}
        while self._under_way and self._under_way[0][0] <= self.now:
            _, _, end, packet = heapq.heappop(self._under_way)
            batches.setdefault(id(end), (end, []))[1].append(packet)
        for end, packets in batches.values():
            end.act(end.stack.receive(packets, self.now))
        for end in (self.a, self.b):
            timeout = end.stack.next_timeout()
            if timeout is not None and timeout <= self.now:
                end.act(end.stack.handle_timeout(self.now))
        return True

    def run(self, seconds: float = 600.0, steps: int = 400_000) -> None:
        """Until nothing happens any more, or for so long."""
        until = self.now + seconds
        for _ in range(steps):
            if not self.step(until):
                return
            if self.over:
                return
        raise AssertionError(f"still busy after {steps} steps, {seconds - (until - self.now):.3f} s")

    def establish(self, shut: bool = False) -> tuple[Connection, Connection]:
        """A connection with nothing to send."""
        self.connect(shut=shut)
        self.run(5.0)
        assert self.a.connection is not None
        assert self.b.connection is not None
        assert self.a.saw(Connected)
        return self.a.connection, self.b.connection

    @property
    def over(self) -> bool:
        """Whether both ends are closed."""
        return all(end.connection is not None and end.connection.state is State.CLOSED for end in (self.a, self.b))

    @property
    def complete(self) -> bool:
        """Whether both saw the other's end."""
        return self.a.saw(PeerClosed) and self.b.saw(PeerClosed)
