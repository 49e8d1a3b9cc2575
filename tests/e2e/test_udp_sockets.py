"""UDP sockets and UDP flows on loopback."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import cast

import pytest

from agent.api.tailnet import TAILSCALE_PREFIX
from agent.protocol import ip
from agent.protocol.ip import Datagram, Endpoint
from agent.tailnet.forward import IDLE, IDLE_DNS, UdpForwarder
from agent.tailnet.udp import DRAIN, MAX_DATAGRAM, UdpSocket, segment_size
from agent.testing import ManualClock
from tests.tailnet.nodes import pair


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
async def test_batches_arrive_whole_and_in_order(family: socket.AddressFamily, host: str) -> None:
    got: list[tuple[Endpoint, bytes]] = []
    a = UdpSocket(family, 0, lambda end, batch: None, host)
    b = UdpSocket(family, 0, lambda end, batch: got.extend((end, data) for data in batch), host)
    address = ip.mapped(socket.inet_pton(family, host))
    sent = [os.urandom(size) for size in [1300] * 40 + [700] + [1300] * 3 + [1, 5, 3]]
    a.send((address, b.port), sent)
    async with asyncio.timeout(5):
        while len(got) < len(sent):
            await asyncio.sleep(0.01)
    assert got == [((address, a.port), data) for data in sent]
    a.send((address, 9), [b"nobody listens"])  # the ICMP error that follows must not end the socket
    await asyncio.sleep(0.01)
    a.send((address, b.port), [b"still there"])
    async with asyncio.timeout(5):
        while got[-1][1] != b"still there":
            await asyncio.sleep(0.01)
    for sock in (a, b):
        sock.close()
        sock.close()


async def test_a_run_is_split_where_its_datagrams_end() -> None:
    """Whether or not the kernel hands runs over as one: no batch is without bound, no datagram torn or joined."""
    batches: list[list[bytes]] = []
    a = UdpSocket(socket.AF_INET, 0, lambda end, batch: None, "127.0.0.1")
    b = UdpSocket(socket.AF_INET, 0, lambda end, batch: batches.append(batch), "127.0.0.1")
    plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    plain.bind(("127.0.0.1", 0))
    plain.setblocking(False)
    sent = [os.urandom(size) for size in ([1312] * 49 + [96]) * 8]
    localhost = ip.mapped(socket.inet_aton("127.0.0.1"))
    a.send((localhost, b.port), sent)
    a.send((localhost, plain.getsockname()[1]), sent[:50])
    assert [plain.recv(65535) for _ in range(50)] == sent[:50], "who does not ask for runs gets single datagrams"
    async with asyncio.timeout(5):
        while sum(map(len, batches)) < len(sent):
            await asyncio.sleep(0.01)
    assert [datagram for batch in batches for datagram in batch] == sent
    assert max(map(len, batches)) < 2 * DRAIN + 1
    for sock in (a, b, plain):
        sock.close()


def test_the_size_of_a_run_is_read_and_nothing_else() -> None:
    assert segment_size([(17, 104, struct.pack("=i", 1312))]) == 1312
    assert segment_size([(17, 104, struct.pack("=i", 0))]) == 1, "no size that would never come to an end"
    for other in ([], [(0, 104, struct.pack("=i", 7))], [(17, 3, struct.pack("=i", 7))], [(17, 104, b"\x01")]):
        assert segment_size(other) == MAX_DATAGRAM


@pytest.mark.spec("tailnet", 53, 60)
async def test_flows_are_kept_apart_and_expire(clock: ManualClock) -> None:
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.DatagramTransport, transport)

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.transport.sendto(data.upper(), addr)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    async with pair(clock) as (a, b):
        forwarder = UdpForwarder(b.engine, clock)
        b.udp = forwarder.take  # type: ignore[method-assign]
        third = TAILSCALE_PREFIX + bytes(9) + b"\x09"
        b.engine.set_peer(a.key, a.engine.paths.public, [a.address, third], 999, [])
        a.engine.addresses = (a.address, third)
        for source in (a.address, third):
            text = b"from " + source[-1:]
            a.engine.send_packet(ip.build_udp(Datagram(source, 40_000, b.address, port, text)))
        async with asyncio.timeout(5):
            while len(a.datagrams) < 2:
                await asyncio.sleep(0.01)
        assert sorted((one.destination, one.payload) for one in a.datagrams) == sorted(
            (source, (b"from " + source[-1:]).upper()) for source in (a.address, third)
        )
        assert {(one.source, one.source_port, one.destination_port) for one in a.datagrams} == {
            (b.address, port, 40_000)
        }
        forwarder.take(Datagram(a.address, 1, b.address, 53, b"?"))
        await asyncio.sleep(0.05)
        assert len(forwarder._flows) == 3
        await clock.advance(IDLE_DNS + 5)
        assert len(forwarder._flows) == 2
        await clock.advance(IDLE)
        assert forwarder._flows == {}
        await forwarder.aclose()
    transport.close()
