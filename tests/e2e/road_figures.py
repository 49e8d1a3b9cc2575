"""Goodput over bad roads of our TCP beside the kernel's own; run by the bench inside a network namespace.

    python -m tests.e2e.road_figures [SECONDS]

Prints one JSON object. For the baseline the kernel has both ends, the other one in a namespace behind a wireguard-go
of its own, over a road of the same kind. Both ends of the kernel use CUBIC, as we do.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import IPv6Address
from typing import Final

from agent.protocol.wireguard import Device
from agent.tailnet.streams import TailnetStream
from tests.e2e import road_host
from tests.e2e.road import Kind, Road
from tests.e2e.wireguard_host import set_address, set_peer, shell, start_wireguard_go
from tests.protocol.wireguard.kit import AGENT_PRIVATE, CLIENT_PRIVATE

FAR: Final = "far"
FAR_INTERFACE: Final = "wg1"
FAR_PORT: Final = 51821
KINDS: Final = {
    "10 ms, 1 % lost": Kind(delay=0.005, loss=0.01),
    "10 ms, 5 % lost": Kind(delay=0.005, loss=0.05),
    "20 ms, 3 % late": Kind(delay=0.01, late=0.03, late_by=0.005),
    "100 ms, 50 Mbit/s": Kind(delay=0.05, rate=50e6 / 8, queue=512 * 1024),
    "20 ms, 20 Mbit/s, short queue": Kind(delay=0.01, rate=20e6 / 8, queue=32 * 1024),
    "300 ms": Kind(delay=0.15),
}
_BLOCK: Final = bytes(1 << 18)
_CLONE_NEWNET: Final = 0x40000000


async def _rate(
    send: Callable[[], Awaitable[object]], receive: Callable[[], Awaitable[bytes]], seconds: float
) -> float:
    """Mbit/s that arrive."""
    loop = asyncio.get_running_loop()

    async def keep_sending() -> None:
        while True:
            await send()

    sending = asyncio.create_task(keep_sending())
    received, began = 0, loop.time()
    try:
        async with asyncio.timeout(seconds):
            while block := await receive():
                received += len(block)
    except TimeoutError:
        pass
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    return received * 8e-6 / (loop.time() - began)


def _kernel(kernel: socket.socket) -> tuple[Callable[[], Awaitable[object]], Callable[[], Awaitable[bytes]]]:
    loop = asyncio.get_running_loop()
    return lambda: loop.sock_sendall(kernel, _BLOCK), lambda: loop.sock_recv(kernel, len(_BLOCK))


def _ours(stream: TailnetStream) -> tuple[Callable[[], Awaitable[object]], Callable[[], Awaitable[bytes]]]:
    return lambda: stream.write(_BLOCK), stream.read


async def ours(kind: Kind, seconds: float) -> tuple[float, float]:
    """Mbit/s to the kernel and from it."""
    async with road_host.world(kind) as here:
        stream, kernel = await here.accept()
        up = await _rate(_ours(stream)[0], _kernel(kernel)[1], seconds)
    async with road_host.world(kind) as here:
        stream, kernel = await here.accept()
        return up, await _rate(_kernel(kernel)[0], _ours(stream)[1], seconds)


async def kernels(kind: Kind, seconds: float) -> float:
    """Mbit/s from the kernel to itself."""
    with ExitStack() as stack:
        road = Road(kind, kind)
        stack.callback(road.close)
        far_key = Device(AGENT_PRIVATE).public_key
        await asyncio.to_thread(road_host.start_their_end, stack, far_key, road.right)
        await asyncio.to_thread(_start_far_end, stack, road.left)
        road.lead_to(FAR_PORT, road_host.THEIR_PORT)
        listener = stack.enter_context(road_host.listening(road_host.THEIRS))
        sender = stack.enter_context(_far_socket())
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sender, (str(IPv6Address(road_host.THEIRS)), road_host.PORT))
        receiver, _ = await loop.sock_accept(listener)
        stack.callback(receiver.close)
        return await _rate(_kernel(sender)[0], _kernel(receiver)[1], seconds)


def _start_far_end(stack: ExitStack, road: int) -> None:
    shell("ip", "netns", "add", FAR)
    stack.callback(shell, "ip", "netns", "delete", FAR)
    # Its UDP socket stays here, only its TUN device moves.
    start_wireguard_go(stack, FAR_INTERFACE, AGENT_PRIVATE, FAR_PORT)
    set_peer(FAR_INTERFACE, Device(CLIENT_PRIVATE).public_key, road_host.THEIRS, road)
    shell("ip", "link", "set", FAR_INTERFACE, "netns", FAR)
    inside = ("ip", "netns", "exec", FAR)
    shell(*inside, "sysctl", "-q", "net.ipv4.tcp_rmem=4096 131072 8388608", "net.ipv4.tcp_wmem=4096 131072 8388608")
    set_address(FAR_INTERFACE, road_host.OURS, road_host.THEIRS, *inside)


def _far_socket() -> socket.socket:
    """A socket belongs to the namespace of the thread that makes it."""

    def make() -> socket.socket:
        library = ctypes.CDLL(None, use_errno=True)
        namespace = os.open(f"/run/netns/{FAR}", os.O_RDONLY)
        try:
            if library.setns(namespace, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter the namespace {FAR}")
        finally:
            os.close(namespace)
        return road_host.kernel_socket()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(make).result()


async def figures(seconds: float, names: list[str]) -> dict[str, float]:
    """Mbit/s over each kind of road."""
    found: dict[str, float] = {}
    for name in names:
        kind = KINDS[name]
        found[f"{name}: kernel to kernel, Mbit/s"] = await kernels(kind, seconds)
        up, down = await ours(kind, seconds)
        found[f"{name}: we to kernel, Mbit/s"] = up
        found[f"{name}: kernel to us, Mbit/s"] = down
    return found


def main() -> None:
    road_host.prepare()
    names = sys.argv[2:] or list(KINDS)
    sys.stdout.write(json.dumps(asyncio.run(figures(float(sys.argv[1]), names))))


if __name__ == "__main__":
    main()
