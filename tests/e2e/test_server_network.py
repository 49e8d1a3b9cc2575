"""The server reaches its agents: a real server process, and nodes that stand for agents."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import aiohttp
import pytest

from agent.testing.deployment import CreatedAgent, Deployment
from agent.testing.processes import Component
from tests.e2e.test_tailnet_server import Host

PROGRAM = Path(__file__).with_name("network_server.py")
ECHO = 7


class ServerWithWindow(Component):
    """A server of which a test sees more; `options` are added to what it is started with."""

    program = (sys.executable, str(PROGRAM))
    options: ClassVar[Sequence[str]] = ()

    async def start(self) -> None:
        self.arguments = [*self.arguments, *self.options]
        await super().start()


class Reached:
    """A server, and what goes through its own node."""

    def __init__(self, deployment: Deployment, http: aiohttp.ClientSession) -> None:
        self.deployment = deployment
        self._http = http

    async def _window(self) -> str:
        found = await self.deployment.server.wait_for_output(r"window at (http://\S+)", 5)
        return found[1]

    @asynccontextmanager
    async def dial(self, created: CreatedAgent | str, port: int = ECHO, timeout: float = 20) -> AsyncIterator[Piped]:
        ident = created if isinstance(created, str) else created.id
        url = f"{await self._window()}/dial/{ident}/{port}?timeout={timeout}"
        async with self._http.ws_connect(url, max_msg_size=0) as socket:
            yield Piped(socket)

    async def ping(self, created: CreatedAgent) -> Any:
        async with self._http.get(f"{await self._window()}/ping/{created.id}") as answer:
            text = await answer.text()
            assert answer.status == 200, text
            return json.loads(text)

    async def until_direct(self, created: CreatedAgent) -> None:
        async with asyncio.timeout(10):
            while not (await self.ping(created))["path"]["endpoint"]:
                await asyncio.sleep(0.05)


class Piped:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def connected(self) -> None:
        message = await self._socket.receive(timeout=30)
        assert message.data == "connected", message

    async def refusal(self) -> str:
        """Why there is no connection, or why it ended."""
        message = await self._socket.receive(timeout=30)
        assert message.type is aiohttp.WSMsgType.CLOSE, message
        return str(message.extra)

    async def turn(self, text: bytes) -> None:
        await self._socket.send_bytes(text)
        back = b""
        while len(back) < len(text):
            message = await self._socket.receive(timeout=20)
            assert message.type is aiohttp.WSMsgType.BINARY, message
            back += message.data
        assert back == text


@asynccontextmanager
async def reached(directory: Path, *options: str) -> AsyncIterator[Reached]:
    deployment = Deployment(directory)
    deployment.server = ServerWithWindow("server", [], directory=directory, environment=deployment.environment)
    deployment.server.options = options  # type: ignore[misc]
    connector = aiohttp.TCPConnector(limit=0)
    async with deployment, aiohttp.ClientSession(connector=connector) as http:
        yield Reached(deployment, http)


@asynccontextmanager
async def host(running: Reached, created: CreatedAgent, *, direct: bool = False) -> AsyncIterator[Host]:
    """A fresh node, as each process of an agent has one."""
    made = Host(running.deployment, created, direct=direct)
    try:
        yield made
    finally:
        await made.tailnet.aclose()


@pytest.mark.spec("tailnet", 64)
@pytest.mark.parametrize("direct", [False, True], ids=["relayed", "direct"])
async def test_the_server_reaches_an_agent_again_after_its_own_end(tmp_path: Path, direct: bool) -> None:
    options = [] if direct else ["--disable-direct-connections"]
    async with reached(tmp_path, *options) as running:
        created = await running.deployment.create_agent(json.dumps({"name": "dev"}))
        async with host(running, created, direct=direct) as node:
            async with node.connected():
                began = time.monotonic()
                async with running.dial(created) as stream:
                    await stream.connected()
                    assert time.monotonic() - began < 3  # a lost first handshake would have cost 5 s
                    await stream.turn(os.urandom(2_000_000))
                    answer = await running.ping(created)
                    assert answer["answered"]["latency"] < 1
                    if direct:
                        await running.until_direct(created)
                    else:
                        assert answer["path"]["relay"] == answer["answered"]["relay"] == "Embedded Relay"
                async with running.dial(created, 9) as stream:
                    assert (
                        await stream.refusal() == "PortRefusedError dial: port 9 of the workspace refuses connections"
                    )
                await running.deployment.server.kill()
                await running.deployment.start_server()
            async with node.connected(), running.dial(created) as stream:
                await stream.connected()
                await stream.turn(b"the server is another one now")


async def test_a_dial_waits_for_an_agent_that_is_about_to_come(tmp_path: Path) -> None:
    async with reached(tmp_path) as running:
        created = await running.deployment.create_agent(json.dumps({"name": "dev"}))
        async with running.dial(created, timeout=0.5) as stream:
            assert (
                "dial workspace agent: the agent is not connected to this server (waited 0.5 s)"
                in await stream.refusal()
            )
        async with running.dial(created) as stream:
            await asyncio.sleep(0.5)
            async with host(running, created) as node, node.connected():
                await stream.connected()
                await stream.turn(b"there you are")


async def test_an_agent_that_restarts_is_reached_at_once(tmp_path: Path) -> None:
    async with reached(tmp_path) as running:
        created = await running.deployment.create_agent(json.dumps({"name": "dev"}))
        async with host(running, created) as first, first.connected(), running.dial(created) as stream:
            await stream.connected()
            await stream.turn(b"before")
            # The process is gone, and the next one is there before the control plane has noticed.
            await first.tailnet.aclose()
            async with host(running, created) as second, second.connected():
                began = time.monotonic()
                async with running.dial(created) as other:
                    await other.connected()
                    await other.turn(b"after")
                assert time.monotonic() - began < 3


async def test_the_server_that_stops_leaves_the_agent_at_once(tmp_path: Path) -> None:
    async with reached(tmp_path) as running:
        created = await running.deployment.create_agent(json.dumps({"name": "dev"}))
        async with host(running, created) as node, node.connected(), running.dial(created) as stream:
            await stream.connected()
            await stream.turn(b"x")
            assert node.coordinator.peers == 1
            await running.deployment.server.stop(10)
            assert node.coordinator.peers == 0


async def test_the_relay_is_found_wherever_agents_find_the_server(tmp_path: Path) -> None:
    async with reached(tmp_path, "--access-url=https://workspaces.example.invalid") as running:
        created = await running.deployment.create_agent(json.dumps({"name": "dev"}))
        async with host(running, created) as node, node.connected(), running.dial(created) as stream:
            await stream.connected()
            await stream.turn(b"through the listening socket")


async def test_agents_that_are_not_there_do_not_hold_up_the_others(tmp_path: Path) -> None:
    async with reached(tmp_path) as running:
        created = await running.deployment.create_agent(json.dumps({"name": "dev"}))

        async def use(number: int) -> None:
            async with running.dial(created) as stream:
                await stream.connected()
                await stream.turn(b"%d" % number)

        async def miss() -> None:
            async with running.dial(str(uuid4()), timeout=15) as stream:
                await stream.refusal()

        missing = [asyncio.create_task(miss()) for _ in range(100)]
        async with host(running, created) as node, node.connected():
            await asyncio.sleep(0.5)
            async with asyncio.timeout(10):
                await asyncio.gather(*map(use, range(300)))
        assert not any(task.done() for task in missing)
        for task in missing:
            task.cancel()
        await asyncio.gather(*missing, return_exceptions=True)


async def test_the_server_reaches_what_listens_in_a_workspace(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    listener = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with reached(tmp_path) as running, listener:
        created = await running.deployment.create_agent(json.dumps({"name": "dev"}))
        agent = running.deployment.agent(created)
        await agent.start()
        async with running.dial(created, port) as stream:
            await stream.connected()
            await stream.turn(os.urandom(500_000))
            await agent.kill()
            await agent.start()
            async with running.dial(created, port) as other:
                await other.connected()
                await other.turn(b"the agent is another process now")
            assert "left the network" in await stream.refusal()
        await running.deployment.server.kill()
        await running.deployment.start_server()
        async with running.dial(created, port) as stream:
            await stream.connected()
            await stream.turn(b"the server, too")
