"""Turns an asynchronous function that needs a logged-in client into a click command."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

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


def with_client(function: Callable[Concatenate[Client, P], Awaitable[None]]) -> Callable[P, None]:
    """Hands the function a client of the server that the person is logged in at."""

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        from agent.cli import session
        from agent.cli.client import Client

        async def work(current: session.Session) -> None:
            async with Client(current) as client:
                await function(client, *args, **kwargs)

        run(work(session.load()))

    return command
