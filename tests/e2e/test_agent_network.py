"""Clients reach the workspace through the real agent and the real server, whatever happens to either."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest
from yarl import URL

from agent.api.tailnet import agent_addresses
from agent.clock import SystemClock
from agent.protocol.ip import Datagram
from agent.protocol.tcp import TcpError
from agent.tailnet.client import AgentConnection, connect
from agent.tailnet.streams import TailnetStream
from agent.tailnet.tailnet import TailnetError
from agent.testing.deployment import CreatedAgent, Deployment
from agent.testing.processes import Component

CLOCK = SystemClock()


class UdpEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self.transport.sendto(data, address)


@asynccontextmanager
async def listener() -> AsyncIterator[int]:
    """A port of the workspace that echoes over TCP and UDP."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass  # the agent reset it
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(UdpEcho, local_addr=("127.0.0.1", port))
    try:
        yield port
    finally:
        transport.close()
        server.close()


async def start(running: Deployment, name: str = "dev", *options: str) -> tuple[CreatedAgent, Component]:
    created = await running.create_agent(json.dumps({"name": name}))
    process = running.agent(created, *options)
    await process.start()
    return created, process


def client(running: Deployment, agent: CreatedAgent, *, direct: bool) -> AbstractAsyncContextManager[AgentConnection]:
    return connect(URL(running.url), running.token, UUID(agent.id), CLOCK, direct=direct)


async def turn(stream: TailnetStream, text: bytes) -> None:
    await stream.write(text)
    async with asyncio.timeout(30):
        back = bytearray()
        while len(back) < len(text):
            part = await stream.read()
            assert part, "the stream ended"
            back += part
    assert back == text


async def turn_udp(node: AgentConnection, port: int, payload: bytes) -> None:
    answers: asyncio.Queue[Datagram] = asyncio.Queue()
    own = node.tailnet.open_udp(answers.put_nowait)
    try:
        async with asyncio.timeout(10):
            while answers.empty():
                node.tailnet.send_datagram(own, node.address, port, payload)
                await asyncio.sleep(0.2)
        assert answers.get_nowait().payload == payload
    finally:
        node.tailnet.close_udp(own)


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def goes_directly(node: AgentConnection) -> bool | None:
    """None while the path that was trusted does not answer."""
    try:
        return (await node.ping(2)).endpoint is not None
    except TailnetError:
        return None


@pytest.mark.spec("tailnet", 14, 48, 53, 54, 61, 62, 64)
@pytest.mark.parametrize("direct", [False, True], ids=["relayed", "direct"])
async def test_the_workspace_is_reached_and_streams_survive_the_server(tmp_path: Path, direct: bool) -> None:
    async with Deployment(tmp_path) as running, listener() as port:
        created, process = await start(running)
        async with client(running, created, direct=direct) as guest:
            began = time.monotonic()
            await guest.reachable(20)
            # A first handshake that is lost, or an agent that does not say that it is ready, costs 5 s.
            assert time.monotonic() - began < 4.5
            for address in agent_addresses(UUID(created.id)):
                await guest.tailnet.reach(address, 10)
            stream = await guest.dial(port)
            await turn(stream, os.urandom(1_000_000))
            await turn_udp(guest, port, b"a datagram")
            with pytest.raises(TailnetError, match="refused"):
                await guest.dial(9)  # nobody listens there
            if direct:
                async with asyncio.timeout(10):
                    while not await goes_directly(guest):
                        await asyncio.sleep(0.1)
            else:
                assert await goes_directly(guest) is False
            await running.server.kill()
            if direct:
                await turn(stream, b"the server is not needed")
            await running.start_server()
            await turn(stream, b"still the same connection")
            await turn(await guest.dial(port), b"and a new one")
            # Both have found the new server: a goodbye reaches those that it knows.
            await running.wait_for(created, 20, status={"connected"})
            await until(lambda: not any(peer.lost_at for peer in guest._coordinator._peers._peers.values()))
            assert await process.stop(20) == 0
            with pytest.raises(TcpError):
                async with asyncio.timeout(5):
                    await stream.read()
            await until(lambda: not guest.known)
        assert "Traceback" not in process.printed()


@pytest.mark.spec("tailnet", 50)
async def test_direct_paths_are_forbidden_and_allowed_again_while_the_agent_runs(tmp_path: Path) -> None:
    async with Deployment(tmp_path) as running, listener() as port:
        created, _ = await start(running)
        async with client(running, created, direct=True) as guest:
            stream = await guest.dial(port)
            for directly, options in ((True, ()), (False, ("--disable-direct-connections",)), (True, ())):
                if options != running.server_options:
                    running.server_options = options
                    await running.server.kill()
                    await running.start_server()
                async with asyncio.timeout(40):
                    while await goes_directly(guest) is not directly:
                        await asyncio.sleep(0.1)
                await turn(stream, b"still the same connection")


@pytest.mark.spec("tailnet", 63)
async def test_a_client_finds_an_agent_that_was_killed_and_started_again(tmp_path: Path) -> None:
    async with Deployment(tmp_path) as running, listener() as port:
        created, process = await start(running)
        async with client(running, created, direct=True) as guest:
            stream = await guest.dial(port)
            await turn(stream, b"before")
            await process.kill()
            await process.start()
            with pytest.raises(TcpError):
                async with asyncio.timeout(20):
                    await stream.read()
            await turn(await guest.dial(port), b"after")


async def test_one_agent_knows_nothing_of_the_other(tmp_path: Path) -> None:
    async with Deployment(tmp_path) as running, listener() as port:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as free:
            free.bind(("::", 0))
            option = f"--tailnet-listen-port={free.getsockname()[1]}"
        # On one machine only one of them gets the port that both are told.
        (one, holder), (two, late) = [await start(running, name, option) for name in ("one", "two")]
        async with client(running, one, direct=True) as first, client(running, two, direct=False) as second:
            streams = await asyncio.gather(first.dial(port), second.dial(port))
            await asyncio.gather(*(turn(stream, os.urandom(100_000)) for stream in streams))
            with pytest.raises(TailnetError):
                await first.tailnet.reach(second.address, 1)
        assert "another one is used" in holder.printed() + late.printed()
