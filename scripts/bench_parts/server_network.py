"""The server's own node against agents' nodes in another process, through the real server and its relay."""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import UUID

import aiohttp
import psutil
from yarl import URL

from agent.api.tailnet import agent_addresses
from agent.clock import SystemClock
from agent.control import ControlHttp, ControlPlane
from agent.identity import FixedToken
from agent.server.app import listen, open_server, url_of
from agent.server.config import ServerConfig
from agent.server.listening import serving
from agent.server.network import AgentNetwork
from agent.tailnet.coordination import Coordinator, follow_derp_map
from agent.tailnet.derp_dial import DialOptions
from agent.tailnet.streams import TailnetStream
from agent.tailnet.tailnet import Tailnet

AGENTS = 100
ECHO, SOURCE = 7, 8
SIZE = 64 * 1024 * 1024
ECHOES = 1000
DIALS = 50
CLOCK = SystemClock()


# ---- the other process: the first agent has direct paths, the others have none


async def _echo(stream: TailnetStream) -> None:
    while data := await stream.read():
        await stream.write(data)


async def _source(stream: TailnetStream) -> None:
    await stream.write(bytes(SIZE))


async def _be_agent(url: URL, ident: UUID, token: str, *, direct: bool) -> None:
    node = Tailnet(agent_addresses(ident), CLOCK, options=DialOptions(), direct=direct)
    node.listen_tcp(ECHO, _echo)
    node.listen_tcp(SOURCE, _source)
    node.start()
    http = ControlHttp(url, (), CLOCK)
    try:
        api = await ControlPlane(http, FixedToken(token), CLOCK).connect()
        await asyncio.gather(
            Coordinator(node, ident, CLOCK).run(api.client),
            follow_derp_map(api.client, lambda found: node.update_derp_map(found.rewritten(url))),
        )
    finally:
        await node.aclose()
        await http.aclose()


async def _be_agents(url: str) -> None:
    given = json.loads(await asyncio.to_thread(sys.stdin.readline))
    agents = [
        asyncio.create_task(_be_agent(URL(url), UUID(ident), token, direct=number == 0))
        for number, (ident, token) in enumerate(given)
    ]
    await asyncio.to_thread(sys.stdin.read)  # until the other process is done with them, or gone
    for agent in agents:
        agent.cancel()
    await asyncio.gather(*agents, return_exceptions=True)


# ---- this process


@asynccontextmanager
async def _server(directory: Path) -> AsyncIterator[tuple[AgentNetwork, str, list[tuple[str, str]]]]:
    """Its network, its URL, and agents with their tokens."""
    config = ServerConfig(data_dir=directory, port=0, rate_limit=0)
    async with AsyncExitStack() as stack:
        bound = stack.enter_context(listen(config))
        url = url_of(bound)
        server = await stack.enter_async_context(open_server(config, CLOCK, url))
        await stack.enter_async_context(serving(server.app, bound))
        http = await stack.enter_async_context(aiohttp.ClientSession(URL(url)))
        login = {"email": "owner@localhost.invalid", "password": secrets.token_urlsafe(16)}
        async with http.post("/api/v2/users/first", json={**login, "username": "admin"}) as answer:
            answer.raise_for_status()
        async with http.post("/api/v2/users/login", json=login) as answer:
            headers = {"Coder-Session-Token": (await answer.json())["session_token"]}
        agents = []
        for number in range(AGENTS):
            definition = json.dumps({"name": f"agent-{number}"})
            async with http.post("/api/v2/agents", data=definition, headers=headers) as answer:
                created = await answer.json()
                agents.append((created["id"], created["token"]))
        yield server.network, url, agents


async def measure() -> dict[str, float]:
    """Dials, rates and memory; the processor of the other process is not this one's, unless there is but one core."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="workspace-agent-bench-") as directory:
        async with _server(Path(directory)) as (network, url, given):
            agents = await asyncio.create_subprocess_exec(sys.executable, __file__, url, stdin=-1)
            assert agents.stdin is not None
            try:
                agents.stdin.write(json.dumps(given).encode() + b"\n")
                await asyncio.sleep(3)  # they connect
                await _measure(network, [UUID(ident) for ident, _ in given], figures)
            finally:
                agents.stdin.close()
                await agents.wait()
    return figures


async def _measure(network: AgentNetwork, agents: list[UUID], figures: dict[str, float]) -> None:
    direct, relayed, *others = agents
    process = psutil.Process()
    figures["first dial of all, ms"] = await _dial(network, relayed) * 1e3
    before = process.memory_full_info().uss
    figures["dial of an agent without a tunnel, p50, ms"] = (
        statistics.median([await _dial(network, agent) for agent in others]) * 1e3
    )
    figures[f"memory for each of {len(others)} tunnels, KiB"] = (
        (process.memory_full_info().uss - before) / len(others) / 1024
    )
    stream = await network.dial(relayed, ECHO)
    figures["echo of one byte, relayed, p50, ms"] = await _trips(stream) * 1e3
    figures["agent to server, relayed, MB/s"] = await _rate(network, relayed)
    stream = await network.dial(direct, ECHO)
    async with asyncio.timeout(15):
        while (path := network.path(direct)) is None or not path.direct:
            await network.ping(direct)
            await asyncio.sleep(0.05)
    figures["echo of one byte, direct, p50, ms"] = await _trips(stream) * 1e3
    figures["agent to server, direct, MB/s"] = await _rate(network, direct)
    warm = [await _dial(network, relayed) for _ in range(DIALS)]
    figures["dial of an agent with a tunnel, p50, ms"] = statistics.median(warm) * 1e3


async def _dial(network: AgentNetwork, agent: UUID) -> float:
    began = time.perf_counter()
    stream = await network.dial(agent, ECHO)
    took = time.perf_counter() - began
    stream.close()
    return took


async def _trips(stream: TailnetStream) -> float:
    trips = []
    for _ in range(ECHOES):
        began = time.perf_counter()
        await stream.write(b"x")
        await stream.read()
        trips.append(time.perf_counter() - began)
    return statistics.median(trips)


async def _rate(network: AgentNetwork, agent: UUID) -> float:
    stream = await network.dial(agent, SOURCE)
    began, left = time.perf_counter(), SIZE
    while left:
        left -= len(await stream.read())
    stream.close()
    return SIZE / 1e6 / (time.perf_counter() - began)


if __name__ == "__main__":
    asyncio.run(_be_agents(sys.argv[1]))
