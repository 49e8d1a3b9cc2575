"""What a network check found out, in the form that clients of agents know (terminal-ssh-http.md §4.3), and a check of
its own for programs that have no node.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from agent.clock import Clock, deadline
from agent.protocol import stun
from agent.protocol.ip import Endpoint, endpoint_text, unmapped
from agent.tailnet.derp_dial import DialOptions
from agent.tailnet.derp_map import DerpMap
from agent.tailnet.home import HomeChooser
from agent.tailnet.netcheck import CHECK_LIMIT, LatencyProbe, by_region, stun_endpoints
from agent.tailnet.udp import UdpSocket

ASK_AGAIN: Final = 0.4
"""Seconds without an answer after which a STUN server is asked once more: UDP may lose a datagram."""


@dataclass(frozen=True, slots=True)
class NetInfo:
    """One check. What could not be found out is None."""

    home: int
    """The nearest relay region; 0: none answered."""
    latencies: Mapping[str, float]
    """Seconds by `<region>-v4` or `<region>-v6`."""
    ipv6_socket: bool
    """Whether the system gives out sockets for IPv6."""
    udp4: bool | None = None
    """Whether a STUN server answered; None where none was asked."""
    udp6: bool | None = None
    mapping_varies: bool | None = None
    """Whether one socket has several addresses to the outside, by whom it talks to: hardly anybody finds it then."""
    seen4: str = ""
    """How the outside sees this machine, `ip:port`."""
    seen6: str = ""

    @property
    def udp(self) -> bool | None:
        """Whether UDP gets out and back, over any family."""
        return None if self.udp4 is None and self.udp6 is None else bool(self.udp4 or self.udp6)

    def to_json(self) -> dict[str, Any]:
        """With the names that Go clients decode; port mapping protocols are not asked."""
        value: dict[str, Any] = {
            "MappingVariesByDestIP": self.mapping_varies,
            "HairPinning": None,
            "WorkingIPv6": self.udp6,
            "OSHasIPv6": self.ipv6_socket,
            "WorkingUDP": self.udp,
            "WorkingICMPv4": None,
            "UPnP": None,
            "PMP": None,
            "PCP": None,
            "PreferredDERP": self.home,
        }
        optional = {
            "DERPLatency": dict(self.latencies),
            "DERPLatencyV4": self._by_region("v4"),
            "DERPLatencyV6": self._by_region("v6"),
            "UDP": self.udp,
            "IPv4": self.udp4,
            "IPv6": self.udp6,
            "GlobalV4": self.seen4,
            "GlobalV6": self.seen6,
        }
        return value | {name: found for name, found in optional.items() if found}

    def _by_region(self, family: str) -> dict[str, float]:
        split = ((key.partition("-"), seconds) for key, seconds in self.latencies.items())
        return {region: seconds for (region, _, of), seconds in split if of == family}


@dataclass(slots=True)
class StunRound:
    """STUN requests of one socket for each family, and the answers. Without input or output."""

    asked: dict[bytes, Endpoint] = field(default_factory=dict)
    answers: dict[Endpoint, Endpoint] = field(default_factory=dict)
    """How each server that answered sees the socket."""

    def ask(self, server: Endpoint) -> bytes:
        """A request for that server."""
        txid = os.urandom(stun.TXID_SIZE)
        self.asked[txid] = server
        return stun.request(txid)

    def take(self, response: stun.Response) -> bool:
        """Whether it is the answer to a request of this round, the first one."""
        server = self.asked.pop(response.txid, None)
        if server is None:
            return False
        self.answers[server] = response.endpoint
        return True

    @property
    def servers(self) -> set[Endpoint]:
        """Everybody who was asked."""
        return {*self.asked.values(), *self.answers}


def summarise(home: int, latencies: Mapping[str, float], round_: StunRound, *, ipv6_socket: bool) -> NetInfo:
    """What a check amounts to."""
    servers = {family: [end for end in round_.servers if _is_v4(end) == (family == 4)] for family in (4, 6)}
    seen = {
        family: sorted({round_.answers[end] for end in ends if end in round_.answers})
        for family, ends in servers.items()
    }
    works = {family: bool(seen[family]) if servers[family] else None for family in servers}
    witnesses = [end for end in servers[4] if end in round_.answers]
    return NetInfo(
        home=home,
        latencies=dict(latencies),
        ipv6_socket=ipv6_socket,
        udp4=works[4],
        udp6=works[6],
        mapping_varies=len(seen[4]) > 1 if len(witnesses) > 1 else None,
        seen4=endpoint_text(seen[4][0]) if seen[4] else "",
        seen6=endpoint_text(seen[6][0]) if seen[6] else "",
    )


async def check(derp_map: DerpMap, clock: Clock, options: DialOptions) -> NetInfo:
    """Ask all relays and STUN servers of a map, from sockets of its own; some seconds at most."""
    round_ = StunRound()
    news = asyncio.Event()

    def receive(endpoint: Endpoint, datagrams: list[bytes]) -> None:
        for datagram in datagrams:
            response = stun.parse_response(datagram)
            if response is not None and round_.take(response):
                news.set()

    sockets: dict[socket.AddressFamily, UdpSocket] = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            sockets[family] = UdpSocket(family, 0, receive)
        except OSError:
            continue  # the report says that there is none
    measuring = asyncio.create_task(LatencyProbe(clock, options).measure(derp_map), name="latencies of relays")
    try:
        await _ask(await _servers(derp_map), sockets, round_, news, clock)
        latencies = await measuring
    finally:
        measuring.cancel()
        await asyncio.gather(measuring, return_exceptions=True)
        for sock in sockets.values():
            sock.close()
    measured = by_region(latencies)
    home = HomeChooser(random.choice).home(derp_map, measured, 0, clock.now()) if measured else 0
    return summarise(home, latencies, round_, ipv6_socket=socket.AF_INET6 in sockets)


async def _servers(derp_map: DerpMap) -> list[tuple[socket.AddressFamily, Endpoint]]:
    nodes = [node for region in derp_map.regions.values() for node in region.nodes if node.stun is not None]
    found = await asyncio.gather(*map(stun_endpoints, nodes))
    return [server for servers in found for server in servers]


async def _ask(
    servers: Collection[tuple[socket.AddressFamily, Endpoint]],
    sockets: Mapping[socket.AddressFamily, UdpSocket],
    round_: StunRound,
    news: asyncio.Event,
    clock: Clock,
) -> None:
    """Until everybody has answered, or nobody else will."""
    end = clock.now() + CHECK_LIMIT
    while clock.now() < end:
        open_ = [(sockets[family], end_) for family, end_ in servers if family in sockets]
        open_ = [(sock, server) for sock, server in open_ if server not in round_.answers]
        if not open_:
            return
        for sock, server in open_:
            sock.send(server, (round_.ask(server),))
        try:
            async with deadline(clock, ASK_AGAIN):
                while any(server not in round_.answers for _, server in open_):
                    news.clear()
                    await news.wait()
        except TimeoutError:
            continue


def _is_v4(endpoint: Endpoint) -> bool:
    return len(unmapped(endpoint[0])) == 4
