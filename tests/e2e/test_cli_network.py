"""The commands that reach an agent, with the real server, the real agent, and themselves as processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.testing.deployment import CreatedAgent, Deployment

LIMIT = 30.0


class Command:
    """One run of the console command, as a person logged in as the owner."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._errors = asyncio.create_task(process.stderr.read() if process.stderr else asyncio.sleep(0, b""))

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(LIMIT):
            line = await self.process.stdout.readline()
        if not line:
            raise AssertionError(f"it ended: {(await self._errors).decode()}")
        return line.decode().rstrip()

    async def end(self, code: int = 0) -> tuple[str, str]:
        """The rest of what it prints."""
        assert self.process.stdout is not None
        async with asyncio.timeout(LIMIT):
            output = (await self.process.stdout.read()).decode()
            errors = (await self._errors).decode()
            assert await self.process.wait() == code, output + errors
        return output, errors

    async def json(self) -> Any:
        return json.loads((await self.end())[0])


class World:
    """A server, an agent, and commands."""

    def __init__(self, running: Deployment, created: CreatedAgent) -> None:
        self.running = running
        self.created = created
        self.commands: list[Command] = []

    async def command(
        self, *arguments: str, environment: Mapping[str, str] | None = None, open_files: int = 0
    ) -> Command:
        limit = ["prlimit", f"--nofile={open_files}"] if open_files else []
        process = await asyncio.create_subprocess_exec(
            *limit,
            sys.executable,
            "-m",
            "agent",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 20,
            env={
                **os.environ,
                "CODER_URL": self.running.url,
                "CODER_SESSION_TOKEN": self.running.token,
                **(environment or {}),
            },
        )
        self.commands.append(Command(process))
        return self.commands[-1]

    async def forward(self, *arguments: str, open_files: int = 0) -> tuple[Command, list[int]]:
        """A port-forward that listens, and its local ports."""
        command = await self.command("port-forward", self.created.name, "--json", *arguments, open_files=open_files)
        first = json.loads(await command.line())
        ports = [first["local_port"]]
        while len(ports) < len(arguments) // 2:
            ports.append(json.loads(await command.line())["local_port"])
        return command, ports


@asynccontextmanager
async def deployed(directory: Path, *options: str) -> AsyncIterator[World]:
    """A server with these options, and a running agent."""
    async with Deployment(directory, server_options=options) as running:
        created = await running.create_agent(json.dumps({"name": "dev"}))
        await running.agent(created).start()
        await running.wait_for(created, 20, lifecycle_state={"ready"})
        world = World(running, created)
        try:
            yield world
        finally:
            for command in world.commands:
                if command.process.returncode is None:
                    command.process.kill()
                    await command.process.wait()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with deployed(tmp_path) as made:
        yield made


@asynccontextmanager
async def listener(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A TCP listener in the workspace, which is this machine."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads to the end, and answers only then: it needs half-close."""
    size = 0
    while data := await reader.read(1 << 18):
        size += len(data)
    writer.write(str(size).encode())
    await writer.drain()
    writer.close()


async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 18):
        writer.write(data.upper())
        await writer.drain()
    writer.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- ping


@pytest.mark.spec("tailnet", 48, 61)
async def test_a_ping_ends_when_the_connection_is_direct(world: World) -> None:
    found = await (await world.command("ping", "dev", "--json", "--wait", "0.2")).json()
    assert found["direct"]
    assert found["pings"][-1]["via"] == "direct"
    assert 1 <= found["received"] <= found["sent"] <= 10
    assert found["pings"][-1]["endpoint"].count(":") >= 1
    assert 0 < found["min_ms"] < 5000


@pytest.mark.spec("tailnet", 48, 61)
async def test_a_ping_names_the_relay_where_direct_connections_are_forbidden(tmp_path: Path) -> None:
    async with deployed(tmp_path, "--disable-direct-connections") as world:
        output, _ = await (await world.command("ping", "dev", "-n", "3", "--wait", "0.05")).end()
    lines = output.splitlines()
    assert len(lines) == 4
    assert all("through the relay DERP(" in line for line in lines[:3])
    assert lines[3].startswith("3 sent, 3 answered")
    assert lines[3].endswith("the connection is relayed")


async def test_an_interrupted_ping_tells_what_it_has(world: World) -> None:
    command = await world.command("ping", "dev", "-n", "1000", "--wait", "0.1")
    assert "pong from dev" in await command.line()
    command.process.send_signal(signal.SIGINT)
    output, _ = await command.end()
    assert "answered, min/avg/max" in output.splitlines()[-1]


async def test_who_cannot_be_reached_is_named(tmp_path: Path) -> None:
    async with Deployment(tmp_path) as running:
        created = await running.create_agent(json.dumps({"name": "away"}))
        world = World(running, created)
        _, errors = await (await world.command("ping", "nobody")).end(1)
        assert errors.startswith("error: ")
        assert "nobody" in errors
        wrong = {"CODER_SESSION_TOKEN": "0123456789-0123456789012345678901"}
        _, errors = await (await world.command("ping", created.id, environment=wrong)).end(1)
        assert "workspace-agent login" in errors
        # Ctrl-C also ends the wait for an agent that does not come.
        command = await world.command("ping", "away")
        await asyncio.sleep(1.5)
        command.process.send_signal(signal.SIGINT)
        _, errors = await command.end(130)
        assert "Traceback" not in errors


# ---- speedtest


@pytest.mark.spec("tailnet", 55, 61)
@pytest.mark.spec("terminal-ssh-http", 48)
async def test_the_speed_of_each_way_in_both_directions(world: World) -> None:
    for way, direction in itertools.product(("--direct", "--relay"), ("down", "up")):
        command = await world.command("speedtest", "dev", way, "--direction", direction, "--time", "1.5", "--json")
        found = await command.json()
        assert found["overall"]["end_time_seconds"] >= 1.5
        assert found["bytes"] >= 2 * 1024 * 1024  # other clients need a whole block
        assert found["overall"]["throughput_mbits"] > 8
        assert len(found["intervals"]) >= 2
        assert found["via"] == "direct" if way == "--direct" else found["via"].startswith("relayed by ")


async def test_lines_of_a_speed_test(world: World) -> None:
    output, _ = await (await world.command("speedtest", "dev", "--time", "0.5")).end()
    lines = output.splitlines()
    assert lines[0].lstrip().startswith("0.00-")
    assert lines[-1].count("Mbit/s") == 1
    _, errors = await (await world.command("speedtest", "dev", "--direct", "--relay")).end(2)
    assert "exclude each other" in errors


# ---- port-forward


@pytest.mark.spec("tailnet", 61)
async def test_forwards_carry_data_and_half_closes(world: World) -> None:
    async with listener(digest) as port:
        command, (local,) = await world.forward("--tcp", f"0:{port}")
        sizes = [0, 1, 3_000_000, *range(50_000, 50_040)]

        async def one(size: int) -> int:
            reader, writer = await asyncio.open_connection("127.0.0.1", local)
            writer.write(bytes(size))
            writer.write_eof()
            answer = await reader.read()
            writer.close()
            return int(answer)

        async with asyncio.timeout(LIMIT):
            assert await asyncio.gather(*map(one, sizes)) == sizes
        command.process.send_signal(signal.SIGINT)
        _, errors = await command.end()
        assert "Traceback" not in errors


@pytest.mark.spec("tailnet", 61)
async def test_forwards_carry_datagrams(world: World) -> None:
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.transport.sendto(data.upper(), addr)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    try:
        port = transport.get_extra_info("sockname")[1]
        _, (local,) = await world.forward("--udp", f"0:{port}")

        async def ask(text: bytes) -> bytes:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
                own.setblocking(False)
                own.connect(("127.0.0.1", local))
                await loop.sock_sendall(own, text)
                async with asyncio.timeout(LIMIT):
                    return await loop.sock_recv(own, 2048)

        texts = [f"sender {number}".encode() for number in range(20)]
        assert await asyncio.gather(*map(ask, texts)) == [text.upper() for text in texts]
        assert await ask(b"a" * 1232) == b"A" * 1232
    finally:
        transport.close()


async def test_a_closed_port_is_told_once_and_works_when_it_opens(world: World) -> None:
    port = free_port()
    command, (local,) = await world.forward("--tcp", f"0:{port}")
    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", local)
        async with asyncio.timeout(LIMIT):
            with pytest.raises(ConnectionResetError):
                await reader.read()
        writer.close()
    told = json.loads(await command.line())
    assert told["event"] == "problem"
    assert f"port {port}" in told["text"]
    assert "refused" in told["text"]
    server = await asyncio.start_server(upper, "127.0.0.1", port)
    async with server:
        reader, writer = await asyncio.open_connection("127.0.0.1", local)
        writer.write(b"now")
        async with asyncio.timeout(LIMIT):
            assert await reader.read(3) == b"NOW"
        writer.close()
    command.process.send_signal(signal.SIGTERM)
    output, _ = await command.end()
    assert output == ""


async def test_few_open_files_mean_few_connections_and_nothing_else(world: World) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()

    async def attempt(port: int, held: list[asyncio.StreamWriter]) -> bool:
        """Whether a new connection carries a byte."""
        # One that is not accepted at once is tried again by the kernel, and may take its time.
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(3):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            held.append(writer)
            writer.write(b"x")
            async with asyncio.timeout(3):
                return await reader.read(1) == b"x"
        return False

    held: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        remote = server.sockets[0].getsockname()[1]
        command, [port] = await world.forward("--tcp", f"0:{remote}", open_files=64)
        async with asyncio.timeout(LIMIT):
            worked = await asyncio.gather(*(attempt(port, held) for _ in range(100)))
        assert 16 <= sum(worked) <= 32
        assert json.loads(await command.line())["text"].startswith("there are 32 connections")
        for writer in held:
            writer.transport.abort()
        async with asyncio.timeout(LIMIT):
            while not await attempt(port, held):
                await asyncio.sleep(0.05)
        command.process.send_signal(signal.SIGTERM)
        _, errors = await command.end()
        assert "out of system resource" not in errors
        held[-1].transport.abort()


async def test_a_local_port_that_is_taken_is_named_and_nothing_stays_open(world: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = free_port()
        arguments = ["port-forward", "dev", "--tcp", f"{other}:1", "--tcp", f"{port}:80"]
        _, errors = await (await world.command(*arguments)).end(1)
    assert f"127.0.0.1:{port}/tcp is taken by another program" in errors
    _, errors = await (await world.command("port-forward", "dev", "--tcp", "x")).end(2)
    assert "is no forward" in errors


@pytest.mark.spec("tailnet", 63, 64)
async def test_a_forward_outlives_the_server_and_finds_a_restarted_agent(world: World) -> None:
    running = world.running
    async with listener(upper) as port:
        _, (local,) = await world.forward("--tcp", f"0:{port}")

        async def turn(pair: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
            pair[1].write(b"hello")
            async with asyncio.timeout(LIMIT):
                assert await pair[0].readexactly(5) == b"HELLO"

        first = await asyncio.open_connection("127.0.0.1", local)
        await turn(first)
        await running.server.kill()
        await running.start_server()
        await turn(first)
        agent = running._agents[0]
        await agent.kill()
        await agent.start()
        second = await asyncio.open_connection("127.0.0.1", local)
        await turn(second)
        for _, writer in (first, second):
            writer.close()


# ---- netcheck


async def test_what_the_network_is_like(tmp_path: Path) -> None:
    port = free_port()
    async with Deployment(tmp_path, server_options=[f"--stun-port={port}"]) as running:
        created = await running.create_agent(json.dumps({"name": "dev"}))
        world = World(running, created)
        found = await (await world.command("netcheck", "--json")).json()
        assert [region["preferred"] for region in found["regions"]] == [True]
        assert found["regions"][0]["latency_v4_ms"] > 0
        info = found["net_info"]
        assert (info["WorkingUDP"], info["PreferredDERP"]) == (True, found["regions"][0]["id"])
        assert info["GlobalV4"].startswith("127.0.0.1:")
        assert info["MappingVariesByDestIP"] is None  # one STUN server cannot tell
        assert found["severity"] == "ok"
        assert found["interfaces"]["severity"] in ("ok", "warning")
        output, _ = await (await world.command("netcheck")).end()
        assert "nearest" in output
        assert "works, seen as 127.0.0.1:" in output


async def test_a_network_without_a_relay_is_a_failure_with_a_reason(tmp_path: Path) -> None:
    derp_map = tmp_path / "map.yaml"
    node = {"Name": "1a", "RegionID": 1, "HostName": "127.0.0.1", "DERPPort": 1, "ForceHTTP": True, "STUNPort": 1}
    regions = {"1": {"RegionID": 1, "RegionName": "Nowhere", "Nodes": [node]}}
    derp_map.write_text(json.dumps({"Regions": regions}))
    async with Deployment(tmp_path, server_options=[f"--derp-map={derp_map}"]) as running:
        created = await running.create_agent(json.dumps({"name": "dev"}))
        output, _ = await (await World(running, created).command("netcheck")).end(1)
        assert "no relay answers: Nowhere (127.0.0.1:1)" in output
        assert "no STUN server answers" in output


# ---- the flood and the others


@pytest.mark.spec("tailnet", 55)
async def test_a_speed_test_starves_no_other_connection(world: World) -> None:
    async with listener(upper) as port:
        _, (local,) = await world.forward("--tcp", f"0:{port}")
        reader, writer = await asyncio.open_connection("127.0.0.1", local)
        loop = asyncio.get_running_loop()

        async def turn() -> float:
            began = loop.time()
            writer.write(b"x")
            async with asyncio.timeout(LIMIT):
                assert await reader.readexactly(1) == b"X"
            return loop.time() - began

        await turn()
        for direction in ("down", "up"):
            command = await world.command("speedtest", "dev", "--direction", direction, "--time", "3", "--json")
            testing = asyncio.create_task(command.json())
            took = []
            while not testing.done():
                took.append(await turn())
                await asyncio.sleep(0.02)
            assert (await testing)["overall"]["throughput_mbits"] > 8
            took.sort()
            assert len(took) > 20
            assert took[len(took) // 2] < 0.25, took
            assert took[-1] < 2.0, took
        writer.close()
