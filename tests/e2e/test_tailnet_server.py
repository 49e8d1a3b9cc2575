"""An agent's node and a client's node that know nothing but the real server: its coordinator, its map, its relay."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import UUID

import aiohttp
import pytest
from yarl import URL

from agent.api import methods
from agent.api.proto import tailnet_pb2 as pb
from agent.api.tailnet import TAILSCALE_PREFIX, agent_addresses
from agent.clock import SystemClock
from agent.control import ControlHttp, ControlPlane
from agent.identity import FixedToken
from agent.rpc import MAX_MESSAGE, CallError, Duplex, RpcClient, WebSocketTransport
from agent.tailnet.coordination import Coordinator, follow_derp_map
from agent.tailnet.derp_dial import DialOptions
from agent.tailnet.derp_map import DerpMap
from agent.tailnet.streams import TailnetStream
from agent.tailnet.tailnet import Tailnet
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


class Guest:
    """A client of one agent, as a command line program is one."""

    def __init__(self, deployment: Deployment, agent: UUID, *, direct: bool) -> None:
        self.deployment = deployment
        self.agent = agent
        self.address = TAILSCALE_PREFIX + os.urandom(10)
        self.tailnet = Tailnet([self.address], CLOCK, options=DialOptions(), direct=direct)
        self.coordinator = Coordinator(self.tailnet, UUID(bytes=self.address), CLOCK)
        self.tailnet.start()
        self.updates: list[pb.CoordinateResponse.PeerUpdate] = []

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        headers = {"Coder-Session-Token": self.deployment.token}
        async with aiohttp.ClientSession(headers=headers) as session:
            async with session.get(f"{self.deployment.url}/api/v2/workspaceagents/{self.agent}/connection") as answer:
                assert "derp_map" in json.loads(await answer.text())
            url = f"{self.deployment.url}/api/v2/workspaceagents/{self.agent}/coordinate?version=2.0"
            socket = await session.ws_connect(url, max_msg_size=MAX_MESSAGE)
            client = RpcClient(WebSocketTransport(socket), CLOCK)
            await client.start()
            tasks = [
                asyncio.create_task(
                    follow_derp_map(
                        client, lambda found: self.tailnet.update_derp_map(found.rewritten(URL(self.deployment.url)))
                    )
                )
            ]
            try:
                async with await client.duplex(methods.COORDINATE.path) as call:
                    tunnel = pb.CoordinateRequest.Tunnel(id=self.agent.bytes)
                    await call.send(pb.CoordinateRequest(add_tunnel=tunnel).SerializeToString())
                    tasks.append(asyncio.create_task(self._tell(call)))
                    tasks.append(asyncio.create_task(self._listen(call)))
                    yield
                    request = pb.CoordinateRequest(disconnect=pb.CoordinateRequest.Disconnect())
                    with suppress(CallError):  # a test may have killed the server
                        await call.send(request.SerializeToString())
                        await asyncio.wait({tasks[-1]}, timeout=5)
            finally:
                for task in tasks:
                    task.cancel()
                await client.aclose()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, call: Duplex) -> None:
        state = None
        while True:
            state = await self.tailnet.node_changed(state)
            node = self.coordinator._node(state)
            request = pb.CoordinateRequest(update_self=pb.CoordinateRequest.UpdateSelf(node=node))
            await call.send(request.SerializeToString())

    async def _listen(self, call: Duplex) -> None:
        while (message := await call.receive()) is not None:
            for update in pb.CoordinateResponse.FromString(message).peer_updates:
                self.updates.append(update)
                if update.kind == pb.CoordinateResponse.PeerUpdate.NODE:
                    self.coordinator._set(update.id, update.node)

    async def agent_known(self) -> None:
        async with asyncio.timeout(10):
            while not self.coordinator.peers:
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
        guest = Guest(running, host.agent, direct=direct)
        try:
            async with host.connected(), guest.connected():
                await guest.agent_known()
                began = time.monotonic()
                await guest.tailnet.reach(host.addresses[0], 10)
                assert time.monotonic() - began < 4  # a lost first handshake would have cost 5 s
                await guest.tailnet.reach(host.addresses[1], 10)
                stream = await guest.tailnet.dial_tcp(host.addresses[0], 7, 10)
                await turn(stream, os.urandom(2_000_000))
                kinds = {update.kind for update in guest.updates}
                assert pb.CoordinateResponse.PeerUpdate.READY_FOR_HANDSHAKE in kinds
                await running.server.kill()
                await running.start_server()
            async with host.connected(), guest.connected():
                await turn(stream, b"still the same connection")
                other = await guest.tailnet.dial_tcp(host.addresses[0], 7, 20)
                await turn(other, b"and a new one")
        finally:
            await guest.tailnet.aclose()
            await host.tailnet.aclose()


@pytest.mark.spec("tailnet", 14)
async def test_a_client_that_leaves_is_forgotten_at_once(tmp_path: Path) -> None:
    async with Deployment(tmp_path) as running:
        created = await running.create_agent(json.dumps({"name": "dev"}))
        host = Host(running, created, direct=False)
        guest = Guest(running, host.agent, direct=False)
        try:
            async with host.connected():
                async with guest.connected():
                    await guest.agent_known()
                    await guest.tailnet.reach(host.addresses[0], 10)
                    assert host.coordinator.peers == 1
                async with asyncio.timeout(5):
                    while host.coordinator.peers:
                        await asyncio.sleep(0.01)
        finally:
            await guest.tailnet.aclose()
            await host.tailnet.aclose()


async def test_an_agent_that_leaves_says_so(tmp_path: Path) -> None:
    async with Deployment(tmp_path) as running:
        created = await running.create_agent(json.dumps({"name": "dev"}))
        host = Host(running, created, direct=False)
        guest = Guest(running, host.agent, direct=False)
        try:
            async with guest.connected(), host.connected():
                await guest.agent_known()
                await host.coordinator.leave()
                async with asyncio.timeout(5):
                    while guest.updates[-1].kind != pb.CoordinateResponse.PeerUpdate.DISCONNECTED:
                        await asyncio.sleep(0.01)
        finally:
            await guest.tailnet.aclose()
            await host.tailnet.aclose()
