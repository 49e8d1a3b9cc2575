"""askpass: answers git's questions for a user name or a password out of the owner's tokens (daemon.md §6.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from agent.api.git import GitToken
from agent.backoff import Backoff
from agent.clock import Clock

POLL_FIRST, POLL_CAP = 0.25, 10.0
"""Seconds between two attempts to learn that the user has authorised the host."""


class PromptError(ValueError):
    """Not a question of git's for a login of an http or https host."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """`host` is the URL without a user."""

    asks_for_password: bool
    host: str


def parse_prompt(text: str) -> Prompt:
    """For example `Password for 'https://alice@ghe.example.com:8443': `. Raises `PromptError`."""
    words = text.split()
    if len(words) < 3 or words[0] not in ("Username", "Password"):
        raise PromptError(f'not a question of git\'s for a login: "{text}"')
    try:
        url = urlsplit(words[2].lstrip("'\"").rstrip("'\" :"))
        host = url.netloc.rpartition("@")[2]
    except ValueError:
        host = ""
    if not host or url.scheme not in ("http", "https"):
        raise PromptError(f'git asks for a login of something that is no http or https URL: "{text}"')
    return Prompt(words[0] == "Password", f"{url.scheme}://{host}{url.path}")


def answer(prompt: Prompt, token: GitToken) -> str:
    """The line for git. A host without a password takes its one secret for either."""
    return token.password if prompt.asks_for_password and token.password else token.username


class Tokens(Protocol):
    """`agent.control.RestClient`, as far as it is used here."""

    async def git_token(self, match: str, *, listen: bool = False) -> GitToken:
        """See there."""


async def token_for(
    prompt: Prompt,
    tokens: Tokens,
    clock: Clock,
    *,
    tell: Callable[[str], None],
    may_repeat: Callable[[Exception], bool],
    patient: bool = True,
) -> GitToken | None:
    """A token that logs in at the prompt's host; waits, if `patient`, until the owner has authorised it, else None.

    `tell` takes what the user has to know. The first request's errors are the caller's; later ones are repeated, as
    long as `may_repeat` says so.
    """
    token = await tokens.git_token(prompt.host)
    if not token.url:
        return token
    tell(f"Open the following URL to authenticate with Git:\n{token.url}")
    if not patient:
        return None
    backoff = Backoff(first=POLL_FIRST, cap=POLL_CAP)
    while True:
        try:
            token = await tokens.git_token(prompt.host, listen=True)
        except Exception as error:
            if not may_repeat(error):
                raise
        else:
            if not token.url:
                tell("You've been authenticated with Git!")
                return token
        await clock.sleep(backoff.next())
