"""What GIT_ASKPASS comes to in a workspace; `main` knows git by how it calls (daemon.md §6.2)."""

from __future__ import annotations

import os
import sys

import click

from agent.cli import workspace
from agent.clock import SystemClock
from agent.control import RefusedError, UnreachableError
from agent.git.askpass import PromptError, answer, parse_prompt, token_for


@click.command()
@click.argument("prompt")
def askpass(prompt: str) -> None:
    """Answer git's question for a login with the owner's token for that host."""
    sys.exit(workspace.run(_askpass(prompt)))


async def _askpass(text: str) -> int:
    try:
        prompt = parse_prompt(text)
        async with workspace.server() as server:
            token = await token_for(
                prompt,
                server,
                SystemClock(),
                tell=workspace.say,
                may_repeat=lambda error: (
                    isinstance(error, UnreachableError) or (isinstance(error, RefusedError) and error.status >= 500)
                ),
                # A program that nobody watches must not wait for a person.
                patient=os.environ.get("CODER_CHAT_AGENT") != "true",
            )
    except RefusedError as error:
        if error.status != 404:
            workspace.say(f"error: {error}")
        else:  # the server knows no such host; git asks the person
            workspace.say("\n".join(line for line in (error.message, error.detail) if line))
        return 1
    except (PromptError, *workspace.ServerErrors) as error:
        workspace.say(f"error: {error}")
        return 1
    if token is None:
        return 1
    click.echo(answer(prompt, token))
    return 0
