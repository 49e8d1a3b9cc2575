"""A terminal from its program to a WebSocket client: agent, server and client are processes of their own. Beside it, a
raw terminal read in the same run."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import aiohttp
import psutil
import terminal_local

from agent.testing.deployment import CreatedAgent, Deployment
from agent.testing.slow_line import slow_line
from agent.testing.terminal_socket import TerminalSocket, terminal_socket

SIZE = 60_000_000
RUNS = 3
ECHOES = 1000
SLOW = 100_000
"""Bytes a second."""
FLOOD = 3.0
SESSIONS, VIEWERS = 50, 4


@dataclass
class _Road:
    running: Deployment
    http: aiohttp.ClientSession
    created: CreatedAgent
    agent_pid: int

    @asynccontextmanager
    async def terminal(
        self, url: str = "", command: str = "", *, acknowledge: bool = True
    ) -> AsyncIterator[TerminalSocket]:
        options = {"command": command} if command else {}
        async with terminal_socket(
            self.http,
            url or self.running.url,
            self.running.token,
            self.created.id,
            uuid4(),
            acknowledge=acknowledge,
            **options,
        ) as client:
            yield client


@asynccontextmanager
async def _road(*, direct: bool) -> AsyncIterator[_Road]:
    options = [] if direct else ["--disable-direct-connections"]
    with tempfile.TemporaryDirectory(prefix="workspace-agent-bench-") as directory:
        async with Deployment(Path(directory), server_options=options) as running:
            created = await running.create_agent(json.dumps({"name": "bench"}))
            agent = running.agent(created)
            await agent.start()
            await running.wait_for(created, 30, lifecycle_state={"ready"})
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector) as http:
                road = _Road(running, http, created, agent.pid)
                async with road.terminal(command="echo; sleep 4") as client:
                    await client.match(b"\r\n")
                    await asyncio.sleep(3 if direct else 0)  # until a direct path is found
                yield road


async def measure() -> dict[str, float]:
    """Rates, latencies and memory. Milliseconds but for the raw terminal."""
    raw = await asyncio.to_thread(terminal_local._raw_echo)
    figures = {
        "raw terminal, output MB/s": max([await asyncio.to_thread(terminal_local._raw_output) for _ in range(RUNS)]),
        "raw terminal, echo p50 ms": statistics.median(raw) * 1e3,
    }
    for way in ("direct", "relayed"):
        async with _road(direct=way == "direct") as road:
            rates = [await _output(road) for _ in range(RUNS)]
            figures[f"output MB/s, {way}"] = max(rates)
            echoes = sorted(await _echo(road))
            figures[f"echo p50 ms, {way}"] = statistics.median(echoes) * 1e3
            figures[f"echo p99 ms, {way}"] = echoes[len(echoes) * 99 // 100] * 1e3
            figures |= {f"{name}, {way}": value for name, value in (await _interrupts(road)).items()}
            if way == "direct":
                figures |= await _slow_beside_fast(road)
                figures |= await _memory(road)
    return figures


async def _output(road: _Road, *, acknowledge: bool = True) -> float:
    began = 0.0
    async with road.terminal(command=f"stty raw; head -c {SIZE} /dev/zero", acknowledge=acknowledge) as client:

        def drew() -> None:
            nonlocal began
            began = began or time.perf_counter()

        client.drew = drew
        await client.ended(120)
        assert client.received == SIZE
        return SIZE / 1e6 / (time.perf_counter() - began)


async def _echo(road: _Road) -> list[float]:
    times = []
    arrived = asyncio.Event()
    async with road.terminal(command="echo ready; cat > /dev/null") as client:
        await client.match(b"ready\r\n")
        client.drew = arrived.set
        for number in range(ECHOES):
            await asyncio.sleep(0.003)
            arrived.clear()
            began = time.perf_counter()
            await client.type("\r" if number % 50 == 49 else "x")
            await arrived.wait()
            times.append(time.perf_counter() - began)
    return times


async def _interrupts(road: _Road) -> dict[str, float]:
    """From Ctrl-C to the line that the shell says then, while a program floods the terminal."""
    port = int(road.running.url.rpartition(":")[2])
    found = {}
    for name, rate, delay in (("fast", 0.0, 0.0), ("100 KB/s", SLOW, 0.0), ("100 KB/s, 100 ms away", SLOW, 0.05)):
        for acknowledge in (True, False) if rate else (True,):
            async with slow_line(port, rate, delay) as narrow:
                url = f"http://127.0.0.1:{narrow}" if rate else road.running.url
                kind = "" if acknowledge else ", no acknowledgements"
                waits = [await _interrupt(road, url, acknowledge=acknowledge) for _ in range(3)]
                found[f"Ctrl-C to silence ms, {name}{kind}"] = max(waits) * 1e3
    return found


async def _interrupt(road: _Road, url: str, *, acknowledge: bool) -> float:
    command = "trap 'echo sil''ence; exit' INT; while :; do yes; done"
    async with road.terminal(url, "bash -c " + repr(command).replace("'\"'", "'"), acknowledge=acknowledge) as client:
        await client.match(b"y\r\ny\r\n")
        await asyncio.sleep(FLOOD)
        client.shown.clear()
        began = time.perf_counter()
        await client.type("\x03")
        await client.match(b"silence")
        return time.perf_counter() - began


async def _slow_beside_fast(road: _Road) -> dict[str, float]:
    terminal = uuid4()
    common = (road.http, road.running.url, road.running.token, road.created.id, terminal)
    async with terminal_socket(*common, command=f"stty raw; echo; sleep 1; head -c {SIZE} /dev/zero") as fast:
        await fast.match(b"\n")
        async with terminal_socket(*common) as slow:
            slow.reads.clear()
            began = 0.0

            def drew() -> None:
                nonlocal began
                began = began or time.perf_counter()

            fast.drew = drew
            await fast.ended(120)
            return {"output MB/s beside a viewer that takes nothing": SIZE / 1e6 / (time.perf_counter() - began)}


async def _memory(road: _Road) -> dict[str, float]:
    processes = {"agent": psutil.Process(road.agent_pid), "server": psutil.Process(road.running.server.pid)}
    before = {name: process.memory_full_info().uss for name, process in processes.items()}
    async with AsyncExitStack() as stack:
        for _ in range(SESSIONS):
            terminal = uuid4()
            for _ in range(VIEWERS):
                client = await stack.enter_async_context(
                    terminal_socket(
                        road.http,
                        road.running.url,
                        road.running.token,
                        road.created.id,
                        terminal,
                        command="seq 20000; echo th''e-end; sleep 1000",
                    )
                )
            await client.match(b"the-end")
        await asyncio.sleep(1)
        return {
            f"{name}'s memory for {SESSIONS} terminals with {VIEWERS} viewers each, MiB": (
                process.memory_full_info().uss - before[name]
            )
            / 1048576
            for name, process in processes.items()
        }


if __name__ == "__main__":
    for what, value in asyncio.run(measure()).items():
        sys.stdout.write(f"{what}: {value:.2f}\n")
