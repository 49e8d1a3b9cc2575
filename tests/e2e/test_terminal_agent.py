"""Terminals through everything: a client's node, the server, an agent's process that is killed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from yarl import URL

from agent.clock import SystemClock
from agent.protocol.pty import Init, encode_request
from agent.tailnet.client import connect
from agent.tailnet.streams import TailnetStream
from agent.testing.deployment import Deployment

pytestmark = pytest.mark.timeout(120)


class Client:
    """One attachment."""

    def __init__(self, stream: TailnetStream) -> None:
        self._stream = stream
        self.shown = b""

    async def type(self, text: str) -> None:
        await self._stream.write(encode_request(text))

    async def match(self, pattern: bytes) -> re.Match[bytes]:
        async with asyncio.timeout(30):
            while (found := re.search(pattern, self.shown)) is None:
                data = await self._stream.read()
                assert data, f"the terminal ended; it showed {self.shown!r}"
                self.shown += data
        return found

    async def end(self) -> None:
        async with asyncio.timeout(20):
            while data := await self._stream.read():
                self.shown += data


async def gone(process: int) -> None:
    async with asyncio.timeout(10):
        while os.path.exists(f"/proc/{process}"):
            await asyncio.sleep(0.01)


@pytest.mark.spec("terminal-ssh-http", 5, 14, 19)
async def test_a_shell_outlives_its_agent_and_ends_with_a_shutdown(tmp_path: Path) -> None:
    definition = {"name": "dev", "env": {"X": "$NOTSET", "Y": "set"}}
    async with Deployment(tmp_path) as running:
        created = await running.create_agent(json.dumps(definition))
        agent = running.agent(created)
        await agent.start()
        await running.wait_for(created, 30, lifecycle_state={"ready"})
        init = Init(uuid4(), 24, 80)
        async with connect(URL(running.url), running.token, UUID(created.id), SystemClock()) as road:

            async def attach(wanted: Init) -> Client:
                stream = await road.dial(2, 30)
                await stream.write(wanted.encode())
                return Client(stream)

            command = await attach(Init(uuid4(), 24, 80, "echo [$X] [$Y] ${PATH%%:*}"))
            await command.end()
            assert b"[] [set] " in command.shown
            assert command.shown.rstrip().endswith(b"coder-script-data/bin")

            client = await attach(init)
            await client.type("x=kept; echo pid $$\r")
            process = int((await client.match(rb"pid (\d+)\r\n"))[1])

            await agent.kill()
            assert os.path.exists(f"/proc/{process}")
            await agent.start()
            await running.wait_for(created, 30, lifecycle_state={"ready"})

            again = await attach(init)
            await again.match(rb"pid %d\r\n" % process)
            await again.type("echo $$ $x$x\r")
            await again.match(rb"%d keptkept" % process)

            # The same, in good order: it makes way for a newer agent.
            agent.send_signal(signal.SIGUSR2)
            assert await agent.wait() == 0
            assert os.path.exists(f"/proc/{process}")
            await agent.start()
            await running.wait_for(created, 30, status={"connected"})
            later = await attach(init)
            await later.type("echo $$ $x$x$x\r")
            await later.match(rb"%d keptkeptkept" % process)

            stopping = asyncio.create_task(agent.stop(30))
            await gone(process)
            assert await stopping == 0
