"""What the commands that talk to the agent on this machine have in common."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from agent.cli.errors import CliError

NOT_RUNNING = 3
"""Exit code when no agent answers, as `systemctl status` has it."""


class NotRunningError(CliError):
    """No agent answers."""

    exit_code = NOT_RUNNING


def socket_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--socket`."""
    return click.option(
        "--socket",
        type=click.Path(path_type=Path),
        help="The agent's socket [default: $CODER_AGENT_STATUS_SOCKET, else status.sock in its state directory].",
    )(command)


def place(socket: Path | None) -> Path:
    """Where the agent is asked."""
    from agent.ops.client import find_socket

    return socket or find_socket(os.environ)
