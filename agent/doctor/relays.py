"""How clients will reach the workspace: relays and UDP, from sockets of their own beside those of a running agent."""

from __future__ import annotations

from collections.abc import Sequence

from agent.api.proto import tailnet_pb2 as pb
from agent.doctor.finding import Finding, Subject, failed, ok, skipped, warning
from agent.tailnet.derp_dial import DialOptions
from agent.tailnet.derp_map import from_message
from agent.tailnet.netinfo import NetInfo, check


async def relays(subject: Subject, derp_map: pb.DERPMap, headers: Sequence[tuple[str, str]]) -> list[Finding]:
    """Latency to the relays, and whether UDP gets through."""
    known = from_message(derp_map).rewritten(subject.url)
    if not any(region.relays for region in known.regions.values()):
        advice = "add one to the server's DERP map"
        return [failed("DERP", "the server names no relay", advice), skipped("UDP", "there is nobody to ask")]
    found = await check(known, subject.clock, DialOptions(headers=tuple(headers)))
    return [relay(found, {number: region.name or region.code for number, region in known.regions.items()}), udp(found)]


def relay(found: NetInfo, names: dict[int, str]) -> Finding:
    """The nearest relay."""
    if not found.latencies:
        advice = "a firewall or proxy is in between: clients reach this workspace only through a relay or directly"
        return failed("DERP", f"no relay answers: {', '.join(names.values())}", advice)
    nearest = min(found.latencies.values())
    return ok("DERP", f"nearest: {names.get(found.home, found.home)}, {nearest * 1e3:.0f} ms")


def udp(found: NetInfo) -> Finding:
    """Whether direct connections have a chance."""
    if found.udp is None:
        return skipped("UDP", "the server names no STUN server; direct connections are found without NAT only")
    if not found.udp:
        advice = "let UDP out if you can: connections stay on relays without it, which is slower"
        return warning("UDP", "no STUN server answers", advice)
    if found.mapping_varies:
        advice = "nothing is broken; direct connections are found to clients without such a NAT only"
        return warning("UDP", "works, but the NAT has another address for each destination", advice)
    return ok("UDP", f"works, seen as {found.seen4 or found.seen6}")
