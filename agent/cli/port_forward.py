"""`workspace-agent port-forward AGENT`."""

from __future__ import annotations

import json
from typing import Literal

import click

from agent.cli.command import run
from agent.cli.errors import CliError
from agent.cli.reaching import connected, interruptible

_FORMS = "8080, 8080:80, 127.0.0.1:8080:80, 9000-9010, or 9000-9010:8000-8010: local ports, then the agent's."


@click.command("port-forward")
@click.argument("agent")
@click.option("-p", "--tcp", multiple=True, metavar="PORTS", help=f"{_FORMS} Repeatable, or with commas.")
@click.option("--udp", multiple=True, metavar="PORTS", help="The same for UDP.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, for programs.")
def port_forward(agent: str, tcp: tuple[str, ...], udp: tuple[str, ...], as_json: bool) -> None:
    """Make ports of AGENT (name or id) reachable at this machine, until Ctrl-C."""
    if not tcp and not udp:
        raise click.UsageError("say which ports, for example --tcp 8080:80")
    run(_forward(agent, tcp, udp, as_json))


async def _forward(agent: str, tcp: tuple[str, ...], udp: tuple[str, ...], as_json: bool) -> None:
    from agent.clock import SystemClock
    from agent.server.open_files import allow_many
    from agent.tailnet.port_forward import ForwardError, PortForwarder, parse

    asked: tuple[tuple[Literal["tcp", "udp"], tuple[str, ...]], ...] = (("tcp", tcp), ("udp", udp))
    try:
        forwards = [forward for protocol, texts in asked for text in texts for forward in parse(protocol, text)]
    except ForwardError as error:
        raise click.UsageError(str(error)) from error

    def told(text: str) -> None:
        if as_json:
            click.echo(json.dumps({"event": "problem", "text": text}, ensure_ascii=False))
        else:
            click.echo(click.style(f"{agent}: {text}", fg="yellow"), err=True)

    allow_many()  # every connection is one
    async with connected(agent) as connection:
        forwarder = PortForwarder(connection.dial, connection.tailnet, connection.address, SystemClock(), told)
        try:
            with interruptible() as stopped:
                for forward in await forwarder.open(forwards):
                    if as_json:
                        places = {"local_address": forward.host, "local_port": forward.local}
                        value = {"event": "listening", "protocol": forward.protocol, **places, "port": forward.remote}
                        click.echo(json.dumps(value))
                    else:
                        click.echo(f"{forward} → {agent}, port {forward.remote}")
                click.echo("Press Ctrl-C to end.", err=True)
                await stopped.wait()
        except ForwardError as error:
            raise CliError(str(error)) from error
        finally:
            await forwarder.aclose()
