"""Turns an asynchronous function that needs a logged-in client into a click command."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote

import click

if TYPE_CHECKING:
    from agent.cli.client import Client

P = ParamSpec("P")
T = TypeVar("T")

INTERRUPTED = 130

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work` on a loop of its own. Ctrl-C ends the command quietly with exit code 130."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def segment(text: str) -> str:
    """What a person typed as one segment of a path."""
    return quote(text, safe="")


def ask(work: Callable[[Client], Awaitable[T]]) -> T:
    """The result of `work` with a client of the server that the person is logged in at.

    The loop runs only for this: prompts belong between two calls, where they may block.
    """
    from agent.cli import session
    from agent.cli.client import Client

    async def with_client_of(current: session.Session) -> T:
        async with Client(current) as client:
            return await work(client)

    return run(with_client_of(session.load()))


def with_client(function: Callable[Concatenate[Client, P], Awaitable[None]]) -> Callable[P, None]:
    """A command that needs the client from its beginning to its end."""

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        ask(lambda client: function(client, *args, **kwargs))

    return command
