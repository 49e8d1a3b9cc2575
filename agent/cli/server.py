"""`workspace-agent server`: the control plane."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli.errors import CliError

DEFAULT_PORT = 7080


@click.command()
@click.option(
    "--address", default="127.0.0.1", show_default=True, envvar="WORKSPACE_AGENT_ADDRESS", help="Listen here."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    envvar="WORKSPACE_AGENT_PORT",
    help=f"Listen on this port; 0 is any free one.  [default: {DEFAULT_PORT}, or a free one where it is taken]",
)
@click.option(
    "--access-url",
    default="",
    envvar="WORKSPACE_AGENT_ACCESS_URL",
    help="Where agents and browsers find the server.  [default: what it listens on]",
)
@click.option(
    "--workspace-url",
    default="",
    envvar="WORKSPACE_AGENT_WORKSPACE_URL",
    help="Open ports of workspaces in the browser below this wildcard host, like 'https://*.ws.example.com', whose "
    "requests come to this server.  [default: each on a free port of the address]",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="WORKSPACE_AGENT_DATA_DIR",
    help="Folder for the database.  [default: $XDG_DATA_HOME/workspace-agent, or ~/.local/share/workspace-agent]",
)
@click.option(
    "--database",
    default="",
    envvar="WORKSPACE_AGENT_DATABASE",
    help="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME; a password is better kept in the variable.  "
    "[default: server.db in the data folder]",
)
@click.option(
    "--stun-port",
    type=click.IntRange(0, 65535),
    envvar="WORKSPACE_AGENT_STUN_PORT",
    help="Answer STUN requests of agents and clients on this UDP port; 0 is any free one.  [default: no STUN]",
)
@click.option(
    "--derp-map",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="WORKSPACE_AGENT_DERP_MAP",
    help="The relays that agents and clients use, as YAML or JSON; read again when the file changes.  "
    "[default: the relay of this server]",
)
@click.option(
    "--disable-direct-connections",
    is_flag=True,
    envvar="WORKSPACE_AGENT_DISABLE_DIRECT_CONNECTIONS",
    help="Agents and clients meet at relays only.",
)
@click.option(
    "--force-websockets",
    is_flag=True,
    envvar="WORKSPACE_AGENT_FORCE_WEBSOCKETS",
    help="Agents and clients use WebSockets to relays at once, for proxies that know no other upgrade.",
)
@click.option(
    "--instance-identity",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="WORKSPACE_AGENT_INSTANCE_IDENTITY",
    help="Which cloud instances are accepted, and whose certificates and keys count, as YAML or JSON.  "
    "[default: instances of the public clouds that an agent is bound to]",
)
@click.option("--print-login", is_flag=True, help="Print a one-time login link for the owner, who is made if need be.")
@click.option(
    "--rate-limit",
    type=int,
    default=512,
    show_default=True,
    envvar="WORKSPACE_AGENT_RATE_LIMIT",
    help="Requests per minute of one caller to one path; 0: unlimited.",
)
@click.option(
    "--agent-api-version",
    default="",
    help="The newest version of the agent API to offer.  [default: the newest there is]",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="WORKSPACE_AGENT_LOG_LEVEL",
)
def server(
    address: str,
    port: int | None,
    access_url: str,
    workspace_url: str,
    data_dir: Path | None,
    database: str,
    stun_port: int | None,
    derp_map: Path | None,
    disable_direct_connections: bool,
    force_websockets: bool,
    instance_identity: Path | None,
    print_login: bool,
    rate_limit: int,
    agent_api_version: str,
    log_level: str,
) -> None:
    """Run the control plane. SIGTERM and Ctrl-C stop it in order."""
    import asyncio

    from agent.api.versions import CURRENT, VersionRefusedError, accept_version
    from agent.clock import SystemClock
    from agent.server.app import ListenError, run
    from agent.server.config import ServerConfig, ServerConfigError
    from agent.server.derp_map import DerpMapFileError
    from agent.server.identity import IdentityConfigError
    from agent.server.logging import configure_logging
    from agent.server.store import DatabaseError

    configure_logging(log_level)
    try:
        config = ServerConfig(
            data_dir=data_dir or default_data_dir(),
            address=address,
            port=DEFAULT_PORT if port is None else port,
            port_is_fixed=port is not None,
            access_url=access_url,
            workspace_url=workspace_url,
            database=database,
            stun_port=stun_port,
            derp_map=derp_map,
            disable_direct=disable_direct_connections,
            force_websockets=force_websockets,
            identity=instance_identity,
            rate_limit=rate_limit,
            api_version=accept_version(agent_api_version) if agent_api_version else CURRENT,
        )
        asyncio.run(run(config, SystemClock(), click.echo, print_login=print_login))
    except (ServerConfigError, ListenError, DatabaseError, DerpMapFileError, IdentityConfigError) as error:
        raise CliError(str(error)) from error
    except VersionRefusedError as error:
        raise CliError(f"--agent-api-version: {error}") from error
    except OSError as error:
        raise CliError(f"cannot use the data folder: {error}") from error


def default_data_dir() -> Path:
    """`$XDG_DATA_HOME/workspace-agent`, or the same under `~/.local/share`."""
    import os

    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "workspace-agent"
