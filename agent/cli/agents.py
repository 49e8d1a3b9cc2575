"""`workspace-agent agents …`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.command import json_option, segment, with_client
from agent.cli.errors import CliError
from agent.cli.output import ago, print_fields, print_json, print_table

if TYPE_CHECKING:
    from agent.cli.client import Client


@click.group()
def agents() -> None:
    """See and manage agents at the server."""


@agents.command("list")
@json_option
@with_client
async def list_(client: Client, as_json: bool) -> None:
    """List the agents that you may see."""
    found = await client.get("agents")
    if as_json:
        print_json(found)
        return
    print_table(
        ["NAME", "OWNER", "STATUS", "LIFECYCLE", "LAST SEEN", "VERSION"],
        [
            [
                agent["name"],
                agent["owner_name"],
                agent["status"],
                agent["lifecycle_state"],
                ago(agent.get("last_connected_at")),
                agent["version"] or "-",
            ]
            for agent in found["agents"]
        ],
    )


@agents.command()
@click.argument("agent")
@json_option
@with_client
async def show(client: Client, agent: str, as_json: bool) -> None:
    """Show one agent: its states, apps, scripts and metadata."""
    found = await client.get(f"agents/{segment(agent)}")
    found = {**await client.get(f"workspaceagents/{found['id']}"), **found}
    if as_json:
        print_json(found)
        return
    print_fields(
        [
            ("name", found["name"]),
            ("id", found["id"]),
            ("owner", found["owner_name"]),
            ("status", found["status"]),
            ("lifecycle", found["lifecycle_state"]),
            ("health", found["health"].get("reason", "healthy")),
            ("connected", ago(found.get("last_connected_at"))),
            ("directory", found.get("expanded_directory") or found.get("directory", "")),
            ("instance", _instance(found)),
            ("version", found["version"]),
            ("help", found["troubleshooting_url"] if not found["health"]["healthy"] else ""),
        ]
    )
    if found["apps"]:
        click.echo()
        print_table(
            ["APP", "URL", "HEALTH"], [[app["slug"], app.get("url", ""), app["health"]] for app in found["apps"]]
        )
    if found["scripts"]:
        click.echo()
        print_table(
            ["SCRIPT", "RUNS", "RESULT"],
            [[script["display_name"], _when(script), script.get("status") or "-"] for script in found["scripts"]],
        )


def _instance(agent: dict[str, Any]) -> str:
    """Empty where the agent is bound to none."""
    proof = agent.get("instance_proof")
    if "instance_id" not in agent:
        return ""
    vouched = f"{proof['cloud']} vouched for it {ago(proof['verified_at'])}" if proof else "no proof of it yet"
    return f"{agent['instance_id']} ({vouched})"


def _when(script: dict[str, object]) -> str:
    phases = [name for name, flag in (("start", "run_on_start"), ("stop", "run_on_stop")) if script[flag]]
    return ", ".join([*phases, *([f"cron {script['cron']}"] if script["cron"] else [])]) or "never"


def _read(_ctx: click.Context, _parameter: click.Parameter, file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CliError(f"cannot read {file}: {reason}") from error


@agents.command()
@click.option(
    "-f",
    "--file",
    "text",
    type=click.Path(path_type=Path),
    callback=_read,
    required=True,
    help="The definition, YAML or JSON; - reads standard input.",
)
@click.option(
    "--instance-id",
    default="",
    help="The cloud machine whose agent it is (an AWS instance id, Azure vmId or Google instance id), which then needs "
    "no token.  [default: instance_id of the definition]",
)
@json_option
@with_client
async def create(client: Client, text: str, instance_id: str, as_json: bool) -> None:
    """Create an agent from a definition file. Its token is shown once."""
    query = {"instance_id": instance_id} if instance_id else None
    created = await client.request("POST", "agents", query=query, text=text)
    if as_json:
        print_json(created)
        return
    _tell(client, "created", created)


@agents.command()
@click.argument("agent")
@json_option
@with_client
async def start(client: Client, agent: str, as_json: bool) -> None:
    """Begin a new start build: a new agent with a new token takes the place of the old one."""
    created = await client.post(f"agents/{segment(agent)}/builds", {"transition": "start"})
    if as_json:
        print_json(created)
        return
    _tell(client, "started", created)


@agents.command()
@click.argument("agent")
@json_option
@with_client
async def stop(client: Client, agent: str, as_json: bool) -> None:
    """Begin a stop build: the agent may report its stop scripts, and is refused when they have run."""
    build = await client.post(f"agents/{segment(agent)}/builds", {"transition": "stop"})
    if as_json:
        print_json(build)
        return
    click.echo(f"build {build['number']} stops {agent}")


def _tell(client: Client, what: str, created: dict[str, Any]) -> None:
    for warning in created["warnings"]:
        click.echo(f"{click.style('warning:', fg='yellow')} {warning}", err=True)
    click.echo(f"{what} {click.style(created['name'], bold=True)}; run its agent in the workspace with:\n")
    click.echo(f"  CODER_AGENT_URL={client.url} CODER_AGENT_TOKEN={created['token']} workspace-agent agent\n")
    click.echo("The token is not shown again; `workspace-agent agents token` makes a new one.")
    if created.get("instance_id"):
        click.echo(f"\nOn the instance {created['instance_id']} it needs no token:\n")
        click.echo(f"  CODER_AGENT_URL={client.url} workspace-agent agent --auth auto")


@agents.command()
@click.argument("agent")
@click.confirmation_option("-y", "--yes", prompt="Delete the agent and all that it reported?", help="Do not ask.")
@with_client
async def delete(client: Client, agent: str) -> None:
    """Delete an agent; its token stops working at once."""
    await client.delete(f"agents/{segment(agent)}")
    click.echo(f"deleted {agent}")


@agents.command()
@click.argument("agent")
@json_option
@with_client
async def token(client: Client, agent: str, as_json: bool) -> None:
    """Make a new token for an agent; the old one stops working."""
    answer = await client.post(f"agents/{segment(agent)}/token")
    if as_json:
        print_json(answer)
        return
    click.echo(answer["token"])
