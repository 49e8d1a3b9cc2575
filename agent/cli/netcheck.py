"""`workspace-agent netcheck`."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import click

from agent.cli.command import json_option, run
from agent.cli.errors import CliError
from agent.cli.output import print_fields, print_json, print_table
from agent.cli.reaching import waiting

if TYPE_CHECKING:
    from agent.tailnet.client import ConnectionInfo
    from agent.tailnet.netinfo import NetInfo


@click.command()
@json_option
def netcheck(as_json: bool) -> None:
    """Tell how this machine would reach agents: relays by latency, UDP, and what stands in the way.

    Ends with exit code 1 when no relay can be reached.
    """
    sys.exit(0 if run(_netcheck(as_json)) else 1)


async def _netcheck(as_json: bool) -> bool:
    from yarl import URL

    from agent.cli import session
    from agent.clock import SystemClock
    from agent.tailnet.client import ServerError, ServerSession
    from agent.tailnet.derp_dial import DialOptions
    from agent.tailnet.netinfo import check
    from agent.workspace_api.interfaces import InterfacesError
    from agent.workspace_api.interfaces import netcheck as whole

    current, clock = session.load(), SystemClock()
    server = ServerSession(URL(current.url), current.token, clock)
    try:
        with waiting("Checking the network"):
            offered = await server.connection_info()
            found = await check(offered.derp_map, clock, DialOptions())
            report = await asyncio.to_thread(whole, found.to_json())
    except ServerError as error:
        raise CliError(str(error)) from error
    except InterfacesError as error:
        raise CliError(f"the network interfaces cannot be listed: {error}") from error
    finally:
        await server.aclose()
    regions = rows(offered, found)
    warnings = advice(offered, found) + [warning["message"] for warning in report["interfaces"]["warnings"] or ()]
    if as_json:
        print_json({**report, "regions": regions, "advice": warnings})
    else:
        _show(found, regions, warnings)
    return bool(found.latencies)


def _show(found: NetInfo, regions: list[dict[str, Any]], warnings: list[str]) -> None:
    print_table(
        ["RELAY", "REGION", "IPV4", "IPV6", ""],
        [
            [
                region["name"],
                str(region["id"]),
                _milliseconds(region["latency_v4_ms"]),
                _milliseconds(region["latency_v6_ms"]),
                "nearest" if region["preferred"] else "",
            ]
            for region in regions
        ],
    )
    click.echo()
    mapping = {None: "unknown", False: "the same for everybody", True: "another one for each destination"}
    print_fields(
        [
            ("UDP over IPv4", _works(found.udp4, found.seen4)),
            ("UDP over IPv6", _works(found.udp6, found.seen6) if found.ipv6_socket else "this system has no IPv6"),
            ("address outside", mapping[found.mapping_varies]),
        ]
    )
    for warning in warnings:
        click.echo(f"\n{click.style('warning:', fg='yellow')} {warning}")


def _works(works: bool | None, seen: str) -> str:
    return {None: "unknown: there is nobody to ask", False: "no answer", True: f"works, seen as {seen}"}[works]


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def rows(offered: ConnectionInfo, found: NetInfo) -> list[dict[str, Any]]:
    """The relay regions, nearest first; those that did not answer come last."""
    made = []
    for number, region in offered.derp_map.regions.items():
        if not region.relays:
            continue
        v4, v6 = (found.latencies.get(f"{number}-{family}") for family in ("v4", "v6"))
        made.append(
            {
                "id": number,
                "name": region.name or region.code,
                "latency_v4_ms": None if v4 is None else round(v4 * 1000, 3),
                "latency_v6_ms": None if v6 is None else round(v6 * 1000, 3),
                "preferred": number == found.home,
            }
        )
    far = float("inf")
    return sorted(made, key=lambda row: (min(row["latency_v4_ms"] or far, row["latency_v6_ms"] or far), row["id"]))


def advice(offered: ConnectionInfo, found: NetInfo) -> list[str]:
    """What stands in the way of good connections, in words."""
    told = []
    silent = [
        f"{region.name or region.code} ({region.relays[0].host_name}:{region.relays[0].port})"
        for number, region in offered.derp_map.regions.items()
        if region.relays and not {f"{number}-v4", f"{number}-v6"} & found.latencies.keys()
    ]
    if silent and not found.latencies:
        told.append(
            f"no relay answers: {', '.join(silent)}. No agent can be reached; is a proxy or firewall in between?"
        )
    elif silent:
        told.append(f"these relays do not answer: {', '.join(silent)}")
    if offered.disable_direct:
        told.append("the server forbids direct connections: everything goes through relays")
    elif found.udp is None:
        told.append("the server names no STUN server: direct connections are found only where no NAT is in between")
    elif not found.udp:
        told.append("no STUN server answers over UDP: connections stay on relays; a firewall may block UDP")
    elif found.mapping_varies:
        told.append(
            "the NAT here has another address for each destination: connections are direct only to agents without such"
            " a NAT"
        )
    return told
