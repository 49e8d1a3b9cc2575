"""`workspace-agent status`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from agent.cli.command import json_option, run
from agent.cli.control import NotRunningError, place, socket_option
from agent.cli.errors import CliError
from agent.cli.output import ago, print_fields, print_json


@click.command()
@socket_option
@click.option("--wait", "wanted", type=click.Choice(["connected", "ready"]), help="Wait until the agent is that.")
@click.option("--timeout", default=300.0, show_default=True, help="Seconds to wait at most.")
@json_option
def status(socket: Path | None, wanted: str | None, timeout: float, as_json: bool) -> None:
    """Tell how the agent on this machine is doing.

    Ends with 0 when it answers (with --wait: when it is what was waited for), with 1 when that did not come, and with
    3 when there is no agent. Start scripts that failed end --wait ready at once, with 1.
    """
    found = run(_status(place(socket), wanted, timeout))
    if as_json:
        print_json(found)
        return
    connected = f"connected (API {found['api_version']})" if found["connected"] else f"no: {found['trouble']}"
    started = datetime.fromtimestamp(found["started_at"], UTC).isoformat()
    print_fields(
        [
            ("agent", " / ".join(filter(None, (found["workspace_name"], found["agent_name"])))),
            ("id", found["agent_id"] or ""),
            ("lifecycle", found["lifecycle"]),
            ("connection", connected),
            ("server", found["url"]),
            ("version", found["version"]),
            ("process", f"{found['pid']}, started {ago(started)}"),
            ("log level", found["log_level"]),
            ("logs", found["log_dir"]),
            ("state", found["state_dir"]),
        ]
    )


async def _status(path: Path, wanted: str | None, timeout: float) -> dict[str, Any]:
    from agent.clock import SystemClock
    from agent.ops.client import ControlSocket, NoAgentError, NotReachedError, RefusedError

    agent = ControlSocket(path)
    try:
        return await (agent.wait(wanted, timeout, SystemClock()) if wanted is not None else agent.status())
    except NoAgentError as error:
        raise NotRunningError(str(error)) from error
    except (NotReachedError, RefusedError) as error:
        raise CliError(str(error)) from error
