"""`workspace-agent log-level`."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli.command import run
from agent.cli.control import NotRunningError, place, socket_option
from agent.cli.errors import CliError


@click.command("log-level")
@click.argument("level", type=click.Choice(["debug", "info", "warning", "error"]))
@socket_option
def log_level(level: str, socket: Path | None) -> None:
    """Change how much the running agent logs to its streams; SIGUSR1 switches between debug and info.

    The log file has everything in any case. The change lasts until the agent ends.
    """
    run(_set(place(socket), level))


async def _set(path: Path, level: str) -> None:
    from agent.ops.client import ControlSocket, NoAgentError, RefusedError

    try:
        await ControlSocket(path).ask("PUT", "/log-level", level)
    except NoAgentError as error:
        raise NotRunningError(str(error)) from error
    except RefusedError as error:
        raise CliError(str(error)) from error
