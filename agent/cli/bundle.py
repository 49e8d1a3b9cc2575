"""`workspace-agent bundle`."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.command import run
from agent.cli.control import place, socket_option
from agent.cli.errors import CliError
from agent.cli.reaching import waiting

if TYPE_CHECKING:
    from agent.doctor import Finding


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="The archive [default: a new file here].")
@click.option("--log-dir", type=click.Path(path_type=Path), help="Where the logs are, if no agent can say so.")
@socket_option
def bundle(output: Path | None, log_dir: Path | None, socket: Path | None) -> None:
    """Pack logs, status, configuration and findings for somebody who helps. Secrets are left out.

    Look into the archive before you send it: what your scripts print is in it.
    """
    path = output or Path(f"workspace-agent-bundle-{datetime.now(UTC):%Y%m%d-%H%M%S}.tar.gz")
    with waiting("Collecting"):
        names = run(_bundle(path, log_dir, place(socket)))
    click.echo(f"{path}: {len(names)} files")


async def _bundle(path: Path, log_dir: Path | None, socket: Path) -> list[str]:
    import asyncio

    from agent.cli.doctor import examine, to_json
    from agent.daemon.config import ConfigError, parse_config
    from agent.doctor import bundle
    from agent.ops.client import ControlSocket, NoAgentError, RefusedError
    from agent.version import version_text

    agent, texts, token = ControlSocket(socket), {"version.txt": version_text() + "\n"}, ""
    try:
        status = await agent.status()
        log_dir = log_dir or Path(status["log_dir"])
        texts["status.json"] = bundle.as_json(status)
        for name, page in (
            ("metrics.txt", "/debug/prometheus"),
            ("network.html", "/debug/magicsock"),
            ("manifest.json", "/debug/manifest"),
            ("stacks.txt", "/debug/stacks"),
        ):
            try:
                texts[name] = (await agent.ask("GET", page)).decode("utf-8", "replace")
            except RefusedError as error:
                texts[f"{name}.error"] = f"{error}\n"
    except NoAgentError as error:
        texts["status.error"] = f"{error}\n"
    try:
        config = parse_config({}, os.environ)
        log_dir = log_dir or config.log_dir
        token = config.token or await asyncio.to_thread(_read, config.token_file)
    except ConfigError as error:
        texts["configuration.error"] = f"{error}\n"
    found: list[Finding] = []
    await examine(None, None, found, quiet=True)
    texts["doctor.json"] = bundle.as_json([to_json(finding) for finding in found])
    censor = bundle.Censor(bundle.known_secrets(os.environ, token))
    texts["environment.txt"] = bundle.variables(os.environ, censor)
    try:
        logs = await asyncio.to_thread(bundle.log_files, log_dir or Path(os.environ.get("TMPDIR") or "/tmp"))  # noqa: S108
        return await asyncio.to_thread(bundle.write, path, texts, logs, censor)
    except OSError as error:
        raise CliError(f'the archive "{path}" cannot be written: {error.strerror or error}') from error


def _read(path: str) -> str:
    """The token in `path`, to be left out of the archive; what cannot be read cannot be in it either."""
    try:
        return Path(path).read_text("utf-8", "replace").strip() if path else ""
    except OSError:
        return ""
