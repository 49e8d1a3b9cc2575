"""What the page hears of listening ports, from agents that tell of changes and from those that do not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from agent.server import agent_ports
from agent.server.api import ports as api
from tests.server.ports import Browser, Workspace, ports


def listing(*numbers: int) -> dict[str, Any]:
    return {"ports": [{"process_name": "node", "network": "tcp", "port": number} for number in numbers]}


class Agent:
    """Port 4 of an agent: what it `says`, one after another; `watches` is whether it tells of changes by itself."""

    def __init__(self, *, watches: bool) -> None:
        self.watches = watches
        self.says: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.now = listing(8080)
        self.requests: list[str] = []

    def tell(self, *numbers: int) -> None:
        self.says.put_nowait(json.dumps(listing(*numbers)).encode() + b"\n")

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request.path)
        if request.path == "/api/v0/listening-ports":
            return web.json_response(self.now)
        if not self.watches:
            return web.Response(status=404, text="404 page not found\n")
        response = web.StreamResponse()
        await response.prepare(request)
        while (line := await self.says.get()) is not None:
            await response.write(line)
        return response


class Events:
    """The page's stream."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content

    async def next(self) -> tuple[str, Any]:
        async with asyncio.timeout(5):
            lines = []
            while (line := await self._content.readline()) != b"\n":
                assert line, "the stream ended"
                lines.append(line.decode().rstrip("\n").partition(": ")[2])
            return lines[0], json.loads(lines[1]) if len(lines) > 1 else None

    async def data(self) -> Any:
        while (event := await self.next())[0] != "data":
            pass
        return event[1]

    async def ports(self) -> list[int]:
        told = await self.data()
        assert told["trouble"] == ""
        return [item["port"] for item in told["ports"]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_ports, "POLL", 0.05)
    monkeypatch.setattr(api, "PAUSE", 0.05)
    monkeypatch.setattr("tests.server.ports.PORT", 4)


@pytest.fixture
def agent(request: pytest.FixtureRequest) -> Agent:
    return Agent(watches=getattr(request, "param", True))


@pytest.fixture
async def browser(tmp_path: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Browser]:
    async with ports(tmp_path, Workspace(agent.serve), monkeypatch, enter=False) as browser:
        yield browser


def watch(browser: Browser, token: str = "") -> Any:
    url = f"{browser.server.url}/api/v2/agents/{browser.agent.id}/ports/watch"
    return browser.server.http.get(url, headers={"Coder-Session-Token": token or browser.server.user})


async def test_changes_as_they_come(browser: Browser, agent: Agent) -> None:
    async with watch(browser) as answer:
        events = Events(answer.content)
        agent.tell(8080)
        assert await events.ports() == [8080]
        agent.tell(8080, 5432, 18081)  # a database, and the port of the agent's app
        assert await events.next() == ("ping", None), "nothing that is shown has changed"
        agent.tell(8080, 3000)
        assert await events.ports() == [8080, 3000]
        agent.says.put_nowait(b"\n")
        assert await events.next() == ("ping", None)
        agent.says.put_nowait(None)
        assert "ended its answer" in (await events.data())["trouble"]
        agent.tell(1234)
        assert await events.ports() == [1234], "it is asked again"
    assert agent.requests == ["/api/v0/listening-ports/watch"] * 2


@pytest.mark.parametrize("agent", [False], indirect=True)
async def test_an_agent_that_has_to_be_asked(browser: Browser, agent: Agent) -> None:
    async with watch(browser) as answer:
        events = Events(answer.content)
        assert await events.ports() == [8080]
        agent.now = listing(8080, 9000)
        assert await events.ports() == [8080, 9000]


async def test_nonsense(browser: Browser, agent: Agent) -> None:
    async with watch(browser) as answer:
        events = Events(answer.content)
        agent.says.put_nowait(b"{\n")
        agent.says.put_nowait(None)
        assert "the agent's answer" in (await events.data())["trouble"]
        agent.says.put_nowait(b"x" * (9 * 1024 * 1024))
        assert "too large" in (await events.data())["trouble"]


async def test_who_may_watch(browser: Browser) -> None:
    async with watch(browser, await browser.server.new_member("eve")) as answer:
        assert answer.status == 404


async def test_it_ends_with_the_agent(browser: Browser, agent: Agent) -> None:
    async with watch(browser) as answer:
        events = Events(answer.content)
        agent.tell(8080)
        assert await events.ports() == [8080]
        await browser.server.call("DELETE", f"/api/v2/agents/{browser.agent.id}", expect=204)
        agent.says.put_nowait(b"\n")
        async with asyncio.timeout(5):
            await answer.read()
