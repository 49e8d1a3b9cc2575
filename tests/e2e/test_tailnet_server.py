"""An agent's node and a client's node that know nothing but the real server: its coordinator, its map, its relay."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from yarl import URL

from agent.api.tailnet import agent_addresses
from agent.clock import SystemClock
from agent.control import ControlHttp, ControlPlane
from agent.identity import FixedToken
from agent.tailnet.client import AgentConnection, ServerError, connect
from agent.tailnet.coordination import Coordinator, follow_derp_map
from agent.tailnet.derp_dial import DialOptions
from agent.tailnet.derp_map import DerpMap
from agent.tailnet.streams import TailnetStream
from agent.tailnet.tailnet import Tailnet, TailnetError
from agent.testing.deployment import CreatedAgent, Deployment

CLOCK = SystemClock()


class Host:
    """The agent's part of the network, without the rest of an agent."""

    def __init__(self, deployment: Deployment, created: CreatedAgent, *, direct: bool) -> None:
        self.deployment = deployment
        self.token = created.token_file.read_text().strip()
        self.agent = UUID(created.id)
        self.addresses = agent_addresses(self.agent)
        self.tailnet = Tailnet(self.addresses, CLOCK, options=DialOptions(), direct=direct, forward=True)
        self.tailnet.listen_tcp(7, self.echo)
        self.coordinator = Coordinator(self.tailnet, self.agent, CLOCK)
        self.tailnet.start()

    async def echo(self, stream: TailnetStream) -> None:
        while data := await stream.read():
            await stream.write(data)

    def take_map(self, found: DerpMap) -> None:
        self.tailnet.update_derp_map(found.rewritten(URL(self.deployment.url)))

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        http = ControlHttp(URL(self.deployment.url), (), CLOCK)
        try:
            api = await ControlPlane(http, FixedToken(self.token), CLOCK).connect()
            running = [
                asyncio.create_task(self.coordinator.run(api.client)),
                asyncio.create_task(follow_derp_map(api.client, self.take_map)),
            ]
            try:
                yield
            finally:
                await api.client.aclose()
                await asyncio.gather(*running, return_exceptions=True)
        finally:
            await http.aclose()


def guest(running: Deployment, agent: UUID, *, direct: bool) -> AbstractAsyncContextManager[AgentConnection]:
    return connect(URL(running.url), running.token, agent, CLOCK, direct=direct)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def turn(stream: TailnetStream, text: bytes) -> None:
    await stream.write(text)
    async with asyncio.timeout(20):
        back = b""
        while len(back) < len(text):
            part = await stream.read()
            assert part, "the stream ended"
            back += part
    assert back == text


@pytest.mark.spec("tailnet", 11, 64)
@pytest.mark.parametrize("direct", [False, True], ids=["relayed", "direct"])
async def test_a_client_reaches_an_agent_and_the_stream_survives_the_server(tmp_path: Path, direct: bool) -> None:
    async with Deployment(tmp_path) as running:
        created = await running.create_agent(json.dumps({"name": "dev"}))
        host = Host(running, created, direct=direct)
        try:
            async with guest(running, host.agent, direct=direct) as client:
                async with host.connected():
                    began = time.monotonic()
                    await client.reachable(10)
                    # A first handshake that is lost, or an agent that does not say that it is ready, costs 5 s.
                    assert time.monotonic() - began < 4
                    await client.tailnet.reach(host.addresses[1], 10)
                    stream = await client.dial(7, 10)
                    await turn(stream, os.urandom(2_000_000))
                    await running.server.kill()
                await running.start_server()
                async with host.connected():
                    await turn(stream, b"still the same connection")
                    other = await client.dial(7, 20)
                    await turn(other, b"and a new one")
                    await until(lambda: host.coordinator.peers == 1)
        finally:
            await host.tailnet.aclose()


@pytest.mark.spec("tailnet", 14)
async def test_a_client_that_leaves_is_forgotten_at_once(tmp_path: Path) -> None:
    async with Deployment(tmp_path) as running:
        created = await running.create_agent(json.dumps({"name": "dev"}))
        host = Host(running, created, direct=False)
        try:
            async with host.connected():
                async with guest(running, host.agent, direct=False) as client:
                    await client.reachable(10)
                    assert host.coordinator.peers == 1
                await until(lambda: not host.coordinator.peers)
        finally:
            await host.tailnet.aclose()


async def test_an_agent_that_leaves_says_so(tmp_path: Path) -> None:
    async with Deployment(tmp_path) as running:
        created = await running.create_agent(json.dumps({"name": "dev"}))
        host = Host(running, created, direct=False)
        try:
            async with guest(running, host.agent, direct=False) as client, host.connected():
                await client.reachable(10)
                await host.coordinator.leave()
                await until(lambda: not client.known)
        finally:
            await host.tailnet.aclose()


@pytest.mark.spec("tailnet", 63)
@pytest.mark.parametrize("direct", [False, True], ids=["relayed", "direct"])
async def test_a_client_finds_an_agent_that_was_killed_and_came_back_with_new_keys(
    tmp_path: Path, direct: bool
) -> None:
    async with Deployment(tmp_path) as running:
        created = await running.create_agent(json.dumps({"name": "dev"}))
        first = Host(running, created, direct=direct)
        async with guest(running, first.agent, direct=direct) as client:
            async with first.connected():
                await turn(await client.dial(7, 10), b"before")
                # As a process that is killed: its node ends, its connection breaks, nobody says goodbye.
                await first.tailnet.aclose()
            second = Host(running, created, direct=direct)
            try:
                async with second.connected():
                    began = time.monotonic()
                    await turn(await client.dial(7, 20), b"after")
                    assert time.monotonic() - began < 4
            finally:
                await second.tailnet.aclose()


async def test_a_client_that_is_refused_learns_it_at_once(tmp_path: Path) -> None:
    async with Deployment(tmp_path) as running:
        created = await running.create_agent(json.dumps({"name": "dev"}))
        for server, token, agent, text in (
            (running.url, running.token, str(uuid4()), "doesn't exist"),
            (running.url, "0123456789-0123456789012345678901", created.id, "401"),
            ("http://127.0.0.1:1", running.token, created.id, "cannot reach http://127.0.0.1:1"),
        ):
            with pytest.raises(ServerError, match=text):
                async with connect(URL(server), token, UUID(agent), CLOCK):
                    pass
        async with guest(running, UUID(created.id), direct=False) as client:
            with pytest.raises(TailnetError, match="not connected to the server"):
                await client.dial(7, 0.5)
