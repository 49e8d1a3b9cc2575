"""Speed tests with the code that other clients and agents run."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.protocol.speedtest import BLOCK, Direction
from agent.tailnet.speedtest import measure
from tests.e2e.test_cli_network import World, deployed

LIMIT = 40.0


@asynccontextmanager
async def peer(program: Path, *arguments: str) -> AsyncIterator[asyncio.StreamReader]:
    """What the foreign program prints; it ends with the block."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(program, *arguments, stdin=pipe, stdout=pipe)
    try:
        assert process.stdout is not None
        yield process.stdout
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@pytest.mark.spec("tailnet", 55, 61)
@pytest.mark.spec("terminal-ssh-http", 48)
async def test_a_foreign_client_tests_our_agent(peer_program: Path, tmp_path: Path) -> None:
    async with deployed(tmp_path) as world:
        await _both_ways(peer_program, world)


async def _both_ways(program: Path, world: World) -> None:
    _, (local,) = await world.forward("--tcp", "0:3")
    for direction in ("down", "up"):
        async with peer(program, "speedtest-client", f"127.0.0.1:{local}", direction) as output, asyncio.timeout(LIMIT):
            found = json.loads(await output.readline())
        assert found["seconds"] >= 4.9
        assert found["bytes"] >= BLOCK


@pytest.mark.parametrize("direction", list(Direction))
async def test_our_client_tests_a_foreign_agent(peer_program: Path, direction: Direction) -> None:
    async with peer(peer_program, "speedtest-server") as output, asyncio.timeout(LIMIT):
        host, _, port = (await output.readline()).decode().strip().rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        intervals = [found async for found in measure(_Stream(reader, writer), direction, 2.0, SystemClock())]
        writer.close()
        assert sum(found.size for found in intervals) >= BLOCK
        assert intervals[-1].end >= 1.9


class _Stream:
    """A connection of this machine, as one of the tailnet."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, limit: int = 262_144) -> bytes:
        return await self._reader.read(limit)

    async def write(self, data: bytes | memoryview) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def drained(self) -> None:
        await self._writer.drain()

    def shutdown_write(self) -> None:
        self._writer.write_eof()
