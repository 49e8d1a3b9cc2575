"""Our node and the foreign one (tests/peers/tailnet) in every pairing, agent and client as processes of their own.

All pairings take turns within one run, so that what else the machine does falls on each of them; of several transfers
the fastest counts. The relay is the real server.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
import psutil
from yarl import URL

from agent.api.tailnet import TAILSCALE_PREFIX
from agent.cli.output import print_table
from agent.tailnet.derp_map import NO_STUN, DerpMap, Region
from agent.tailnet.derp_map import Node as Relay
from agent.testing.deployment import Deployment
from agent.testing.nodes import OURS, Node, foreign

SCRIPTS = Path(__file__).resolve().parent
PEER = SCRIPTS.parent / "tests" / "peers" / "tailnet"
REGION = 1
MIB = 1024 * 1024
GB = 1e9
DIRECTIONS = ("down", "up")
STREAMS = (1, 8)
PERCENTILES = (0.5, 0.99)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is moved, and how often."""

    size: int
    rounds: int
    echoes: int
    echoes_under_load: int


FULL = Effort(size=64_000_000, rounds=2, echoes=1000, echoes_under_load=40)
QUICK = Effort(size=32_000_000, rounds=1, echoes=500, echoes_under_load=40)

Program = tuple[str, ...]


@dataclass(slots=True)
class Pairing:
    """Two nodes that know each other, and what was measured with them: the name of a row, and its figures."""

    name: str
    client: Node
    agent: Node
    figures: dict[str, list[float]] = field(default_factory=dict)

    @property
    def to(self) -> str:
        return self.agent.addresses[0]

    def note(self, what: str, value: float) -> None:
        self.figures.setdefault(what, []).append(value)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the best of what was noted under `what`."""

    what: str
    unit: str
    more_is_better: bool = False

    def best(self, pairing: Pairing) -> float | None:
        values = pairing.figures.get(self.what)
        return (max if self.more_is_better else min)(values) if values else None


def rows(way: str) -> list[Row]:
    """Of one way, in the order in which they are printed."""
    found = [
        Row(f"{direction}, {streams} stream{'s' if streams > 1 else ''}", "MB/s", more_is_better=True)
        for direction in DIRECTIONS
        for streams in STREAMS
    ]
    found += [
        Row(f"echo of 1 byte {load}, p{share * 100:.0f}", "ms")
        for load in ("idle", "under bulk")
        for share in PERCENTILES
    ]
    processes = ["agent", "client", *(["relay"] if way == "relayed" else [])]
    found += [Row(f"CPU of the {process}, {direction}", "s/GB") for direction in DIRECTIONS for process in processes]
    return [*found, Row("memory of the agent after", "MiB RSS"), Row("memory of the client after", "MiB RSS")]


def processor_time(pid: int) -> float:
    """Seconds that a process has used."""
    return float(sum(psutil.Process(pid).cpu_times()[:2]))


async def bulk(pairing: Pairing, direction: str, streams: int, size: int, relay: int | None) -> None:
    """One transfer, with the processor time of everybody who takes part."""
    watched = {"agent": pairing.agent.pid, "client": pairing.client.pid, **({"relay": relay} if relay else {})}
    before = {process: processor_time(pid) for process, pid in watched.items()}
    seconds = await pairing.client.bulk(pairing.to, up=direction == "up", size=size, streams=streams)
    pairing.note(f"{direction}, {streams} stream{'s' if streams > 1 else ''}", size / 1e6 / seconds)
    if streams == 1:
        for process, pid in watched.items():
            used = processor_time(pid) - before[process]
            pairing.note(f"CPU of the {process}, {direction}", used / (size / GB))


async def echo(pairing: Pairing, effort: Effort) -> None:
    """Round trips while nothing else happens, and while bytes go down."""
    note_trips(pairing, "idle", await pairing.client.echo(pairing.to, count=effort.echoes))
    loaded = asyncio.create_task(pairing.client.echo(pairing.to, count=effort.echoes_under_load, pause=0.005))
    while not loaded.done():
        await pairing.client.bulk(pairing.to, up=False, size=effort.size // 4)
    note_trips(pairing, "under bulk", await loaded)


def note_trips(pairing: Pairing, load: str, trips: list[float]) -> None:
    trips = sorted(trips)
    for share in PERCENTILES:
        pairing.note(f"echo of 1 byte {load}, p{share * 100:.0f}", trips[int(len(trips) * share)] * 1e3)


@asynccontextmanager
async def paired(name: str, client: Program, agent: Program, relays: DerpMap, direct: bool) -> AsyncIterator[Pairing]:
    """Both processes, reachable for each other in the one way that is asked for."""
    async with node(client, direct) as one, node(agent, direct) as two:
        for each in (one, two):
            await each.set_map(relays)
            await each.wait_state(endpoints=direct)
        # A client that begins before the agent knows it waits 5 s for its second attempt.
        await two.set_peers(one.as_peer(endpoints=direct))
        await one.set_peers(two.as_peer(endpoints=direct, keep_alive=True))
        made = Pairing(name, one, two)
        await one.reach(made.to)
        async with asyncio.timeout(30):
            while direct and "endpoint" not in await one.ping(made.to):
                await asyncio.sleep(0.1)
        yield made


def node(program: Program, direct: bool) -> Node:
    relayed = "--relayed" if program == OURS else "--direct=false"
    return Node(program, [TAILSCALE_PREFIX + os.urandom(10)], *([] if direct else [relayed]))


async def measure_way(way: str, theirs: Program, server: Deployment, effort: Effort) -> list[Pairing]:
    """All pairings, directly or through the relay."""
    direct = way == "direct"
    pairings = {
        "Go + Go": (theirs, theirs),
        "our agent, Go client": (theirs, OURS),
        "Go agent, our client": (OURS, theirs),
        "ours + ours": (OURS, OURS),
    }
    relays, relay = relay_map(URL(server.url)), None if direct else server.server.pid
    async with AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(paired(name, client, agent, relays, direct))
            for name, (client, agent) in pairings.items()
        ]
        for pairing in made:  # buffers and windows grow, modules are loaded
            for up in (False, True):
                await pairing.client.bulk(pairing.to, up=up, size=4_000_000)
        for _ in range(effort.rounds):
            for direction in DIRECTIONS:
                for streams in STREAMS:
                    for pairing in made:
                        await bulk(pairing, direction, streams, effort.size, relay)
            for pairing in made:
                await echo(pairing, effort)
        for pairing in made:
            for process, pid in (("agent", pairing.agent.pid), ("client", pairing.client.pid)):
                pairing.note(f"memory of the {process} after", psutil.Process(pid).memory_info().rss / MIB)
        return made


def relay_map(server: URL) -> DerpMap:
    """One region with the server's relay."""
    relay = Relay(
        name="1a",
        region_id=REGION,
        host_name=server.host or "",
        derp_port=server.port or 0,
        force_http=True,
        stun_port=NO_STUN,
    )
    return DerpMap(MappingProxyType({REGION: Region(REGION, "bench", "Bench", nodes=(relay,))}))


def cells(row: Row, pairings: list[Pairing]) -> list[str]:
    """What each pairing reached, with its ratio to the first one."""
    values = [row.best(pairing) for pairing in pairings]
    base = values[0]
    found = []
    for value in values:
        if value is None:
            found.append("")
        elif value is base or not base:
            found.append(f"{value:.3g}")
        else:
            found.append(f"{value:.3g} (×{value / base:.2f})")
    return found


async def measure(theirs: Program, effort: Effort) -> dict[str, list[Pairing]]:
    with tempfile.TemporaryDirectory(prefix="workspace-agent-bench-") as directory:
        async with Deployment(Path(directory), owner=False) as server:
            found = {}
            for way in ("direct", "relayed"):
                click.echo(f"measuring: {way} …", err=True)
                found[way] = await measure_way(way, theirs, server, effort)
            return found


async def measure_parts() -> list[list[str]]:
    """The relay and the handshakes by themselves."""
    sys.path.insert(0, str(SCRIPTS / "bench_parts"))
    found = []
    for name in ("derp", "wireguard"):
        click.echo(f"measuring: {name} …", err=True)
        measure: Callable[[], Awaitable[dict[str, Any]]] = importlib.import_module(name).measure
        found += [[what, f"{value:,.1f}"] for what, value in (await measure()).items()]
    return found


def build() -> Program:
    """The foreign peer; its modules are fetched the first time."""
    go = shutil.which("go")
    if go is None:
        raise click.ClickException("the foreign peer needs Go: install it from https://go.dev/dl")
    subprocess.run([go, "build", "-o", "bin/tailnet-peer", "."], cwd=PEER, check=True)
    return foreign(PEER / "bin" / "tailnet-peer")


@click.command()
@click.option("--quick", is_flag=True, help="Fewer bytes, one round.")
def main(quick: bool) -> None:
    """Measure nodes of the tailnet: ours, the foreign one, and the two with each other."""
    found = asyncio.run(measure(build(), QUICK if quick else FULL))
    for way, pairings in found.items():
        table = [[row.what, row.unit, *cells(row, pairings)] for row in rows(way)]
        print_table([way.upper(), "", *(pairing.name for pairing in pairings)], table)
        click.echo()
    print_table(["BY THEMSELVES", ""], asyncio.run(measure_parts()))


if __name__ == "__main__":
    main()
