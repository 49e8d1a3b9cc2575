"""Our TCP against a foreign one: gVisor's netstack in Go, as the peers of an agent have it (tailnet.md §8.3).

The peer is tests/peers/tcp; it is built here, and needs the `go` tool. Packets go over a socket pair; the link's faults
are the test's.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent.protocol.tcp import (
    Closed,
    Connected,
    Connection,
    ConnectionRefusedTcpError,
    ConnectionResetTcpError,
    Event,
    Incoming,
    PeerClosed,
    State,
    TcpStack,
)

PEER = Path(__file__).parents[1] / "peers" / "tcp"
US = bytes.fromhex("fd7a115ca1e000000000000000000001")
THEM = bytes.fromhex("fd7a115ca1e000000000000000000002")
DATA = random.Random(1).randbytes(1 << 20)
BATCH = 64


@pytest.fixture(scope="session")
def program() -> Path:
    """The peer's program."""
    go = shutil.which("go")
    if go is None:
        if os.environ.get("CI") == "true":
            pytest.fail("the foreign peer of the TCP needs Go: .ci/run must install it")
        pytest.skip("the foreign peer of the TCP needs Go (the `go` tool)")
    built = subprocess.run(
        [go, "build", "-o", "bin/tcp-peer", "."], cwd=PEER, capture_output=True, text=True, timeout=300
    )
    assert built.returncode == 0, f"the peer needs Go 1.23 or newer and its modules: {built.stderr}"
    return PEER / "bin" / "tcp-peer"


class Link:
    """A driver of the stack over a socket pair, with faults in both directions."""

    def __init__(self, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._random = random.Random(5)
        self._timer: asyncio.TimerHandle | None = None
        self._news = asyncio.Event()
        self.stack = TcpStack([US])
        self.events: list[Event] = []
        self.incoming: Callable[[Connection], None] = Connection.refuse
        self.loss = 0.0
        self.late = 0.0
        self.delay = 0.0
        self.largest = 0
        self._loop.add_reader(sock, self._receive)

    def close(self) -> None:
        self._loop.remove_reader(self._sock)
        if self._timer is not None:
            self._timer.cancel()

    def _receive(self) -> None:
        packets: list[bytes | memoryview] = []
        for _ in range(BATCH):
            try:
                packet = self._sock.recv(2048)
            except BlockingIOError:
                break
            if not packet:
                self._loop.remove_reader(self._sock)
                break
            self.largest = max(self.largest, len(packet))
            delay = self._fate()
            if delay is None:
                continue
            if delay:
                self._loop.call_later(delay, self._take_one, packet)
            else:
                packets.append(packet)
        self._take(packets)

    def _fate(self) -> float | None:
        if self._random.random() < self.loss:
            return None
        return self.delay + (self._random.random() * 0.005 if self._random.random() < self.late else 0.0)

    def _take(self, packets: list[bytes | memoryview]) -> None:
        self._note(self.stack.receive(packets, self._loop.time()))
        self.pump()

    def _take_one(self, packet: bytes) -> None:
        self._take([packet])

    def _note(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Incoming):
                self.incoming(event.connection)
        self.events += events
        if events:
            self._news.set()

    def _send(self, packet: bytes) -> None:
        if self._sock.fileno() < 0:
            # A late packet at the end of the test.
            return
        try:
            self._sock.send(packet)
        except (BlockingIOError, BrokenPipeError):
            # A full queue drops packets, as everywhere.
            return

    def pump(self) -> None:
        """Send what there is to send, and see to the timer."""
        while packets := self.stack.packets_to_send(self._loop.time(), BATCH):
            for packet in packets:
                assert len(packet) <= 1280
                delay = self._fate()
                if delay:
                    self._loop.call_later(delay, self._send, packet)
                elif delay is not None:
                    self._send(packet)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.stack.next_timeout()
        if due is not None:
            self._timer = self._loop.call_at(due, self._timeout)

    def _timeout(self) -> None:
        self._note(self.stack.handle_timeout(self._loop.time()))
        self.pump()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(50):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def connect(self, port: int) -> Connection:
        connection = self.stack.connect(US, THEM, port, self._loop.time())
        self.pump()
        await self.until(lambda: Connected(connection) in self.events or connection.state is State.CLOSED)
        return connection

    async def send(self, connection: Connection, data: bytes) -> None:
        view = memoryview(data)
        while view and connection.state is not State.CLOSED:
            view = view[connection.write(view) :]
            self.pump()
            if view:
                await self.until(lambda: connection.writable > 0 or connection.state is State.CLOSED)

    async def receive(self, connection: Connection) -> bytes:
        """Everything until the peer's end."""
        data = bytearray()
        while True:
            data += connection.read(1 << 20)
            self.pump()
            if connection.at_eof:
                return bytes(data)
            await self.until(lambda: connection.readable > 0 or connection.at_eof)

    def error(self, connection: Connection) -> Exception | None:
        return next(each.error for each in self.events if isinstance(each, Closed) and each.connection is connection)


@pytest.fixture
async def link(program: Path) -> AsyncIterator[Link]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    process = await asyncio.create_subprocess_exec(program, str(theirs.fileno()), pass_fds=[theirs.fileno()])
    theirs.close()
    link = Link(ours)
    yield link
    link.close()
    ours.close()
    assert await asyncio.wait_for(process.wait(), 10) == 0


def pattern(count: int) -> bytes:
    """What the peer's function of this name makes."""
    return b"".join(number.to_bytes(4, "big") * 16384 for number in range(count // 65536 + 1))[:count]


ROADS = pytest.mark.parametrize(
    ("loss", "late", "delay"),
    [(0.0, 0.0, 0.0), (0.01, 0.0, 0.0), (0.0, 0.2, 0.002), (0.01, 0.1, 0.02), (0.05, 0.0, 0.005)],
    ids=["clean", "1 % loss", "reorder", "all", "5 % loss"],
)


def take_road(link: Link, loss: float, late: float, delay: float) -> int:
    """Set the faults, say how much is worth sending."""
    link.loss, link.late, link.delay = loss, late, delay
    return 1 << 19 if loss or late else 4 << 20


@ROADS
@pytest.mark.spec("tailnet", 56)
async def test_bulk_to_the_peer(link: Link, loss: float, late: float, delay: float) -> None:
    size = take_road(link, loss, late, delay)
    data = (DATA * 4)[:size]
    connection = await link.connect(9)
    await link.send(connection, data)
    connection.shutdown_write()
    assert (await link.receive(connection)).decode().strip() == hashlib.sha256(data).hexdigest()
    assert connection.counters.most_retransmissions < 5
    await link.until(lambda: connection.state is State.CLOSED)
    assert link.error(connection) is None


@ROADS
@pytest.mark.spec("tailnet", 56)
async def test_bulk_from_the_peer(link: Link, loss: float, late: float, delay: float) -> None:
    size = take_road(link, loss, late, delay)
    connection = await link.connect(19)
    await link.send(connection, b"%d\n" % size)
    assert await link.receive(connection) == pattern(size)
    assert link.largest <= 1280
    connection.shutdown_write()
    link.pump()
    await link.until(lambda: connection.state is State.CLOSED)
    assert link.error(connection) is None


@ROADS
async def test_both_ways_and_half_closed(link: Link, loss: float, late: float, delay: float) -> None:
    data = DATA[: take_road(link, loss, late, delay) // 4]
    connection = await link.connect(7)
    reading = asyncio.create_task(link.receive(connection))
    await link.send(connection, data)
    connection.shutdown_write()
    link.pump()
    assert await reading == data
    assert PeerClosed(connection) in link.events
    await link.until(lambda: connection.state is State.CLOSED)
    assert link.error(connection) is None
    assert link.stack.connections == []


@ROADS
async def test_the_peer_dials(link: Link, loss: float, late: float, delay: float) -> None:
    size = take_road(link, loss, late, delay) // 4
    accepted: list[Connection] = []

    def incoming(connection: Connection) -> None:
        accepted.append(connection)
        connection.accept()

    link.incoming = incoming
    control = await link.connect(30)
    await link.send(control, b"fd7a:115c:a1e0::1 8080 %d\n" % size)
    await link.until(lambda: bool(accepted) and Connected(accepted[0]) in link.events)
    (served,) = accepted
    data = await link.receive(served)
    assert data == pattern(size)
    await link.send(served, data)
    served.shutdown_write()
    answer = (await link.receive(control)).decode().split()
    assert answer == [str(size), hashlib.sha256(data).hexdigest(), "<nil>"]


@pytest.mark.spec("tailnet", 54)
async def test_refusals_both_ways(link: Link) -> None:
    refused = await link.connect(1)
    assert isinstance(link.error(refused), ConnectionRefusedTcpError)
    control = await link.connect(30)
    await link.send(control, b"fd7a:115c:a1e0::1 8080 5\n")
    assert "connection was refused" in (await link.receive(control)).decode()


async def test_the_peer_resets(link: Link) -> None:
    connection = await link.connect(21)
    await link.send(connection, b"never read")
    await link.until(lambda: connection.state is State.CLOSED)
    assert isinstance(link.error(connection), ConnectionResetTcpError)


async def test_our_reset(link: Link) -> None:
    accepted: list[Connection] = []

    def incoming(connection: Connection) -> None:
        accepted.append(connection)
        connection.accept()

    link.incoming = incoming
    control = await link.connect(30)
    await link.send(control, b"fd7a:115c:a1e0::1 8080 5\n")
    await link.until(lambda: any(isinstance(each, Connected) and each.connection in accepted for each in link.events))
    accepted[0].abort()
    link.pump()
    assert "connection reset by peer" in (await link.receive(control)).decode()


@pytest.mark.spec("tailnet", 58)
async def test_a_peer_that_does_not_read_for_a_while(link: Link) -> None:
    connection = await link.connect(23)
    data = DATA * 8
    sending = asyncio.create_task(link.send(connection, b"3000\n" + data))
    await asyncio.sleep(2.5)
    assert not sending.done(), "both buffers are full"
    assert connection.state is State.ESTABLISHED
    await sending
    connection.shutdown_write()
    assert (await link.receive(connection)).decode().strip() == hashlib.sha256(data).hexdigest()


@pytest.mark.spec("tailnet", 58)
async def test_we_do_not_read_for_a_while(link: Link) -> None:
    size = 12 << 20
    connection = await link.connect(19)
    await link.send(connection, b"%d\n" % size)
    await asyncio.sleep(2.5)
    assert connection.readable > 500_000, "the window is full"
    assert await link.receive(connection) == pattern(size)


async def test_eight_at_once(link: Link) -> None:
    async def one(number: int) -> None:
        connection = await link.connect(19)
        size = 300_000 + number
        await link.send(connection, b"%d\n" % size)
        assert await link.receive(connection) == pattern(size)

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(one(number))
