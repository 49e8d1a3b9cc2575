"""What the commands that talk to an agent have in common: finding it, connecting to it, and being interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING
from uuid import UUID

from agent.cli import session
from agent.cli.command import segment
from agent.cli.errors import CliError

if TYPE_CHECKING:
    from agent.tailnet.client import AgentConnection

CONNECT_LIMIT = 30.0
"""Seconds for the first word with an agent."""


@asynccontextmanager
async def connected(agent: str, *, direct: bool = True, limit: float = CONNECT_LIMIT) -> AsyncIterator[AgentConnection]:
    """A connection to the agent that a person named, by its name or id, which answered just now. Raises `CliError`."""
    from yarl import URL

    from agent.clock import SystemClock
    from agent.tailnet.client import ServerError, connect
    from agent.tailnet.tailnet import TailnetError

    current = session.load()
    with waiting(f"Connecting to {agent}"):
        ident = await _find(current, agent)
    try:
        async with connect(URL(current.url), current.token, ident, SystemClock(), direct=direct) as connection:
            with waiting(f"Waiting for {agent}"):
                await connection.reachable(limit)
            yield connection
    except ServerError as error:
        if error.status == 401:
            raise CliError(f"{error}; run: workspace-agent login {current.url}") from error
        raise CliError(f"{agent}: {error}") from error
    except TailnetError as error:
        raise CliError(f"{agent}: {error}") from error


async def _find(current: session.Session, agent: str) -> UUID:
    from agent.cli.client import Client

    # An id is asked of no one: other servers have no endpoint for names.
    with contextlib.suppress(ValueError):
        return UUID(agent)
    async with Client(current) as client:
        return UUID((await client.get(f"agents/{segment(agent)}"))["id"])


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Says at a terminal what is being waited for, as long as it is."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{text} …"):
        yield


@contextmanager
def interruptible(*others: signal.Signals) -> Iterator[asyncio.Event]:
    """An event that Ctrl-C, SIGTERM or one of `others` sets, for commands that end by it in good order. The second
    ends them hard."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    handled = (signal.SIGINT, signal.SIGTERM, *others)

    def stop() -> None:
        event.set()
        for number in handled:
            loop.remove_signal_handler(number)

    for number in handled:
        loop.add_signal_handler(number, stop)
    try:
        yield event
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


async def pause(seconds: float, stopped: asyncio.Event) -> None:
    """Wait that long, or until the command is interrupted."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stopped.wait()
