"""`workspace-agent logs AGENT`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import click

from agent.cli.command import segment, with_client
from agent.cli.errors import CliError

if TYPE_CHECKING:
    from agent.cli.client import Client

_STYLES: dict[str, dict[str, Any]] = {
    "error": {"fg": "red"},
    "warn": {"fg": "yellow"},
    "debug": {"dim": True},
    "trace": {"dim": True},
}


@click.command()
@click.argument("agent")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until the agent's build ends or Ctrl-C.")
@click.option("--source", "sources", multiple=True, help="Only lines of this log source (name or id); repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, for programs.")
@with_client
async def logs(client: Client, agent: str, follow: bool, sources: tuple[str, ...], as_json: bool) -> None:
    """Print what the scripts of AGENT (name or id) wrote."""
    found = await client.get(f"agents/{segment(agent)}")
    names = await _source_names(client, found["id"])
    wanted = select_sources(names, sources)
    lines = client.follow_logs(found["id"]) if follow else _stored(client, found["id"])
    async for line in lines:
        if line["source_id"] not in names:  # registered after the command began
            names = {line["source_id"]: "", **await _source_names(client, found["id"])}
            wanted = select_sources(names, sources)
        if wanted is not None and line["source_id"] not in wanted:
            continue
        if as_json:
            click.echo(json.dumps(line, ensure_ascii=False))
        else:
            click.echo(render(line, names.get(line["source_id"], "")))


async def _stored(client: Client, agent_id: str) -> AsyncIterator[dict[str, Any]]:
    for line in await client.get(f"workspaceagents/{agent_id}/logs"):
        yield line


async def _source_names(client: Client, agent_id: str) -> dict[str, str]:
    found = await client.get(f"workspaceagents/{agent_id}")
    return {source["id"]: source["display_name"] for source in found["log_sources"]}


def select_sources(names: dict[str, str], sources: tuple[str, ...]) -> set[str] | None:
    if not sources:
        return None
    wanted = {key for key, name in names.items() if key in sources or name in sources}
    missing = set(sources) - wanted - {names[key] for key in wanted}
    if missing:
        known = ", ".join(sorted(name for name in names.values() if name)) or "none"
        raise CliError(f"no log source {', '.join(sorted(missing))!r} here; there are: {known}")
    return wanted


def render(line: dict[str, Any], source: str) -> str:
    """A log line for people: where it is from, and a colour by its level."""
    prefix = click.style(f"{source} | ", fg="cyan") if source else ""
    return prefix + click.style(line["output"], **_STYLES.get(line["level"], {}))
