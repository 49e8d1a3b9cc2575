"""`workspace-agent speedtest AGENT`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from agent.cli.command import json_option, run
from agent.cli.errors import CliError
from agent.cli.output import print_json
from agent.cli.reaching import connected, waiting

if TYPE_CHECKING:
    from agent.tailnet.client import AgentConnection
    from agent.tailnet.speedtest import Interval

DIRECT_LIMIT = 20.0
"""Seconds that a direct path may take to be found, where one is asked for."""


@click.command()
@click.argument("agent")
@click.option(
    "--direction",
    type=click.Choice(["down", "up"]),
    default="down",
    show_default=True,
    help="down: the agent sends; up: it receives.",
)
@click.option(
    "-t",
    "--time",
    "seconds",
    type=click.FloatRange(min=0, max=60, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds of sending.",
)
@click.option("-d", "--direct", is_flag=True, help="Begin when the connection is direct; fail if it does not get so.")
@click.option("--relay", is_flag=True, help="Keep to the relay.")
@json_option
def speedtest(agent: str, direction: str, seconds: float, direct: bool, relay: bool, as_json: bool) -> None:
    """Measure how much gets through to AGENT (name or id) and back."""
    if direct and relay:
        raise click.UsageError("--direct and --relay exclude each other")
    run(_speedtest(agent, direction, seconds, direct, relay, as_json))


async def _speedtest(agent: str, direction: str, seconds: float, direct: bool, relay: bool, as_json: bool) -> None:
    from agent.clock import SystemClock
    from agent.protocol.speedtest import Direction, SpeedtestError
    from agent.protocol.tcp import TcpError
    from agent.tailnet.speedtest import PORT, measure

    async with connected(agent, direct=not relay) as connection:
        if direct:
            with waiting("Looking for a direct path"):
                await _until_direct(connection)
        stream = await connection.dial(PORT)
        intervals: list[Interval] = []
        try:
            async for interval in measure(stream, Direction[direction.upper()], seconds, SystemClock()):
                intervals.append(interval)
                if not as_json:
                    click.echo(line(interval))
        except (SpeedtestError, TcpError) as error:
            raise CliError(f"{agent}: the speed test failed: {error}") from error
        finally:
            stream.close()
        way = await _way(connection)
    whole = total(intervals)
    if as_json:
        print_json(
            {
                "overall": as_object(whole),
                "intervals": [as_object(interval) for interval in intervals],
                "direction": direction,
                "bytes": whole.size,
                "via": way,
            }
        )
    else:
        click.echo("-" * 52)
        click.echo(click.style(line(whole), bold=True) + f"  {way}")


async def _until_direct(connection: AgentConnection) -> None:
    from agent.tailnet.tailnet import TailnetError

    try:
        async with asyncio.timeout(DIRECT_LIMIT):
            while True:
                answered = await connection.ping(DIRECT_LIMIT)
                if answered.endpoint is not None:
                    return
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise TailnetError(
            f"no direct path was found within {DIRECT_LIMIT:g} s; `workspace-agent netcheck` may tell why"
        ) from None


async def _way(connection: AgentConnection) -> str:
    from agent.tailnet.tailnet import TailnetError

    try:
        answered = await connection.ping(5.0)
    except TailnetError:
        return "unknown"  # what was measured is true nevertheless
    return "direct" if answered.endpoint is not None else f"relayed by {connection.region_name(answered.region)}"


def total(intervals: list[Interval]) -> Interval:
    """All of them as one."""
    from agent.tailnet.speedtest import Interval

    if not intervals:
        raise CliError("not one byte came through; is the time too short?")
    return Interval(0.0, intervals[-1].end, sum(interval.size for interval in intervals))


def as_object(interval: Interval) -> dict[str, Any]:
    """As other clients of such agents write it."""
    return {
        "start_time_seconds": round(interval.start, 3),
        "end_time_seconds": round(interval.end, 3),
        "throughput_mbits": round(interval.rate / 1e6, 3),
    }


def line(interval: Interval) -> str:
    times = f"{interval.start:.2f}-{interval.end:.2f} s"
    return f"{times:>15}  {interval.size / 1e6:9.2f} MB  {interval.rate / 1e6:9.2f} Mbit/s"
