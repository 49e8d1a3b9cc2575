"""Many agents as protocol clients in one process, for bench.py: connects them, then sends their heartbeats.

usage: bench_clients.py SERVER_URL SECONDS < (a line: JSON list of agent tokens). Prints one JSON object when all are
connected and one with the latencies of the heartbeats after SECONDS.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time

import aiohttp

from agent.api.methods import UPDATE_STATS
from agent.api.proto import agent_pb2 as pb
from agent.api.versions import CURRENT
from agent.clock import SystemClock
from agent.rpc import RpcAgentApi, RpcClient, WebSocketTransport

PERIOD = 5.0  # seconds between the heartbeats of one agent
AT_ONCE = 20  # connections that are made at the same time


class Fleet:
    """The agents of one server."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http, self._url = http, url
        self._dialling = asyncio.Semaphore(AT_ONCE)
        self._request = pb.UpdateStatsRequest(stats=pb.Stats(connection_median_latency_ms=-0.001))
        self.latencies: list[float] = []

    async def connect(self, token: str) -> RpcAgentApi:
        async with self._dialling:
            socket = await self._http.ws_connect(
                f"{self._url}/api/v2/workspaceagents/me/rpc?role=agent&version={CURRENT}",
                headers={"Coder-Session-Token": token},
                max_msg_size=0,
            )
            client = RpcClient(WebSocketTransport(socket), SystemClock())
            await client.start()
            return RpcAgentApi(client, CURRENT)

    async def heartbeat(self, api: RpcAgentApi) -> float:
        began = time.perf_counter()
        await api.call(UPDATE_STATS, self._request, timeout=30)
        return time.perf_counter() - began

    async def heartbeats(self, api: RpcAgentApi, seconds: float) -> None:
        end = time.perf_counter() + seconds
        await asyncio.sleep(random.uniform(0, PERIOD))
        while time.perf_counter() < end:
            took = await self.heartbeat(api)
            self.latencies.append(took)
            await asyncio.sleep(PERIOD - took)


async def main(url: str, seconds: float) -> None:
    tokens: list[str] = json.loads(await asyncio.to_thread(sys.stdin.readline))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http:
        fleet = Fleet(http, url)
        first = await fleet.connect(tokens[0])
        alone = statistics.median([await fleet.heartbeat(first) for _ in range(100)])
        began = time.perf_counter()
        apis = [first, *await asyncio.gather(*(fleet.connect(token) for token in tokens[1:]))]
        await asyncio.gather(*(fleet.heartbeat(api) for api in apis))
        print(json.dumps({"seconds": time.perf_counter() - began, "alone": alone}), flush=True)
        await asyncio.gather(*(fleet.heartbeats(api, seconds) for api in apis))
        cuts = statistics.quantiles(fleet.latencies, n=100)
        print(json.dumps({"period": PERIOD, "p50": cuts[49], "p99": cuts[98]}), flush=True)
        await asyncio.gather(*(api.client.aclose() for api in apis))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
