"""What health checks ask of real servers."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agent.api.manifest import from_proto
from agent.api.proto import agent_pb2 as pb
from agent.clock import SystemClock
from agent.monitor import AppHealthChecker
from agent.monitor.app_health import http_prober
from tests.monitor.fakes import FakeApi


async def test_redirects_are_followed_and_bodies_are_not_read() -> None:
    async def moved(_: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/endless")

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=418)
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)

    app = web.Application()
    app.router.add_get("/", moved)
    app.router.add_get("/endless", endless)
    async with TestServer(app, host="127.0.0.1") as server, http_prober() as probe:
        assert await probe(str(server.make_url("/"))) == 418
        assert await probe(str(server.make_url("/nothing"))) == 404


async def test_loopback_goes_past_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with TestServer(web.Application(), host="127.0.0.1") as server, http_prober() as probe:
        assert await probe(str(server.make_url("/"))) == 404


@pytest.mark.parametrize("url", ["no url", "ftp://localhost/", "http://", "https://[::", "http://127.0.0.1:1/"])
async def test_what_cannot_be_asked_raises(url: str) -> None:
    async with http_prober() as probe:
        with pytest.raises((aiohttp.ClientError, ValueError, OSError)):
            await probe(url)


@pytest.mark.spec("daemon", 40)
@pytest.mark.spec("agent-api", 35)
async def test_a_hanging_app_becomes_unhealthy_within_its_intervals() -> None:
    async def hang(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        raise AssertionError

    app = web.Application()
    app.router.add_get("/", hang)
    async with TestServer(app, host="127.0.0.1") as server:
        message = pb.Manifest(agent_id=UUID(int=1).bytes, workspace_id=UUID(int=2).bytes)
        checked = message.apps.add(
            id=UUID(int=3).bytes, sharing_level=pb.WorkspaceApp.OWNER, health=pb.WorkspaceApp.INITIALIZING
        )
        checked.healthcheck.url = str(server.make_url("/"))
        checked.healthcheck.interval.nanos = 200_000_000
        checked.healthcheck.threshold = 1
        api, told = FakeApi(), asyncio.Event()
        api.called = told.set
        began = time.monotonic()
        task = asyncio.create_task(AppHealthChecker(SystemClock()).run(api, from_proto(message)[0]))
        await asyncio.wait_for(told.wait(), 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert [update.health for update in api.requests[0].updates] == [pb.UNHEALTHY]
    assert time.monotonic() - began < 5
