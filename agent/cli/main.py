"""The console command `workspace-agent`: a table of subcommands, each imported when it is asked for.

The daemon must start fast and stay small, so nothing that another command needs (aiohttp, SQLAlchemy, rich) may be
imported for it.
"""

from __future__ import annotations

import os
from importlib import import_module

import click

from agent.version import version_text

COMMANDS = {
    "agent": "Run the daemon that connects this workspace to its control plane.",
    "status": "Tell how the agent on this machine is doing.",
    "install": "Install the agent as a service of this machine or user.",
    "uninstall": "Stop the agent that `install` set up, and remove it.",
    "drain": "Shut down the agent on this machine, and tell what did not finish.",
    "log-level": "Change how much the running agent logs.",
    "doctor": "Find out what keeps an agent on this machine from working.",
    "bundle": "Pack what helps others to help, without secrets.",
    "server": "Run the control plane.",
    "login": "Log in at a server.",
    "agents": "Show, create and delete agents.",
    "logs": "Show the logs of an agent.",
    "ssh": "A shell, or a command, in an agent.",
    "cp": "Copy files from and to agents.",
    "config-ssh": "Let ssh, and all that uses it, find agents by their names.",
    "netcheck": "Tell how this machine would reach agents.",
    "ping": "Measure how long an agent takes to answer, and on which way.",
    "port-forward": "Make ports of an agent reachable at this machine.",
    "speedtest": "Measure how much gets through to an agent.",
    "users": "Manage the users of a server.",
    "tokens": "Manage API tokens.",
    "gitssh": "Run ssh for git, with the key that the server keeps for the workspace's owner.",
    "askpass": "Answer git's question for a login.",
}
"""Name and short help. The command `x-y` is the attribute `x_y` of the module `agent.cli.x_y`."""

EXTRA_PACKAGES = ("aiosqlite", "alembic", "argon2", "asyncpg", "sqlalchemy")


class LazyGroup(click.Group):
    """A group that knows its commands by name only."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # GIT_ASKPASS names a program and no arguments, so git is known by how it calls (daemon.md §6.2).
        if len(args) == 1 and args[0].startswith(("Username ", "Password ")) and "GIT_PREFIX" in os.environ:
            args = ["askpass", "--", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        try:
            attribute = cmd_name.replace("-", "_")
            command = getattr(import_module(f"agent.cli.{attribute}"), attribute)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in EXTRA_PACKAGES:
                raise
            raise click.ClickException(
                f'"{cmd_name}" needs {error.name}, which is not installed: pip install "workspace-agent[server]"'
            ) from error
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # click would import every command for its short help.
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        click.echo(version_text())
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
def main() -> None:
    """A workspace agent that speaks the Coder agent API, and an embedded control plane."""
