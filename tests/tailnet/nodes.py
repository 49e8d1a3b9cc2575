"""Two engines joined by a relay and a UDP network that exist only in memory."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from agent.api.tailnet import TAILSCALE_PREFIX
from agent.clock import Clock
from agent.protocol import ip, keys, stun
from agent.protocol.ip import Datagram, Endpoint
from agent.protocol.tcp import Connection, Limits
from agent.tailnet.engine import Engine
from agent.tailnet.paths import Answered
from agent.tailnet.streams import TailnetStream

REGION = 999


class Node:
    """An engine, and what a test wants to know of it. It echoes on port 7 and refuses every other port."""

    def __init__(self, net: Net, number: int, clock: Clock, limits: Limits | None = None) -> None:
        self.net = net
        self.address = TAILSCALE_PREFIX + bytes(9) + bytes((number,))
        self.endpoint: Endpoint = (ip.mapped(ipaddress.ip_address(f"192.0.2.{number}").packed), 41641)
        self.engine = Engine(
            node_private=keys.generate(),
            disco_private=keys.generate(),
            addresses=(self.address,),
            outside=self,
            inside=self,
            clock=clock,
            limits=limits,
        )
        self.key = self.engine.device.public_key
        self.engine.paths.set_own_endpoints([self.endpoint])
        self.datagrams: list[Datagram] = []
        self.answers: list[Answered] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.handler: Callable[[TailnetStream], object] = self.echo
        self.relayed = self.direct = 0

    def know(self, other: Node, *, direct: bool) -> None:
        self.engine.set_peer(
            other.key,
            other.engine.paths.public,
            [other.address],
            REGION,
            [other.endpoint] if direct else [],
        )

    # Outside
    def send_udp(self, endpoint: Endpoint, datagrams: Sequence[bytes]) -> None:
        self.direct += len(datagrams)
        self.net.carry(self, endpoint, list(datagrams))

    def send_relay(self, region: int, peer: bytes, datagrams: Sequence[bytes]) -> None:
        assert region == REGION
        self.relayed += len(datagrams)
        self.net.relay(self, peer, list(datagrams))

    # Inside
    def incoming(self, connection: Connection) -> None:
        if connection.local_port == 7:
            self.engine.accept(connection)
        else:
            self.engine.refuse(connection)

    def connected(self, stream: TailnetStream) -> None:
        task = asyncio.ensure_future(self._serve(stream))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, stream: TailnetStream) -> None:
        result = self.handler(stream)
        if asyncio.iscoroutine(result):
            await result

    async def echo(self, stream: TailnetStream) -> None:
        while data := await stream.read():
            await stream.write(data)
        stream.shutdown_write()

    def udp(self, datagram: Datagram) -> None:
        self.datagrams.append(datagram)

    def stun(self, response: stun.Response) -> None:
        raise AssertionError

    def answered(self, answered: Answered) -> None:
        self.answers.append(answered)


class Net:
    """Carries what nodes send, one loop turn later."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._late: set[asyncio.Task[None]] = set()
        self.nodes: list[Node] = []
        self.udp = True
        self.relays = True
        self.delay = 0.0
        """Seconds that the relay takes."""

    def carry(self, sender: Node, endpoint: Endpoint, datagrams: list[bytes]) -> None:
        for node in self.nodes:
            if self.udp and node.endpoint == endpoint:
                asyncio.get_running_loop().call_soon(node.engine.receive_udp, sender.endpoint, datagrams)

    def relay(self, sender: Node, peer: bytes, datagrams: list[bytes]) -> None:
        for node in self.nodes:
            if self.relays and node.key == peer:
                packets = [(sender.key, datagram) for datagram in datagrams]
                if self.delay:
                    task = asyncio.ensure_future(self._later(node, packets))
                    self._late.add(task)
                    task.add_done_callback(self._late.discard)
                else:
                    asyncio.get_running_loop().call_soon(node.engine.receive_relay, REGION, packets)

    async def _later(self, node: Node, packets: list[tuple[bytes, bytes]]) -> None:
        await self._clock.sleep(self.delay)
        node.engine.receive_relay(REGION, packets)


@asynccontextmanager
async def pair(clock: Clock, *, direct: bool = False, limits: Limits | None = None) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes that know each other; their clocks run."""
    net = Net(clock)
    a, b = (Node(net, number, clock, limits) for number in (1, 2))
    net.nodes += [a, b]
    timers = [asyncio.ensure_future(node.engine.keep_time()) for node in (a, b)]
    if not direct:
        for node in (a, b):
            node.engine.paths.set_direct(False)
    a.know(b, direct=direct)
    b.know(a, direct=direct)
    try:
        yield a, b
    finally:
        for node in (a, b):
            node.engine.close()
            for task in node.tasks:
                task.cancel()
        for timer in timers:
            timer.cancel()
        await asyncio.gather(*timers, *a.tasks, *b.tasks, return_exceptions=True)
