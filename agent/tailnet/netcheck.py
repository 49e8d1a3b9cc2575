"""What a node finds out about its surroundings: latencies of relays, own endpoints (tailnet.md §5.7, §5.10, §6.5)."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final

from agent.api.tailnet import CODER_PREFIX
from agent.clock import Clock, wait_for
from agent.protocol.ip import Endpoint, mapped
from agent.proxy import proxy_for
from agent.tailnet.derp_dial import DialOptions, Tls
from agent.tailnet.derp_map import DerpMap, Node, Region

if TYPE_CHECKING:
    import aiohttp

CHECK_LIMIT: Final = 2.0
"""Seconds for a whole check."""
RESOLVE_LIMIT: Final = 2.0


class LatencyProbe:
    """Measures relay regions over HTTP, all at once."""

    def __init__(self, clock: Clock, options: DialOptions) -> None:
        self._clock = clock
        self._options = options
        self._tls = Tls(options.roots)

    async def measure(self, derp_map: DerpMap) -> dict[str, float]:
        """Seconds by `<region>-v4` or `<region>-v6`; regions that did not answer within 2 s are left out."""
        import aiohttp

        latencies: dict[str, float] = {}
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(self._note_sent)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[trace],
        ) as session:
            probes = [
                asyncio.create_task(self._probe(session, region, latencies), name=f"latency of region {region.id}")
                for region in derp_map.regions.values()
                if region.relays
            ]
            try:
                await wait_for(self._clock, asyncio.gather(*probes), CHECK_LIMIT)
            except TimeoutError:
                pass  # those that answered count
            finally:
                for probe in probes:
                    probe.cancel()
                await asyncio.gather(*probes, return_exceptions=True)
        return latencies

    async def _note_sent(self, session: object, context: SimpleNamespace, params: object) -> None:
        context.trace_request_ctx.append(self._clock.now())

    async def _probe(self, session: aiohttp.ClientSession, region: Region, latencies: dict[str, float]) -> None:
        import aiohttp
        from yarl import URL

        node = region.relays[0]
        plain = any(relay.force_http for relay in region.relays)
        url = URL.build(
            scheme="http" if plain else "https", host=node.host_name, port=node.port, path="/derp/latency-check"
        )
        sent: list[float] = []  # connecting is no part of the latency (§5.7)
        try:
            async with session.get(
                url,
                headers=list(self._options.headers),
                ssl=True if plain else await self._tls.context(node),
                proxy=proxy_for(url, self._options.environment),
                allow_redirects=False,
                trace_request_ctx=sent,
            ) as response:
                took = self._clock.now() - sent[-1]
                # With an answer without a body the connection may be gone already; then the name must do.
                transport = response.connection.transport if response.connection is not None else None
                peer = transport.get_extra_info("peername")[0] if transport is not None else node.host_name
                await response.content.read(8192)
        except (aiohttp.ClientError, OSError, ValueError):
            return  # a relay that cannot be measured is left out, as the specification says
        if response.status > 299:
            return
        family = "v6" if ":" in peer else "v4"
        latencies[f"{region.id}-{family}"] = took


def by_region(latencies: Mapping[str, float]) -> dict[int, float]:
    """The lower of both families for each region."""
    best: dict[int, float] = {}
    for key, seconds in latencies.items():
        region = int(key.partition("-")[0])
        best[region] = min(seconds, best.get(region, seconds))
    return best


async def stun_endpoints(node: Node) -> list[tuple[socket.AddressFamily, Endpoint]]:
    """Where a STUN node is reached, one address of each family; empty when its name does not resolve."""
    port = node.stun
    if port is None:
        return []
    loop = asyncio.get_running_loop()
    found: dict[socket.AddressFamily, Endpoint] = {}
    for host in (node.ipv4, node.ipv6, node.host_name):
        if not host:
            continue
        try:
            async with asyncio.timeout(RESOLVE_LIMIT):
                answers = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError):
            continue
        for family, _, _, _, address in answers:
            packed = socket.inet_pton(family, str(address[0]).partition("%")[0])
            found.setdefault(family, (mapped(packed), port))
    return list(found.items())


def local_addresses() -> list[bytes]:
    """Addresses of this machine at which peers may reach it (§6.5). Blocks for a moment: call it in a thread."""
    import psutil

    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    texts = [
        entry.address.partition("%")[0]
        for name, entries in psutil.net_if_addrs().items()
        if name in up
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    ]
    return choose_addresses(texts)


def choose_addresses(texts: Iterable[str]) -> list[bytes]:
    """The addresses worth publishing, as 16 bytes: link-local IPv4 and ULA only when there is nothing better, loopback
    only when there is nothing at all."""
    good, poor, loopback = [], [], []
    for text in texts:
        address = ipaddress.ip_address(text)
        packed = mapped(address.packed)
        if packed.startswith(CODER_PREFIX) or address.is_multicast or address.is_unspecified:
            continue
        if address.is_loopback:
            loopback.append(packed)
        elif address.version == 6 and address.is_link_local:
            continue
        elif address.is_link_local or (address.version == 6 and packed[0] & 0xFE == 0xFC):
            poor.append(packed)
        else:
            good.append(packed)
    return good or poor or loopback
