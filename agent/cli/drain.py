"""`workspace-agent drain`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from agent.cli.command import json_option, run
from agent.cli.control import NotRunningError, place, socket_option
from agent.cli.errors import CliError
from agent.cli.output import print_json
from agent.cli.reaching import waiting


@click.command()
@socket_option
@json_option
def drain(socket: Path | None, as_json: bool) -> None:
    """Shut down the agent on this machine as SIGTERM does, and tell what did not finish.

    Stop scripts run, and everything that the server should know is sent. Ends with 0 when all of that worked, with 1
    when something was left, and with 3 when there is no agent. A supervisor may start the agent again.
    """
    with waiting("Shutting down"):
        left = run(_drain(place(socket)))
    if as_json:
        print_json(left)
    else:
        for stage in left["unfinished"]:
            click.echo(f"did not finish: {stage}")
        for kind, count in left["unsent"].items():
            click.echo(f"not sent to the server: {count} {kind.replace('_', ' ')}")
    sys.exit(1 if left["unfinished"] or left["unsent"] else 0)


async def _drain(path: Path) -> dict[str, Any]:
    from agent.ops.client import ControlSocket, NoAgentError, RefusedError

    agent = ControlSocket(path)
    try:
        await agent.status()  # so that what fails from here on is not a missing agent
        try:
            left = json.loads(await agent.ask("POST", "/drain", limit=None))  # stop scripts take what they take
        except NoAgentError as error:
            raise CliError("the agent ended before it could tell what was left; its log may say more") from error
    except NoAgentError as error:
        raise NotRunningError(str(error)) from error
    except RefusedError as error:
        raise CliError(str(error)) from error
    assert isinstance(left, dict)
    return left
