"""Our TCP and the kernel's over bad roads; run by test_tcp_roads.py and the bench inside a network namespace.

    python -m tests.e2e.road_host SCENARIO
    python -m tests.e2e.road_host --figures

Here the kernel has one end of the tunnel, through wireguard-go's TUN device, and our node has the other: engine,
WireGuard and TCP as in the agent. Between them is a `Road`. A scenario that fails raises. For the figures the kernel
gets the other end, too, in another namespace behind another wireguard-go.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path

from agent.clock import SystemClock
from agent.protocol import keys, stun
from agent.protocol.ip import Datagram, Endpoint, mapped
from agent.protocol.tcp import (
    Connection,
    ConnectionRefusedTcpError,
    ConnectionResetTcpError,
    Limits,
)
from agent.protocol.wireguard import Device
from agent.tailnet.engine import Engine
from agent.tailnet.paths import Answered
from agent.tailnet.streams import TailnetStream
from agent.tailnet.udp import UdpSocket
from tests.e2e.road import LOOPBACK, Kind, Road
from tests.e2e.wireguard_host import set_address, set_peer, shell, start_wireguard_go
from tests.protocol.wireguard.kit import AGENT_ADDRESS, AGENT_PRIVATE, CLIENT_ADDRESS, CLIENT_PRIVATE

OURS, THEIRS = AGENT_ADDRESS, CLIENT_ADDRESS
INTERFACE, FAR_INTERFACE = "wg0", "wg1"
THEIR_PORT, FAR_PORT = 51820, 51821
FAR = "far"
REGION = 1
PORT = 7000
PATIENCE = 45.0
_LOCALHOST = mapped(socket.inet_aton(LOOPBACK))
_CLONE_NEWNET = 0x40000000
_BLOCK = 1 << 16


class Node:
    """Our end: an engine whose relay is the road."""

    def __init__(self, road: Callable[[], int], peer: bytes, limits: Limits | None) -> None:
        self._road = road
        self.accepted: asyncio.Queue[TailnetStream] = asyncio.Queue()
        self.largest = 0
        """Bytes of the largest datagram that was sent."""
        self.refuse = False
        self.engine = Engine(
            node_private=AGENT_PRIVATE,
            disco_private=keys.generate(),
            addresses=(OURS,),
            outside=self,
            inside=self,
            clock=SystemClock(),
            direct=False,
            limits=limits,
        )
        self._peer = peer
        self.open_socket()

    def open_socket(self) -> None:
        self.socket = UdpSocket(socket.AF_INET, 0, self._receive, host=LOOPBACK)

    def move(self) -> None:
        """Another UDP port, as after a change of network."""
        self.socket.close()
        self.open_socket()

    def _receive(self, endpoint: Endpoint, datagrams: list[bytes]) -> None:
        self.engine.receive_relay(REGION, [(self._peer, datagram) for datagram in datagrams])

    def send_udp(self, endpoint: Endpoint, datagrams: Sequence[bytes]) -> None:
        raise NotImplementedError("there are only relayed paths here")

    def send_relay(self, region: int, peer: bytes, datagrams: Sequence[bytes]) -> None:
        self.largest = max(self.largest, *map(len, datagrams))
        self.socket.send((_LOCALHOST, self._road()), datagrams)

    def incoming(self, connection: Connection) -> None:
        if self.refuse:
            self.engine.refuse(connection)
        else:
            self.engine.accept(connection)

    def connected(self, stream: TailnetStream) -> None:
        self.accepted.put_nowait(stream)

    def udp(self, datagram: Datagram) -> None: ...
    def stun(self, response: stun.Response) -> None: ...
    def answered(self, answered: Answered) -> None: ...


@dataclass
class World:
    """Road, wireguard-go and our node."""

    road: Road
    node: Node
    stack: ExitStack
    wireguard: subprocess.Popen[bytes]
    ours: Device
    listener: socket.socket
    streams: list[TailnetStream] = field(default_factory=list)

    async def dial(self) -> tuple[TailnetStream, socket.socket]:
        """A connection that we begin."""
        stream = self.node.engine.dial(THEIRS, PORT)
        await stream.connected()
        kernel, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        self.stack.callback(kernel.close)
        return stream, kernel

    async def accept(self, receive_buffer: int | None = None) -> tuple[TailnetStream, socket.socket]:
        """A connection that the kernel begins."""
        kernel = self.stack.enter_context(kernel_socket(receive_buffer))
        await asyncio.get_running_loop().sock_connect(kernel, (str(IPv6Address(OURS)), PORT))
        return await self.node.accepted.get(), kernel

    def restart_wireguard(self) -> None:
        """The kernel's end forgets every session; its TCP connections stay."""
        self.wireguard.terminate()
        self.wireguard.wait(timeout=10)
        self.wireguard = start_their_end(self.stack, self.ours.public_key, self.road.right)


def kernel_socket(receive_buffer: int | None = None) -> socket.socket:
    """A TCP socket of the kernel that does not block."""
    kernel = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    kernel.setblocking(False)
    kernel.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    if receive_buffer is not None:
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    return kernel


def listening(address: bytes) -> socket.socket:
    """A listener of the kernel."""
    listener = kernel_socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((str(IPv6Address(address)), PORT))
    listener.listen()
    return listener


def start_their_end(stack: ExitStack, ours: bytes, road: int) -> subprocess.Popen[bytes]:
    process = start_wireguard_go(stack, INTERFACE, CLIENT_PRIVATE, THEIR_PORT)
    set_peer(INTERFACE, ours, OURS, road)
    set_address(INTERFACE, THEIRS, OURS)
    return process


@asynccontextmanager
async def world(out: Kind, back: Kind | None = None, limits: Limits | None = None) -> AsyncIterator[World]:
    """`out` is the way of what we send; the other is the same if not given."""
    ours, theirs = Device(AGENT_PRIVATE), Device(CLIENT_PRIVATE)
    with ExitStack() as stack:
        road = Road(out, back or out)
        stack.callback(road.close)
        wireguard = await asyncio.to_thread(start_their_end, stack, ours.public_key, road.right)
        listener = stack.enter_context(listening(THEIRS))
        node = Node(lambda: road.left, theirs.public_key, limits)
        road.lead_to(node.socket.port, THEIR_PORT)
        node.engine.set_peer(theirs.public_key, keys.generate(), [THEIRS], REGION, [])
        timer = asyncio.create_task(node.engine.keep_time())
        try:
            yield World(road, node, stack, wireguard, ours, listener)
        finally:
            node.engine.close()
            node.socket.close()
            timer.cancel()
            await asyncio.gather(timer, return_exceptions=True)


# ---- what is sent and checked


def _content(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def _kernel_sends(kernel: socket.socket, data: bytes, *, end: bool = True) -> None:
    await asyncio.get_running_loop().sock_sendall(kernel, data)
    if end:
        kernel.shutdown(socket.SHUT_WR)


async def _kernel_reads(kernel: socket.socket) -> str:
    digest = hashlib.sha256()
    while block := await asyncio.get_running_loop().sock_recv(kernel, _BLOCK):
        digest.update(block)
    return digest.hexdigest()


async def _we_send(stream: TailnetStream, data: bytes) -> None:
    await stream.write(data)
    stream.shutdown_write()


async def _we_read(stream: TailnetStream) -> str:
    digest = hashlib.sha256()
    while block := await stream.read():
        digest.update(block)
    return digest.hexdigest()


async def exchange(
    stream: TailnetStream, kernel: socket.socket, size: int, meanwhile: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Both ends send at the same time, and both get every byte; `meanwhile` happens while they do."""
    ours, theirs = _content(size, 1), _content(size, 2)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        group.create_task(_we_send(stream, ours))
        group.create_task(_kernel_sends(kernel, theirs))
        got = group.create_task(_we_read(stream))
        kernel_got = group.create_task(_kernel_reads(kernel))
        if meanwhile is not None:
            group.create_task(_must(meanwhile()))
    expect(got.result() == hashlib.sha256(theirs).hexdigest(), "we got what the kernel sent")
    expect(kernel_got.result() == hashlib.sha256(ours).hexdigest(), "the kernel got what we sent")


async def _must(happening: Awaitable[None]) -> None:
    await happening


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


# ---- scenarios: bad roads


async def _bulk(kind: Kind, size: int) -> None:
    """Once begun by us and once by the kernel."""
    async with world(kind) as here:
        await exchange(*await here.dial(), size)
        await exchange(*await here.accept(), size)


async def clean() -> None:
    await _bulk(Kind(), 16 << 20)


async def loss_1() -> None:
    await _bulk(Kind(loss=0.01, delay=0.005), 2 << 20)


async def loss_5() -> None:
    await _bulk(Kind(loss=0.05, delay=0.005), 1 << 20)


async def reordered() -> None:
    await _bulk(Kind(delay=0.01, late=0.05, late_by=0.004), 2 << 20)


async def duplicated() -> None:
    await _bulk(Kind(delay=0.005, duplicate=0.1), 2 << 20)


async def delay_100() -> None:
    await _bulk(Kind(delay=0.05), 4 << 20)


async def delay_300() -> None:
    await _bulk(Kind(delay=0.15), 2 << 20)


async def narrow() -> None:
    """2 MB/s with a short queue."""
    await _bulk(Kind(delay=0.01, rate=2e6, queue=32 * 1024), 4 << 20)


async def all_at_once() -> None:
    await _bulk(Kind(delay=0.02, loss=0.01, duplicate=0.02, late=0.02, rate=2e6), 1 << 20)


# ---- scenarios: windows, ends and losses of single segments


async def tiny_kernel_window() -> None:
    """The kernel has room for about two segments."""
    async with world(Kind(delay=0.001)) as here:
        await exchange(*await here.accept(receive_buffer=2304), 256 << 10)


async def tiny_own_window() -> None:
    """We have room for less than one."""
    async with world(Kind(delay=0.001), limits=Limits(receive_buffer=1000)) as here:
        await exchange(*await here.accept(), 128 << 10)


async def kernel_does_not_read() -> None:
    """For longer than any probe takes: nothing is lost, and it goes on."""
    data = _content(6 << 20, 3)
    async with world(Kind(delay=0.005)) as here, asyncio.timeout(PATIENCE):
        stream, kernel = await here.accept(receive_buffer=65536)
        sending = asyncio.create_task(_we_send(stream, data))
        await asyncio.sleep(8)
        expect(not sending.done(), "the kernel's window holds us back")
        expect(await _kernel_reads(kernel) == hashlib.sha256(data).hexdigest(), "the kernel got everything")
        await sending


async def we_do_not_read() -> None:
    """The same the other way round."""
    data = _content(4 << 20, 4)
    async with world(Kind(delay=0.005), limits=Limits(receive_buffer=65536)) as here, asyncio.timeout(PATIENCE):
        stream, kernel = await here.accept()
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sending = asyncio.create_task(_kernel_sends(kernel, data))
        await asyncio.sleep(8)
        expect(not sending.done(), "our window holds the kernel back")
        expect(await _we_read(stream) == hashlib.sha256(data).hexdigest(), "we got everything")
        await sending


async def half_closed() -> None:
    """An end that has sent everything still gets everything."""
    data = _content(1 << 20, 5)
    async with world(Kind(delay=0.005, loss=0.01)) as here, asyncio.timeout(PATIENCE):
        stream, kernel = await here.dial()
        kernel.shutdown(socket.SHUT_WR)
        expect(await stream.read() == b"", "we see that the kernel has nothing to send")
        sending = asyncio.create_task(_we_send(stream, data))
        expect(await _kernel_reads(kernel) == hashlib.sha256(data).hexdigest(), "the kernel got everything")
        await sending
        stream, kernel = await here.accept()
        stream.shutdown_write()
        expect(await _kernel_reads(kernel) == hashlib.sha256(b"").hexdigest(), "the kernel sees our end")
        await _kernel_sends(kernel, data)
        expect(await _we_read(stream) == hashlib.sha256(data).hexdigest(), "we got everything")


async def reset_and_refused() -> None:
    """RST and what it means, in each direction."""
    async with world(Kind(delay=0.005)) as here, asyncio.timeout(PATIENCE):
        stream, kernel = await here.dial()
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        kernel.close()
        await _raises(stream.read(), ConnectionResetTcpError)
        stream, kernel = await here.accept()
        await stream.write(b"last words")
        await asyncio.sleep(0.1)
        stream.abort()
        await _raises(_kernel_reads(kernel), ConnectionResetError)
        here.listener.close()
        await _raises(here.node.engine.dial(THEIRS, PORT).connected(), ConnectionRefusedTcpError)
        here.node.refuse = True
        await _raises(here.accept(), ConnectionRefusedError)


async def _raises(what: Awaitable[object], error: type[Exception]) -> None:
    try:
        await what
    except error:
        return
    raise AssertionError(f"no {error.__name__}")


async def syn_lost() -> None:
    """A SYN or its answer that does not arrive is sent again, whoever began."""
    async with world(Kind(delay=0.005)) as here:
        (await here.dial())[0].close()  # a session of WireGuard, so that the next datagram is the SYN
        for lane in (here.road.out, here.road.back):
            lane.drop_next = 1
            await exchange(*await here.dial(), 1000)
            lane.drop_next = 1
            await exchange(*await here.accept(), 1000)


async def small_segments() -> None:
    """The kernel asks for small segments and gets them; what it would send larger than 1280 it does not."""
    async with world(Kind()) as here:
        shell("ip", "-6", "route", "replace", f"{IPv6Address(OURS)}/128", "dev", INTERFACE, "advmss", "600")
        await exchange(*await here.dial(), 256 << 10)
        # 32 of WireGuard and 15 of its padding around IPv6, TCP and 600 bytes of options and payload.
        expect(here.node.largest <= 600 + 60 + 32 + 15, f"no segment is larger than asked: {here.node.largest}")
        shell("ip", "link", "set", INTERFACE, "mtu", "1420")
        shell("ip", "-6", "route", "replace", f"{IPv6Address(OURS)}/128", "dev", INTERFACE, "advmss", "1360")
        await exchange(*await here.accept(), 256 << 10)
        expect(here.node.largest <= 1280 + 32, f"nor than an inner packet may be: {here.node.largest}")


async def dead_road() -> None:
    """Nothing passes for 20 s in the middle of it."""
    async with world(Kind(delay=0.01, rate=1e6)) as here:

        async def cut() -> None:
            await asyncio.sleep(1)
            here.road.set_open(False)
            await asyncio.sleep(20)
            here.road.set_open(True)

        await exchange(*await here.dial(), 2 << 20, cut)


# ---- scenarios: WireGuard under load


async def roaming() -> None:
    """Both ends get new addresses, several times, while they send."""
    async with world(Kind(delay=0.005, rate=1e6)) as here:

        async def move() -> None:
            for number in range(1, 4):
                await asyncio.sleep(0.4)
                here.node.move()
                here.road.move_left()
                await asyncio.sleep(0.4)
                await asyncio.to_thread(shell, "wg", "set", INTERFACE, "listen-port", str(THEIR_PORT + number))

        await exchange(*await here.dial(), 3 << 20, move)


async def rekey_under_load() -> None:
    """Our keys come to their age again and again, while both send: no byte is late by more than a handshake."""
    async with world(Kind(delay=0.005, rate=2e6)) as here:
        peer = here.node.engine.device.peer(Device(CLIENT_PRIVATE).public_key)
        assert peer is not None
        sessions = set()

        async def age() -> None:
            for _ in range(3):
                current = peer._keypairs.current
                assert current is not None
                sessions.add(current.index)
                current.created -= 121
                peer._attempted_at -= 6
                await asyncio.sleep(0.5)

        await exchange(*await here.dial(), 4 << 20, age)
        expect(len(sessions) == 3, f"three sessions, one after the other: {len(sessions)}")


async def restart_under_load() -> None:
    """wireguard-go begins a new life in the middle of it; then we forget the session."""
    async with world(Kind(delay=0.005, rate=1e6)) as here:

        async def restart() -> None:
            await asyncio.sleep(0.5)
            await asyncio.to_thread(here.restart_wireguard)
            await asyncio.sleep(0.5)
            here.node.engine.device.forget_keys(Device(CLIENT_PRIVATE).public_key)

        await exchange(*await here.dial(), 3 << 20, restart)


SCENARIOS: dict[str, Callable[[], Awaitable[None]]] = {
    scenario.__name__: scenario
    for scenario in (
        clean, loss_1, loss_5, reordered, duplicated, delay_100, delay_300, narrow, all_at_once,
        tiny_kernel_window, tiny_own_window, kernel_does_not_read, we_do_not_read, half_closed, reset_and_refused,
        syn_lost, small_segments, dead_road, roaming, rekey_under_load, restart_under_load,
    )
}  # fmt: skip


def prepare() -> None:
    """Makes the namespace usable, with the buffers that our side has."""
    shell("mount", "-t", "tmpfs", "tmpfs", "/run")
    os.mkdir("/run/wireguard")
    shell("ip", "link", "set", "lo", "up")
    big_buffers()


def big_buffers() -> None:
    """The kernel's ends may use as much as ours do."""
    for name in ("tcp_rmem", "tcp_wmem"):
        Path(f"/proc/sys/net/ipv4/{name}").write_text("4096 131072 8388608")


def main() -> None:
    prepare()
    asyncio.run(_must(SCENARIOS[sys.argv[1]]()))


if __name__ == "__main__":
    main()
