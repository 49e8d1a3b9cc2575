"""`workspace-agent cp SOURCE… TARGET`."""

from __future__ import annotations

import click

from agent.cli import openssh
from agent.cli.errors import CliError


@click.command()
@click.option("-r", "--recursive", is_flag=True, help="Directories with all that is in them.")
@click.option("-p", "--preserve", is_flag=True, help="Keep times and modes.")
@click.option("-C", "--compress", is_flag=True, help="Compress on the way.")
@click.option("-q", "--quiet", is_flag=True, help="Do not show how far it is.")
@click.argument("source", nargs=-1, required=True)
@click.argument("target")
def cp(source: tuple[str, ...], target: str, **flags: bool) -> None:
    """Copy files from and to agents, with OpenSSH's scp.

    AGENT:PATH is a file of an agent, from its working directory on; anything else is one here. A name here that has a
    colon is written with a slash before it, as in ./a:b.
    """
    if not openssh.installed("scp"):
        raise CliError("cp needs OpenSSH's scp, which is not installed: apt install openssh-client, for example")
    agents = [openssh.check_name(place) for path in (*source, target) if (place := agent_of(path)) is not None]
    if not agents:
        raise click.UsageError("name a file of an agent, as in dev:notes.txt")
    chosen = [f"-{letter}" for letter, name in _LETTERS.items() if flags[name]]
    # From agent to agent everything goes through here: they cannot reach each other.
    openssh.execute("scp", [*chosen, "-3", "--", *source, target])


_LETTERS = {"r": "recursive", "p": "preserve", "C": "compress", "q": "quiet"}


def agent_of(path: str) -> str | None:
    """Whose file it is; None for one of this machine. As scp has it."""
    place, colon, _ = path.partition(":")
    return place if colon and "/" not in place else None
