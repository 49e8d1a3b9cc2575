"""`workspace-agent install` and `uninstall`."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.errors import CliError

if TYPE_CHECKING:
    from agent.launch.systemd import Place

systemd_option = click.option("--systemd", is_flag=True, required=True, help="As a unit of systemd.")
user_option = click.option("--user", "for_user", is_flag=True, help="In your own service manager; needs no root.")


@click.command()
@systemd_option
@user_option
@click.option("--url", required=True, help="Base URL of the control plane.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help='File with the agent token, which is copied; "-" for standard input.',
)
@click.option("--auth", default="token", show_default=True, help="token, auto, or a cloud's instance identity.")
@click.option("--run-as", metavar="USER", help="The workspace's user [default: who called sudo].")
def install(url: str, token_file: Path | None, auth: str, run_as: str | None, for_user: bool, systemd: bool) -> None:
    """Install, enable and start the agent, and return without waiting for it; `status --wait connected` does.

    Run again it is an upgrade: a running agent makes way for the new one, and scripts and terminals go on. Ends with 1
    and leaves everything as it was when something fails.
    """
    del systemd  # there is nothing else yet, and what is installed is to be said
    from agent.daemon.environment import executable_path
    from agent.daemon.options import parse_auth, parse_url
    from agent.identity import IdentityError
    from agent.identity.token import checked_token
    from agent.launch.systemd import Installer, InstallError, drop_in

    place = _place(for_user)
    executable = executable_path(sys.argv[0])
    if not executable:
        raise CliError("the program workspace-agent is not beside its Python: install the package first")
    try:
        url, auth = parse_url(url), parse_auth(auth)
        token = checked_token(_read(token_file), str(token_file)) if token_file is not None else None
    except (ValueError, IdentityError) as error:
        raise CliError(str(error)) from error
    if auth == "token" and token is None:
        raise CliError("name the file with the agent's token: --token-file")
    if auth != "token" and token is not None:
        raise CliError(f"--token-file is of no use with --auth {auth}")
    user = None if for_user else _workspace_user(run_as)
    try:
        text = drop_in(executable=executable, url=url, token=place.token, auth=auth, user=user)
        Installer(place).install(unit_drop_in=text, token=token)
    except InstallError as error:
        raise CliError(f"nothing was installed: {error}") from error
    click.echo(f"installed {place.unit}")


@click.command()
@systemd_option
@user_option
def uninstall(for_user: bool, systemd: bool) -> None:
    """Stop the agent as at the end of a workspace, and remove its unit and token. State and logs stay."""
    del systemd
    from agent.launch.systemd import Installer, InstallError

    place = _place(for_user)
    try:
        found = Installer(place).uninstall()
    except InstallError as error:
        raise CliError(str(error)) from error
    click.echo(f"removed {place.unit}" if found else "nothing is installed")


def _place(for_user: bool) -> Place:
    from agent.launch.systemd import system_place, user_place

    if for_user:
        return user_place(Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"))
    if os.geteuid() != 0:
        raise CliError("a service of the whole machine needs root: use sudo, or --user for one of your own")
    return system_place()


def _read(path: Path) -> str:
    if str(path) == "-":
        return sys.stdin.read(64 * 1024)
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(64 * 1024)
    except (OSError, UnicodeError) as error:
        raise CliError(f"read token file {path}: {getattr(error, 'strerror', None) or error}") from error


def _workspace_user(name: str | None) -> str:
    name = name or os.environ.get("SUDO_USER") or ""
    if not name:
        raise CliError("name the workspace's user: --run-as USER")
    try:
        return pwd.getpwnam(name).pw_name
    except KeyError as error:
        raise CliError(f"there is no user {name} on this machine") from error
