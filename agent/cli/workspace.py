"""What the commands that run inside a workspace have in common (daemon.md §6): who they are, and how they end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

import click
from yarl import URL

from agent import lean_aiohttp  # noqa: F401 - before anything else imports aiohttp
from agent.clock import Clock, SystemClock, wait_for
from agent.control import ControlError, ControlHttp, HeaderError, RestClient, run_header_command
from agent.daemon.config import AgentConfig, ConfigError, parse_config
from agent.daemon.credentials import credential_source
from agent.identity import IdentityError

T = TypeVar("T")

TOKEN_LIMIT = 10.0
"""Seconds to get a token in (agent-api.md §5.2): somebody is waiting for the command."""

ServerErrors = (ControlError, ConfigError, IdentityError, HeaderError)
"""Whatever may keep `server` from being of use. The texts are for people."""


@asynccontextmanager
async def server() -> AsyncIterator[RestClient]:
    """The agent's control plane, as the agent's own variables describe it, headers included (quirk Q16)."""
    config, clock = parse_config({}, os.environ), SystemClock()
    headers = config.header
    if config.header_command:
        headers += await run_header_command(config.header_command, config.url, os.environ, clock)
    http = ControlHttp(URL(config.url), headers, clock)
    try:
        http.token = await _token(config, http, clock)
        yield RestClient(http, clock)
    finally:
        await http.aclose()


async def _token(config: AgentConfig, http: ControlHttp, clock: Clock) -> str:
    source = await credential_source(config, http, os.environ, clock)
    try:
        return await wait_for(clock, source.obtain(), TOKEN_LIMIT)
    except (TimeoutError, IdentityError) as error:
        if config.token:
            # The agent's own, from the time when it started this shell. In a container inside of the workspace, where
            # no metadata service can be reached, it is all that there is.
            return config.token
        if isinstance(error, TimeoutError):
            raise IdentityError(f"no token for {config.auth} within {TOKEN_LIMIT:g} s") from None
        raise


def run(work: Awaitable[T]) -> T:
    """The result of `work`. SIGINT, SIGTERM and SIGHUP cancel it, and end the process with code 1."""

    async def main() -> T:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)
        return await task

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        sys.exit(1)


def say(text: str) -> None:
    """To the person in front of git, who sees only standard error."""
    click.echo(text, err=True)
