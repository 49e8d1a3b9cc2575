"""The HTTP API of the real agent, asked by a client's node through the real server."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import UUID

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from agent.clock import SystemClock
from agent.server.agent_ports import HIDDEN
from agent.tailnet.client import connect
from agent.tailnet.connector import TailnetConnector
from agent.tailnet.streams import TailnetStream
from agent.tailnet.tailnet import TailnetError
from agent.testing.deployment import Deployment

CLOCK = SystemClock()


@asynccontextmanager
async def session(path: Path, definition: dict[str, object]) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP session whose hosts are all the agent."""
    async with Deployment(path) as running:
        created = await running.create_agent(json.dumps({"name": "dev", **definition}))
        process = running.agent(created)
        await process.start()
        await running.wait_for(created, 30, lifecycle_state={"ready"})
        async with connect(URL(running.url), running.token, UUID(created.id), CLOCK, direct=False) as agent:
            await agent.reachable()

            async def dial(host: str, port: int) -> TailnetStream:
                return await agent.dial(port)

            connector = TailnetConnector(dial, CLOCK, unreachable=(TailnetError,))
            async with aiohttp.ClientSession("http://agent:4", connector=connector) as found:
                yield found
        await process.stop(30)


async def ports(http: aiohttp.ClientSession) -> dict[int, str]:
    async with http.get("/api/v0/listening-ports") as answer:
        assert answer.status == 200
        found = (await answer.json())["ports"]
    assert len({item["port"] for item in found}) == len(found)
    assert {item["network"] for item in found} <= {"tcp"}
    return {item["port"]: item["process_name"] for item in found}


def listener(family: socket.AddressFamily, host: str) -> socket.socket:
    held = socket.socket(family)
    if family is socket.AF_INET6 and host == "::1":
        held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    held.bind((host, 0))
    held.listen()
    return held


@pytest.mark.spec("terminal-ssh-http", 40, 41)
async def test_ports_of_the_workspace(tmp_path: Path) -> None:
    async with session(tmp_path, {}) as http:
        async with http.get("/") as answer:
            assert await answer.json() == {"message": "Hello from the agent!"}
        before = await ports(http)
        held = [
            listener(socket.AF_INET, "127.0.0.1"),
            listener(socket.AF_INET, "0.0.0.0"),
            listener(socket.AF_INET6, "::1"),
            listener(socket.AF_INET6, "::"),
        ]
        try:
            mine = {item.getsockname()[1] for item in held}
            name = Path("/proc/self/comm").read_text().strip()
            assert await ports(http) == before  # the answer of a second ago
            await asyncio.sleep(1.05)
            found = await ports(http)
            assert dict.fromkeys(mine, name) == {port: found[port] for port in mine}
            assert not any(port < 9 or port in (2112, 2113, 6060) for port in found)
        finally:
            for item in held:
                item.close()
        await asyncio.sleep(1.05)
        assert not mine & (await ports(http)).keys()


async def test_ports_as_they_change(tmp_path: Path) -> None:
    async with session(tmp_path, {}) as http, http.get("/api/v0/listening-ports/watch") as answer:
        seen: set[int] = set()

        async def until_seen(port: int, listening: bool) -> float:
            """Seconds until the agent said so."""
            began = time.monotonic()
            async with asyncio.timeout(15):
                while (port in seen) is not listening:
                    if (line := await answer.content.readline()).strip():
                        seen.clear()
                        seen.update(item["port"] for item in json.loads(line)["ports"])
            return time.monotonic() - began

        took = []
        for _ in range(3):
            with socket.create_server(("127.0.0.1", 0)) as held:
                port = held.getsockname()[1]
                took.append(await until_seen(port, True))
            took.append(await until_seen(port, False))
        assert min(took) < 1.2  # on a busy machine not every time


def hidden_listener() -> socket.socket:
    """On a port that a server does not show, and that is free here."""
    for port in sorted(HIDDEN, reverse=True):
        with suppress(OSError):
            return socket.create_server(("127.0.0.1", port))
    raise AssertionError("no database's port is free")


@pytest.mark.spec("terminal-ssh-http", 42)
async def test_ports_through_the_server(tmp_path: Path) -> None:
    async with Deployment(tmp_path) as running:
        with hidden_listener() as database, socket.create_server(("", 0)) as app, socket.create_server(("", 0)) as free:
            app_url = f"http://localhost:{app.getsockname()[1]}/?folder=x"
            created = await running.create_agent(json.dumps({"name": "dev", "apps": [{"slug": "ide", "url": app_url}]}))
            process = running.agent(created)
            await process.start()
            await running.wait_for(created, 30, lifecycle_state={"ready"})
            headers = {"Coder-Session-Token": running.token}
            url = f"{running.url}/api/v2/workspaceagents/{created.id}/listening-ports"
            async with aiohttp.ClientSession(headers=headers) as http:
                async with http.get(url) as answer:
                    assert answer.status == 200, await answer.text()
                    found = {item["port"] for item in (await answer.json())["ports"]}
                assert free.getsockname()[1] in found
                assert not {database.getsockname()[1], app.getsockname()[1]} & found
                assert not found & HIDDEN
                await process.kill()
                await running.wait_for(created, 30, status={"disconnected"})
                async with http.get(url) as answer:
                    assert answer.status == 400
                    assert '"disconnected"' in (await answer.json())["message"]


@pytest.mark.spec("terminal-ssh-http", 43, 44, 45)
async def test_what_helpers_ask_for(tmp_path: Path) -> None:
    script = "echo hello from the start script"
    async with session(
        tmp_path,
        {
            "env": {"API_KEY": "value-of-the-environment"},
            "scripts": [{"display_name": "start", "script": script, "run_on_start": True}],
        },
    ) as http:
        async with http.get("/api/v0/netcheck") as answer:
            value = await answer.json()
        assert value["net_info"]["PreferredDERP"] > 0
        assert value["interfaces"]["severity"] in ("ok", "warning")
        async with http.get("/debug/manifest") as answer:
            text = await answer.text()
        shown = json.loads(text)
        assert shown["scripts"][0]["script"] == script
        assert shown["environment_variables"]["API_KEY"] == "[redacted]"
        assert "value-of-the-environment" not in text
        assert shown["derpmap"]["Regions"]
        async with http.get("/debug/logs") as answer:
            log = await answer.text()
        assert "agent is starting now" in log
        async with http.get("/debug/logs?after=2020-01-01T00:00:00Z") as answer:
            assert (await answer.text()).startswith("=== coder-agent.log (mtime ")
        async with http.get("/debug/magicsock") as answer:
            page = await answer.text()
        assert "<h1>magicsock</h1>" in page
        assert "relay region" in page
        async with http.get("/debug/prometheus") as answer:
            assert "agent_tailnet_received_bytes_total " in await answer.text()
        async with http.get("/debug/magicsock/debug-logging/t") as answer:
            assert await answer.text() == "updated magicsock debug logging to true"
        async with http.get("/api/v0/containers") as answer:
            assert answer.status == 403
        for text in (log, page):
            assert "value-of-the-environment" not in text
        for token in tmp_path.rglob("*token*"):
            if token.is_file():
                assert token.read_text().strip() not in log + page + json.dumps(shown)


@pytest.mark.spec("terminal-ssh-http", 46)
async def test_files_of_the_workspace(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    data = os.urandom(5_000_000)
    (tmp_path / "source").write_bytes(data)
    async with session(tmp_path, {}) as http:
        with (tmp_path / "source").open("rb") as source:
            async with http.post("/api/v0/write-file", params={"path": f"{place}/file"}, data=source) as answer:
                assert answer.status == 200, await answer.text()
        assert (place / "file").read_bytes() == data
        async with http.get("/api/v0/read-file", params={"path": f"{place}/file"}) as answer:
            assert await answer.read() == data
        body = {"path": str(place)[1:].split("/"), "relativity": "root"}
        async with http.post("/api/v0/list-directory", json=body) as answer:
            assert [item["name"] for item in (await answer.json())["contents"]] == ["file"]


async def test_http_of_the_workspace_through_the_tailnet(tmp_path: Path) -> None:
    """The connector reaches whatever listens in the workspace: many requests at once, WebSockets, long answers."""

    async def echo(request: web.Request) -> web.StreamResponse:
        answer = web.WebSocketResponse()
        if answer.can_prepare(request).ok:
            await answer.prepare(request)
            async for message in answer:
                await answer.send_bytes(message.data)
            return answer
        return web.Response(body=await request.read() or request.path.encode())

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with session(tmp_path, {}) as http:
            base = f"http://agent:{port}"

            async def one(number: int) -> None:
                async with http.get(f"{base}/{number}") as answer:
                    assert await answer.text() == f"/{number}"

            await asyncio.gather(*(one(number) for number in range(200)))
            async with http.ws_connect(f"{base}/socket", max_msg_size=0) as echoing:
                for size in (1, 100_000, 3_000_000):
                    data = os.urandom(size)
                    await echoing.send_bytes(data)
                    assert await echoing.receive_bytes() == data
            began = time.monotonic()
            with socket.socket() as nobody:  # bound, and does not listen
                nobody.bind(("127.0.0.1", 0))
                with pytest.raises(aiohttp.ClientConnectorError):
                    await http.get(f"http://agent:{nobody.getsockname()[1]}/")
            assert time.monotonic() - began < 20
    finally:
        await runner.cleanup()
