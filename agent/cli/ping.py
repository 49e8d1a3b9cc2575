"""`workspace-agent ping AGENT`."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from agent.cli.command import json_option, run
from agent.cli.output import print_json
from agent.cli.reaching import connected, interruptible, pause

if TYPE_CHECKING:
    from agent.tailnet.client import AgentConnection
    from agent.tailnet.paths import Answered

DEFAULT_COUNT = 10


@click.command()
@click.argument("agent")
@click.option(
    "-n",
    "--num",
    "count",
    type=click.IntRange(min=1),
    help="Ping that often. Without it until the connection is direct, at most ten times.",
)
@click.option(
    "-t",
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds to wait for each answer.",
)
@click.option("--wait", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Seconds between two pings.")
@json_option
def ping(agent: str, count: int | None, timeout: float, wait: float, as_json: bool) -> None:
    """Measure how long AGENT (name or id) takes to answer, and tell the way that the answers take."""
    sys.exit(0 if run(_ping(agent, count, timeout, wait, as_json)) else 1)


async def _ping(agent: str, count: int | None, timeout: float, wait: float, as_json: bool) -> bool:
    began = time.monotonic()
    results: list[dict[str, Any]] = []
    async with connected(agent) as connection:
        with interruptible() as stopped:
            while not stopped.is_set() and len(results) < (count or DEFAULT_COUNT):
                if results:
                    await pause(wait, stopped)
                result = await _one(connection, timeout, stopped)
                if result is None:
                    break
                results.append(result)
                if not as_json:
                    click.echo(describe(agent, result))
                if result.get("via") == "direct" and count is None:
                    break
    summary = summarise(results)
    if as_json:
        print_json({"agent": agent, "seconds": round(time.monotonic() - began, 3), "pings": results, **summary})
    else:
        click.echo(summary_line(summary))
    return bool(summary["received"])


async def _one(connection: AgentConnection, timeout: float, stopped: asyncio.Event) -> dict[str, Any] | None:
    """None when the person does not want to wait for the answer."""
    from agent.tailnet.tailnet import TailnetError

    answer = asyncio.create_task(connection.ping(timeout))
    interrupt = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({answer, interrupt}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            return None
        return _told(connection, answer.result())
    except TailnetError as error:
        return {"error": str(error)}
    finally:
        for task in (answer, interrupt):
            task.cancel()
        await asyncio.gather(answer, interrupt, return_exceptions=True)


def _told(connection: AgentConnection, answered: Answered) -> dict[str, Any]:
    from agent.protocol.ip import endpoint_text

    result: dict[str, Any] = {"latency_ms": round(answered.latency * 1000, 3)}
    if answered.endpoint is not None:
        return {**result, "via": "direct", "endpoint": endpoint_text(answered.endpoint)}
    name = connection.region_name(answered.region)
    return {**result, "via": "relay", "region_id": answered.region, "region": name}


def describe(agent: str, result: dict[str, Any]) -> str:
    """A line for people."""
    if "error" in result:
        return click.style(f"{agent}: {result['error']}", fg="yellow")
    way = (
        f"directly from {result['endpoint']}"
        if result["via"] == "direct"
        else f"through the relay DERP({result['region']})"
    )
    return f"pong from {click.style(agent, bold=True)} {way} in {result['latency_ms']:.1f} ms"


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    latencies = [result["latency_ms"] for result in results if "latency_ms" in result]
    summary: dict[str, Any] = {"sent": len(results), "received": len(latencies)}
    if latencies:
        summary |= {"min_ms": min(latencies), "max_ms": max(latencies), "avg_ms": round(statistics.mean(latencies), 3)}
    summary["direct"] = any(result.get("via") == "direct" for result in results)
    return summary


def summary_line(summary: dict[str, Any]) -> str:
    text = f"{summary['sent']} sent, {summary['received']} answered"
    if summary["received"]:
        text += f", min/avg/max {summary['min_ms']:.1f}/{summary['avg_ms']:.1f}/{summary['max_ms']:.1f} ms"
        text += "; the connection is direct" if summary["direct"] else "; the connection is relayed"
    return text
