"""`workspace-agent agent`: the daemon. Its flags are the table of `agent.daemon.options`."""

from __future__ import annotations

import os
import sys

import click

from agent import lean_aiohttp  # noqa: F401 - before anything else imports aiohttp
from agent.daemon.config import ConfigError, parse_config
from agent.daemon.options import OPTIONS, Option, parse_bool


class WrongFlagError(click.UsageError):
    """Exit code 1, as for every other mistake at start (daemon.md §1.4), where click has 2."""

    exit_code = 1


class AgentCommand(click.Command):
    """The command that reports its wrong flags so."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise WrongFlagError(error.format_message(), ctx) from error


def _flag(option: Option) -> click.Option:
    """Values stay texts here: the table reads those of flags and those of variables alike."""
    text = f"{option.help} [${option.variable}]" if option.variable else option.help
    if option.default:
        shown = option.default.format(tmp="$TMPDIR", state="$XDG_STATE_HOME")
        text += f" [default: {shown}]"
    return click.Option(
        [option.flag, option.name],
        multiple=True,
        is_flag=False,
        flag_value="true" if option.parse is parse_bool else None,
        metavar="[true|false]" if option.parse is parse_bool else "VALUE",
        help=text,
    )


def _run(**flags: tuple[str, ...]) -> None:
    try:
        config = parse_config(flags, os.environ)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"error: {problem}", err=True)
        sys.exit(1)
    if os.getpid() == 1 and sys.platform == "linux" and not config.no_reap:
        from agent.launch.pid1 import become_init

        become_init(config.log_dir)
    from agent.daemon.app import run

    sys.exit(run(config))


agent = AgentCommand(
    "agent",
    params=[_flag(option) for option in OPTIONS],
    callback=_run,
    help="Run the daemon that connects this workspace to its control plane.\n\n"
    "A flag wins over its variable. The process ends with 0 after SIGINT, SIGTERM or SIGHUP, and with 1 when it cannot "
    "start.",
)
