"""Listening sockets for ports of workspaces, opened and closed on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import aiohttp
import pytest
from aiohttp import web

from agent.server.ports import ListenerOrigins, Origin, OriginsUnavailableError, listeners
from agent.testing import ManualClock
from agent.testing.clock import settle

AGENT = uuid4()
HOST = "127.0.0.1:7080"


async def serve(origin: Origin, request: web.Request) -> web.StreamResponse:
    if request.path == "/slow":
        await asyncio.sleep(60)
    return web.Response(text=f"{origin.agent} {origin.port}")


@asynccontextmanager
async def origins(clock: ManualClock, access_url: str = "http://127.0.0.1:7080") -> AsyncIterator[ListenerOrigins]:
    made = ListenerOrigins(serve, clock, address="127.0.0.1", port=7080, access_url=access_url)
    try:
        yield made
    finally:
        await made.aclose()


async def fetch(origin: Origin, **headers: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as http, http.get(f"{origin.url}/", headers=headers) as answer:
        return answer.status, await answer.text()


async def is_open(origin: Origin) -> bool:
    try:
        return (await fetch(origin))[0] == 200
    except aiohttp.ClientConnectorError:
        return False


async def until_closed(origin: Origin) -> None:
    async with asyncio.timeout(10):
        while await is_open(origin):
            await asyncio.sleep(0.01)


async def test_a_port_has_one_socket_for_everybody() -> None:
    async with origins(ManualClock()) as made:
        first, same = await asyncio.gather(made.open(AGENT, 8080, HOST), made.open(AGENT, 8080, HOST))
        other = await made.open(AGENT, 8081, HOST)
        assert first == same
        assert first.url != other.url
        assert first.url.startswith("http://localhost:")
        assert await fetch(first) == (200, f"{AGENT} 8080")
        assert await fetch(other) == (200, f"{AGENT} 8081")
        assert (await fetch(first, Host="evil.example"))[0] == 421
        assert (await fetch(first, Host=other.netloc))[0] == 421
    assert not await is_open(first)
    with pytest.raises(OriginsUnavailableError):
        await made.open(AGENT, 8080, HOST)


@pytest.mark.parametrize(
    ("access", "host", "name"),
    [
        ("http://127.0.0.1:7080", "127.0.0.1:7080", "localhost"),
        ("http://127.0.0.1:7080", "localhost:7080", "127.0.0.1"),
        ("http://localhost:7080", "LOCALHOST:7080", "127.0.0.1"),
        ("http://192.0.2.1:7080", "192.0.2.1:7080", "192.0.2.1"),
        ("http://[2001:db8::1]:7080", "x", "[2001:db8::1]"),
        ("http://box.example:7080", "localhost:7080", "box.example"),
    ],
)
async def test_its_host_is_not_the_pages_where_that_can_be(access: str, host: str, name: str) -> None:
    async with origins(ManualClock(), access) as made:
        origin = await made.open(AGENT, 8080, host)
        assert origin.netloc.rpartition(":")[0] == name


@pytest.mark.parametrize("access", ["https://127.0.0.1:7080", "http://127.0.0.1:8000", "http://box.example"])
async def test_behind_a_proxy_there_is_none(access: str) -> None:
    async with origins(ManualClock(), access) as made:
        with pytest.raises(OriginsUnavailableError, match="--workspace-url"):
            await made.open(AGENT, 8080, HOST)


async def test_no_socket_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: str, port: int) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(listeners, "bind", refuse)
    async with origins(ManualClock()) as made:
        with pytest.raises(OriginsUnavailableError, match="too many open files"):
            await made.open(AGENT, 8080, HOST)


async def test_idle_ones_are_closed_and_busy_ones_are_not() -> None:
    clock = ManualClock()
    async with origins(clock) as made, aiohttp.ClientSession() as http:
        idle, used, busy = [await made.open(AGENT, port, HOST) for port in (8080, 8081, 8082)]
        slow = asyncio.create_task(http.get(f"{busy.url}/slow").__aenter__())
        await asyncio.sleep(0.2)
        for _ in range(29):
            await clock.advance(60)
        assert await is_open(used)
        await clock.advance(60)
        await until_closed(idle)
        assert await is_open(used)
        for _ in range(31):
            await clock.advance(60)
        await until_closed(used)
        assert await is_open(busy)
        slow.cancel()
        await settle()
        again = await made.open(AGENT, 8080, HOST)
        assert await is_open(again)


async def test_those_used_least_make_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "MAX_OF_AGENT", 3)
    monkeypatch.setattr(listeners, "MAX_LISTENERS", 4)
    clock = ManualClock()
    async with origins(clock) as made:
        other = await made.open(UUID(int=1), 8080, HOST)
        opened = []
        for port in (8080, 8081, 8082, 8083):
            await clock.advance(1)
            opened.append(await made.open(AGENT, port, HOST))
            await made.open(AGENT, 8080, HOST)
        await until_closed(opened[1])
        assert [await is_open(origin) for origin in (other, *opened)] == [True, True, False, True, True]
        await clock.advance(1)
        for origin in (other, opened[0], opened[3]):
            assert await is_open(origin)
        await made.open(UUID(int=2), 8080, HOST)
        await until_closed(opened[2])
        assert await is_open(other)
