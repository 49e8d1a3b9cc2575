"""Connections and datagrams to ports of the workspace without a service of the node's own (tailnet.md §8.4, §8.5)."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable
from typing import Final

from agent.clock import Clock
from agent.protocol.ip import MAX_UDP_PAYLOAD, Datagram, build_udp
from agent.protocol.tcp import Connection, TcpError
from agent.tailnet.engine import Engine
from agent.tailnet.streams import TailnetStream

LOOPBACK: Final = ("127.0.0.1", "::1")
DIAL_TIMEOUT: Final = 10.0
CHUNK: Final = 262_144
MANY: Final = 64
"""Connections to the workspace beyond which each holds no more than `SMALL_CHUNK` bytes that its peer has not taken:
otherwise it could be 4 MiB for each of thousands."""
SMALL_CHUNK: Final = 65_536
MAX_CONNECTIONS: Final = 4096
"""TCP connections that are forwarded at one time; fewer where this process may open few files. One peer gets half."""
MAX_FLOWS: Final = 1024
"""UDP flows at one time, in the same way. One peer gets a quarter."""
MAX_EARLY: Final = 16
"""Datagrams of a flow that wait for its local socket."""
IDLE, IDLE_DNS = 120.0, 30.0
"""Seconds without traffic after which a UDP flow is forgotten; for port 53 the shorter one."""


async def dial_local(port: int, limit: int = CHUNK) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to a listener in the workspace, on IPv4 or else IPv6. Raises `OSError`, `TimeoutError`.

    `limit`: half of the bytes that may wait to be read.
    """
    first: OSError | None = None
    for host in LOOPBACK:
        try:
            async with asyncio.timeout(DIAL_TIMEOUT):
                return await asyncio.open_connection(host, port, limit=limit)
        except OSError as error:
            first = first or error
    assert first is not None
    raise first


def share_of_files(part: int) -> int:
    """One `part`-th of the files that this process may have open: whatever peers do, the others are left."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft // part


class Quota:
    """How many of something all peers have together, and each by itself."""

    def __init__(self, most: int, of_peer: int) -> None:
        self._most, self._of_peer = most, max(of_peer, 1)
        self._taken: Counter[bytes] = Counter()

    def take(self, peer: bytes) -> bool:
        """Count one more, or say that it is one too many."""
        if self._taken[peer] >= self._of_peer or self.taken >= self._most:
            return False
        self._taken[peer] += 1
        return True

    @property
    def taken(self) -> int:
        """By all peers."""
        return self._taken.total()

    def give_back(self, peer: bytes) -> None:
        self._taken[peer] -= 1
        if not self._taken[peer]:
            del self._taken[peer]


class TcpForwarder:
    """Connections to ports of the workspace. Each is an open file here, so that there are bounds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        most = min(MAX_CONNECTIONS, share_of_files(2))
        self._quota = Quota(most, most // 2)
        self.refused = 0
        """Connections that were one too many."""

    async def forward(self, connection: Connection) -> None:
        """Dial the port in the workspace, and only then answer the peer; copy both ways until both sides are done."""
        peer = connection.remote_address
        if not self._quota.take(peer):
            self.refused += 1
            self._engine.refuse(connection)
            return
        try:
            await self._forward(connection)
        finally:
            self._quota.give_back(peer)

    async def _forward(self, connection: Connection) -> None:
        crowded = self._quota.taken > MANY
        try:
            reader, writer = await dial_local(connection.local_port, SMALL_CHUNK if crowded else CHUNK)
        except OSError:  # TimeoutError is one
            self._engine.refuse(connection)
            return
        stream = self._engine.accept(connection)
        await join(stream, reader, writer, crowded=crowded)


async def join(
    stream: TailnetStream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, crowded: bool = False
) -> None:
    """Copy both ways until both sides are done, each at the other's pace; close both. An end is passed on as an end,
    a break as a break. `crowded`: with little memory, and one `SMALL_CHUNK` in a round trip."""
    whole = False
    try:
        await stream.connected()
        async with asyncio.TaskGroup() as group:
            group.create_task(_inward(stream, writer))
            group.create_task(_outward(reader, stream, crowded=crowded))
        whole = True
    except* (OSError, TcpError):
        pass  # told to the other side below
    finally:
        if not whole:
            # One side broke off, or this was cancelled: nobody must take that for a proper end.
            stream.abort()
            reset(writer)
        stream.close()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def reset(writer: asyncio.StreamWriter) -> None:
    """Cut a local connection off so that the program at its other end notices: by RST, not by a FIN."""
    if (sock := writer.get_extra_info("socket")) is not None:
        with contextlib.suppress(OSError):  # it is closed already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _inward(stream: TailnetStream, writer: asyncio.StreamWriter) -> None:
    while data := await stream.read(CHUNK):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):  # it has closed both directions already
        writer.write_eof()


async def _outward(reader: asyncio.StreamReader, stream: TailnetStream, *, crowded: bool) -> None:
    while data := await reader.read(SMALL_CHUNK if crowded else CHUNK):
        await stream.write(data)
        if crowded:
            await stream.drained()
    stream.shutdown_write()


class _Flow(asyncio.DatagramProtocol):
    def __init__(self, answer: Callable[[bytes], None], now: float) -> None:
        self._answer = answer
        self.transport: asyncio.DatagramTransport | None = None
        self.early: list[bytes] = []
        self.last = now
        self.idle = IDLE

    def datagram_received(self, data: bytes, addr: object) -> None:
        self._answer(data)


class UdpForwarder:
    """Flows of UDP datagrams, each with a local socket of its own, so that answers find their way back."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._flows: dict[tuple[bytes, int, bytes, int], _Flow] = {}
        most = min(MAX_FLOWS, share_of_files(4))
        self._quota = Quota(most, most // 4)
        self._opening: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self.dropped = 0

    def take(self, datagram: Datagram) -> None:
        """A datagram of a peer for a port in the workspace."""
        key = datagram.source, datagram.source_port, datagram.destination, datagram.destination_port
        now = self._clock.now()
        flow = self._flows.get(key)
        if flow is None:
            if not self._quota.take(datagram.source):
                self.dropped += 1
                return
            flow = self._flows[key] = _Flow(lambda data: self._answer(key, data), now)
            flow.idle = IDLE_DNS if datagram.destination_port == 53 else IDLE
            task = asyncio.create_task(self._open(key, flow), name="udp flow")
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
            if self._sweeper is None:
                self._sweeper = asyncio.create_task(self._sweep(), name="udp flow sweeper")
        flow.last = now
        if flow.transport is not None:
            flow.transport.sendto(datagram.payload)
        elif len(flow.early) < MAX_EARLY:
            flow.early.append(datagram.payload)
        else:
            self.dropped += 1

    def _answer(self, key: tuple[bytes, int, bytes, int], data: bytes) -> None:
        peer, peer_port, own, own_port = key
        if len(data) > MAX_UDP_PAYLOAD:
            self.dropped += 1
            return
        self._flows[key].last = self._clock.now()
        self._engine.send_packet(build_udp(Datagram(own, own_port, peer, peer_port, data)))

    async def _open(self, key: tuple[bytes, int, bytes, int], flow: _Flow) -> None:
        loop = asyncio.get_running_loop()
        _, source_port, _, port = key
        for local in (source_port, 0):
            try:
                flow.transport, _ = await loop.create_datagram_endpoint(
                    lambda: flow, local_addr=("127.0.0.1", local), remote_addr=("127.0.0.1", port)
                )
                break
            except OSError:
                continue  # another process has that port: any will do
        if flow.transport is None:
            self.dropped += len(flow.early)
            self._forget(key)
            return
        for payload in flow.early:
            flow.transport.sendto(payload)
        flow.early.clear()

    async def _sweep(self) -> None:
        while True:
            await self._clock.sleep(5.0)
            now = self._clock.now()
            for key, flow in list(self._flows.items()):
                if flow.transport is not None and now - flow.last >= flow.idle:
                    flow.transport.close()
                    self._forget(key)

    def _forget(self, key: tuple[bytes, int, bytes, int]) -> None:
        del self._flows[key]
        self._quota.give_back(key[0])

    async def aclose(self) -> None:
        """Close every flow."""
        tasks = [*self._opening, *([self._sweeper] if self._sweeper is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for key, flow in list(self._flows.items()):
            if flow.transport is not None:
                flow.transport.close()
            self._forget(key)
