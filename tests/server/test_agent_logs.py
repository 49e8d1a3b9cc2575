"""Reading and following logs (agent-api.md §3.6)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from agent.server import longlived
from tests.server.deployment import Deployment, NewAgent, deployment

ME = "/api/v2/workspaceagents/me"


@pytest.fixture
async def server(database_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(database_url, tmp_path) as running:
        yield running


async def outputs(socket: aiohttp.ClientWebSocketResponse, count: int) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        message = await socket.receive(timeout=10)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        assert message.data.endswith("\n")
        assert len(message.data.encode()) < 32768
        found += [row["output"] for row in json.loads(message.data)]
    return found


async def test_after_and_before(server: Deployment) -> None:
    agent = await server.new_agent()
    await server.patch_logs(agent, "a", "b", "c")
    ids = [row["id"] for row in await server.logs(agent)]
    assert [row["id"] for row in await server.logs(agent, f"?after={ids[0]}")] == ids[1:]
    assert await server.logs(agent, f"?after={ids[2]}") == []
    assert [row["id"] for row in await server.logs(agent, "?before=1&after=")] == ids


async def test_more_than_a_page(server: Deployment) -> None:
    agent = await server.new_agent()
    texts = [f"line {number}" for number in range(2500)]
    await server.patch_logs(agent, *texts)
    assert [row["output"] for row in await server.logs(agent)] == texts


async def test_text(server: Deployment) -> None:
    agent, source = await server.new_agent(), str(uuid4())
    body = {"id": source, "display_name": "Startup", "icon": ""}
    await server.call("POST", f"{ME}/log-source", token=agent.token, json=body, expect=201)
    await server.patch_logs(agent, "named", log_source_id=source)
    await server.patch_logs(agent, "unnamed", log_source_id=str(uuid4()))
    url = f"{server.url}/api/v2/workspaceagents/{agent.id}/logs?format=text"
    async with server.http.get(url, headers={"Coder-Session-Token": server.user}) as response:
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        first, second = (await response.text()).splitlines()
    name = (await server.agent(agent))["name"]
    assert first.endswith(f"Z [info] [agent.{name}|Startup] named")
    assert second.endswith(f"Z [info] [agent.{name}] unnamed")


@pytest.mark.spec("agent-api", 8)
async def test_parameters(server: Deployment) -> None:
    agent = await server.new_agent()
    await server.patch_logs(agent, "x")
    path = f"/api/v2/workspaceagents/{agent.id}"
    refused = await server.call("GET", f"{path}/logs?format=invalid", expect=400)
    assert refused == {"message": "Invalid format parameter.", "detail": 'Allowed values are "json" and "text".'}
    refused = await server.call("GET", f"{path}/logs?format=text&follow", expect=400)
    assert refused["message"] == "Text format is not supported with follow mode."
    for after in ("-1", "x", "1.5", "9223372036854775808", "99999999999999999999"):
        refused = await server.call("GET", f"{path}/logs?after={after}", expect=400)
        assert [mistake["field"] for mistake in refused["validations"]] == ["after"]
    async with server.follow(agent, "follow=false") as socket:
        assert await outputs(socket, 1) == ["x"]
    assert await server.call("GET", f"{path}/startup-logs") == await server.logs(agent)
    async with server.websocket(f"{path}/startup-logs?follow&no_compression", server.user) as socket:
        assert await outputs(socket, 1) == ["x"]


async def test_who_may_read(server: Deployment) -> None:
    member, stranger = await server.new_member("mia"), await server.new_member("otto")
    agent = await server.new_agent(token=member)
    path = f"/api/v2/workspaceagents/{agent.id}/logs"
    assert await server.call("GET", path, token=member) == await server.call("GET", path) == []
    refused = await server.call("GET", path, token=stranger, expect=404)
    assert refused["message"] == "Agent doesn't exist with that id, or you do not have access to it."
    await server.call("GET", f"{path}?follow", token=stranger, expect=404)
    refused = await server.call("GET", path, token=agent.token, expect=401)
    assert refused["message"].startswith("API key or external proxy authentication required")
    await server.call("GET", path, token="", expect=401)


@pytest.mark.spec("agent-api", 9)
async def test_follow(server: Deployment) -> None:
    agent = await server.new_agent()
    async with server.follow(agent) as socket:
        assert (await socket.receive(timeout=10)).data == "[]\n"
        await server.patch_logs(agent, "later")
        assert await outputs(socket, 1) == ["later"]
    await server.patch_logs(agent, *(str(number) for number in range(3000)))
    first = (await server.logs(agent))[0]["id"]
    async with server.follow(agent, f"follow&after={first}") as socket:
        assert await outputs(socket, 3000) == [str(number) for number in range(3000)]
        await server.patch_logs(agent, "last words")
        await server.call("POST", "/api/v2/agents/dev/builds", json={"transition": "start"}, expect=201)
        assert await outputs(socket, 1) == ["last words"]
        end = await socket.receive(timeout=10)
        assert end.type is aiohttp.WSMsgType.CLOSE
        assert end.data == 1000
    async with server.follow(agent) as socket:
        assert len(await outputs(socket, 3002)) == 3002
        assert (await socket.receive(timeout=10)).data == 1000


async def test_followers_and_writers_at_once(server: Deployment) -> None:
    """What several followers get while lines are written is all of them, once, in order."""
    agent = await server.new_agent()

    async def write() -> None:
        for batch in range(30):
            await server.patch_logs(agent, *(str(batch * 20 + number) for number in range(20)))

    async def follow(delay: float) -> list[str]:
        await asyncio.sleep(delay)
        async with server.follow(agent) as socket:
            return await outputs(socket, 600)

    followed = await asyncio.gather(*(follow(number * 0.03) for number in range(4)), write())
    for got in followed[:-1]:
        assert got == [str(number) for number in range(600)]


async def test_a_follower_must_not_speak(server: Deployment) -> None:
    agent = await server.new_agent()
    async with server.follow(agent) as socket:
        assert (await socket.receive(timeout=10)).data == "[]\n"
        await socket.send_str("hello")
        end = await socket.receive(timeout=10)
        assert (end.data, end.extra) == (1008, "unexpected data message")


async def test_a_follower_that_takes_nothing_is_cut_off(server: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(longlived, "SEND_TIMEOUT", 0.2)
    agent = await server.new_agent()
    for _ in range(12):
        await server.patch_logs(agent, *("x" * 1000 for _ in range(1000)))
    async with server.follow(agent, "follow&no_compression") as socket:
        await asyncio.sleep(1.5)
        received = 0
        while True:
            message = await socket.receive(timeout=10)
            if message.type is not aiohttp.WSMsgType.TEXT:
                break
            received += len(json.loads(message.data))
        assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR, aiohttp.WSMsgType.CLOSE)
        assert received < 12_000


async def test_a_foreign_page_may_not_follow(server: Deployment) -> None:
    agent = await server.new_agent()
    path = f"/api/v2/workspaceagents/{agent.id}/logs?follow"
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with server.websocket(path, server.user, origin="http://evil.example"):
            pass
    assert refused.value.status == 403


async def test_followers_are_closed_when_the_server_stops(database_url: str, tmp_path: Path) -> None:
    messages: list[Any] = []
    async with aiohttp.ClientSession() as http:
        async with deployment(database_url, tmp_path) as server:
            agent = await server.new_agent()
            url = f"{server.url}/api/v2/workspaceagents/{agent.id}/logs?follow"
            socket = await http.ws_connect(url, headers={"Coder-Session-Token": server.user})
            await socket.receive(timeout=10)
        messages.append(await socket.receive(timeout=10))
        await socket.close()
    assert messages[0].data == 1001


async def test_a_database_that_fails_ends_the_follower(server: Deployment) -> None:
    agent: NewAgent = await server.new_agent()
    async with server.follow(agent) as socket:
        await socket.receive(timeout=10)
        async with server.database.engine.begin() as connection:
            await connection.exec_driver_sql("ALTER TABLE logs RENAME TO gone")
        await server.call("POST", "/api/v2/agents/dev/builds", json={"transition": "stop"}, expect=201)
        end = await socket.receive(timeout=10)
        assert (end.data, end.extra) == (1011, "cannot read the logs")
