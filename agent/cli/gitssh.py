"""`workspace-agent gitssh -- ARGS`: what GIT_SSH_COMMAND names in a workspace (daemon.md §6.1)."""

from __future__ import annotations

import os
import sys

import click

from agent.api.git import GitSshKey
from agent.cli import workspace
from agent.clock import SystemClock, wait_for
from agent.git.gitssh import CONNECTION_FAILED, SshError, run_ssh

KEY_LIMIT = 10.0
"""Seconds that git waits for a control plane that does not answer, before it goes on with the user's own keys."""


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def gitssh(arguments: tuple[str, ...]) -> None:
    """Run ssh with the user's own keys, and then the one that the server keeps for the workspace's owner."""
    sys.exit(workspace.run(_gitssh(arguments)))


async def _gitssh(arguments: tuple[str, ...]) -> int:
    clock = SystemClock()
    key: GitSshKey | None = None
    try:
        if arguments[:1] != ("-G",):  # with which git asks first whether this is OpenSSH: no connection, no key
            async with workspace.server() as server:
                key = await wait_for(clock, server.git_ssh_key(), KEY_LIMIT)
    except TimeoutError:
        workspace.say(f"workspace-agent: the server gave no SSH key within {KEY_LIMIT:g} s; going on without it")
    except workspace.ServerErrors as error:
        workspace.say(f"workspace-agent: the server's SSH key cannot be had: {error}; going on without it")
    try:
        status = await run_ssh(arguments, key, os.environ, clock)
    except SshError as error:
        workspace.say(f"error: {error}")
        return 1
    if status == CONNECTION_FAILED and key is not None:
        workspace.say(
            "\nssh failed. If the git host refused the login, give it the public key of this workspace's owner:\n\n"
            f"{key.public_key.strip()}\n\n"
            "For GitHub: https://github.com/settings/ssh/new\nFor GitLab: https://gitlab.com/-/profile/keys\n"
        )
    return 1 if status else 0
