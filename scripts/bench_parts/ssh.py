"""SSH into a workspace with OpenSSH; agent, the client's node and `ssh` are processes of their own.
Beside it, a server of plain asyncssh on loopback TCP in the same run."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from agent.testing.deployment import Deployment
from agent.testing.processes import Component

SIZE = 60_000_000
RUNS = 2
FIRST = 10
SESSIONS = 100

PLAIN = """
import asyncio, asyncssh, sys

async def handle(process):
    child = await asyncio.create_subprocess_shell(
        process.command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    await process.redirect(stdin=child.stdin, stdout=child.stdout)
    status = await child.wait()
    await process.stdout.drain()
    process.exit(status)

class Server(asyncssh.SSHServer):
    def begin_auth(self, username):
        return False

async def main():
    key = asyncssh.generate_private_key("ssh-rsa")
    listener = await asyncssh.listen("127.0.0.1", int(sys.argv[1]), server_factory=Server, server_host_keys=[key],
        process_factory=handle, encoding=None, line_editor=False, gss_host=None)
    await listener.wait_closed()

asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class _Road:
    port: int
    """Where OpenSSH connects to."""
    server: int
    """The process of the SSH server."""

    def command(self, command: str) -> list[str]:
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes")
        flags = [flag for option in options for flag in ("-o", option)]
        return ["ssh", "-F", "none", *flags, "-p", str(self.port), "x@127.0.0.1", command]

    async def download(self, size: int) -> float:
        """MB/s out of the workspace."""
        process = await asyncio.create_subprocess_exec(
            *self.command(f"echo; head -c {size} /dev/zero"), stdout=subprocess.PIPE, limit=1 << 20
        )
        assert process.stdout is not None
        await process.stdout.readexactly(1)
        began, got = time.perf_counter(), 0
        while data := await process.stdout.read(1 << 20):
            got += len(data)
        took = time.perf_counter() - began
        assert (await process.wait(), got) == (0, size)
        return size / 1e6 / took

    async def upload(self, size: int) -> float:
        """MB/s into it."""
        process = await asyncio.create_subprocess_exec(
            *self.command(f"echo; head -c {size} | wc -c"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdin is not None
        await process.stdout.readline()
        began = time.perf_counter()
        piece = bytes(1 << 16)
        for _ in range(size // len(piece) + 1):
            process.stdin.write(piece)
            await process.stdin.drain()
        assert int(await process.stdout.readline()) == size
        took = time.perf_counter() - began
        process.stdin.close()
        await process.wait()
        return size / 1e6 / took

    async def first_byte(self) -> float:
        """Seconds from the start of `ssh` to the first byte of its command's output."""
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *self.command("echo x"), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        assert process.stdout is not None
        await process.stdout.readexactly(2)
        took = time.perf_counter() - began
        await process.wait()
        return took

    async def memory(self, sessions: int) -> tuple[float, float]:
        """MB of the server's process more with that many connections, and after them."""
        server = psutil.Process(self.server)
        before = server.memory_info().rss
        processes = [
            await asyncio.create_subprocess_exec(
                *self.command("echo x; cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for _ in range(sessions)
        ]
        for process in processes:
            assert process.stdout is not None
            await process.stdout.readexactly(2)
        during = server.memory_info().rss
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in processes:
            await process.wait()
        await asyncio.sleep(1)
        return (during - before) / 1e6, (server.memory_info().rss - before) / 1e6


@asynccontextmanager
async def _workspace(*, direct: bool) -> AsyncIterator[_Road]:
    options = [] if direct else ["--disable-direct-connections"]
    with tempfile.TemporaryDirectory(prefix="workspace-agent-bench-") as directory:
        async with Deployment(Path(directory), server_options=options) as running:
            created = await running.create_agent(json.dumps({"name": "bench"}))
            agent = running.agent(created)
            await agent.start()
            await running.wait_for(created, 30, lifecycle_state={"ready"})
            port = _free_port()
            arguments = ["port-forward", created.name, "--tcp", f"127.0.0.1:{port}:22"]
            environment = {
                **running.environment,
                "CODER_URL": running.url,
                "CODER_SESSION_TOKEN": running.token,
            }
            node = Component("node", arguments, directory=Path(directory), environment=environment)
            await node.start()
            try:
                await _accepts(port)
                road = _Road(port, agent.pid)
                await road.first_byte()
                await asyncio.sleep(3 if direct else 0)  # until a direct path is found
                yield road
            finally:
                await node.kill()


@asynccontextmanager
async def _plain() -> AsyncIterator[_Road]:
    port = _free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PLAIN, str(port))
    try:
        await _accepts(port)
        yield _Road(port, process.pid)
    finally:
        process.kill()
        await process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


async def _accepts(port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def measure(*, size: int = SIZE, runs: int = RUNS, sessions: int = SESSIONS) -> dict[str, float]:
    """MB/s, milliseconds and MB."""
    figures: dict[str, float] = {}
    async with _plain() as road:
        figures |= await _look("plain asyncssh, loopback TCP", road, size, runs, sessions)
    for direct in (True, False):
        async with _workspace(direct=direct) as road:
            name = "direct" if direct else "relayed"
            figures |= await _look(name, road, size, runs, sessions if direct else 0)
    return figures


async def _look(name: str, road: _Road, size: int, runs: int, sessions: int) -> dict[str, float]:
    figures = {
        f"first byte ms, {name}": statistics.median([await road.first_byte() for _ in range(FIRST)]) * 1e3,
    }
    if sessions:  # before the bulk leaves memory that can be used again
        during, after = await road.memory(sessions)
        figures |= {f"{sessions} connections MB, {name}": during, f"after them MB, {name}": after}
    return figures | {
        f"download MB/s, {name}": max([await road.download(size) for _ in range(runs)]),
        f"upload MB/s, {name}": max([await road.upload(size) for _ in range(runs)]),
    }


if __name__ == "__main__":
    for name, value in asyncio.run(measure(runs=int(os.environ.get("RUNS", RUNS)))).items():
        print(f"{name:50} {value:10.1f}")
