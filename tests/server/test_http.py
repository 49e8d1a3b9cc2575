"""What every request goes through: headers, errors, limits, origins (agent-api.md §1.4-1.8)."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest

from agent.server.store import users
from agent.testing import ManualClock
from tests.server.deployment import Deployment, deployment

ME = "/api/v2/users/me"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(f"sqlite:///{tmp_path}/s.db", tmp_path) as running:
        yield running


async def get(server: Deployment, path: str, method: str = "GET", **options: Any) -> aiohttp.ClientResponse:
    headers = {"Coder-Session-Token": server.user} | options.pop("headers", {})
    async with server.http.request(method, server.url + path, headers=headers, **options) as response:
        await response.read()
        return response


@pytest.mark.spec("agent-api", 4)
async def test_every_answer_says_who_answered(server: Deployment) -> None:
    agent = await server.new_agent()
    seen = set()
    for method, path, status in (
        ("GET", "/api/v2/buildinfo", 200),
        ("GET", "/api/v2/nope", 404),
        ("GET", "/nope", 404),
        ("DELETE", "/api/v2/buildinfo", 405),
        ("GET", "/api/v2/workspaceagents/nope", 400),
        ("GET", "/", 200),
    ):
        response = await get(server, path, method)
        assert (path, response.status) == (path, status)
        assert response.headers["X-Coder-Build-Version"] == "v2.33.0"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        seen.add(str(UUID(response.headers["X-Coder-Request-Id"])))
    assert len(seen) == 6
    async with server.websocket("/api/v2/workspaceagents/me/rpc?version=2.0", agent.token) as socket:
        assert socket.get_extra_info("peername")
        assert socket._response.headers["X-Coder-Build-Version"] == "v2.33.0"


async def test_routes_and_methods_that_are_none(server: Deployment) -> None:
    response = await get(server, "/api/v2/nope")
    assert response.headers["Content-Type"] == "application/json; charset=utf-8"
    assert await response.text() == '{"message":"Route not found."}\n'
    response = await get(server, ME, "PATCH")
    assert (response.status, response.headers["Content-Length"]) == (405, "0")
    assert response.headers["Allow"] == "DELETE, GET"
    agent = "/api/v2/workspaceagents"
    response = await get(server, f"{agent}/me/logs")  # whatever other agents' logs have
    assert (response.status, response.headers["Allow"]) == (405, "PATCH")
    for path in ("startup-logs", "watch-metadata", "nope", ""):
        assert (await get(server, f"{agent}/me/{path}")).status == 404


async def test_bodies_are_bounded(server: Deployment) -> None:
    path = "/api/v2/users/login"
    response = await get(server, path, "POST", data=io.BytesIO(b"x" * 1_100_000))
    assert response.status == 413
    assert (await response.json())["message"] == "Request body too large."

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    # The answer may come while the rest is still being sent.
    with pytest.raises((aiohttp.ClientError, AssertionError)):
        assert (await get(server, path, "POST", data=endless())).status != 413


async def test_a_body_that_does_not_come(tmp_path: Path) -> None:
    clock = ManualClock()
    async with deployment(f"sqlite:///{tmp_path}/s.db", tmp_path, clock) as server:
        never = asyncio.Event()

        async def stuck() -> AsyncIterator[bytes]:
            yield b"{"
            await never.wait()

        asking = asyncio.create_task(get(server, "/api/v2/users/login", "POST", data=stuck()))
        while not asking.done():
            await asyncio.sleep(0.02)
            await clock.advance(20)
        assert asking.result().status == 408
        never.set()


async def test_nul_is_refused_where_it_cannot_be_stored(server: Deployment) -> None:
    response = await get(server, "/api/v2/agents/a%00b")
    assert (response.status, (await response.json())["message"]) == (
        400,
        "The address must not contain NUL characters.",
    )
    response = await get(server, "/api/v2/agents/x?y=%00")
    assert response.status == 400
    response = await get(server, f"{ME}/keys/tokens", "POST", data=b'{"token_name":"a\\u0000"}')
    assert (await response.json())["message"] == "Request body must not contain NUL characters."


async def test_a_failure_is_an_answer(server: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(users, "all_users", fail)
    response = await get(server, "/api/v2/users")
    assert response.status == 500
    body = await response.json()
    assert body["message"] == "An internal server error occurred."
    assert response.headers["X-Coder-Request-Id"] in body["detail"]
    assert "secret" not in body["detail"]
    assert (await get(server, ME)).status == 200


async def test_callers_are_limited_each_on_their_own(tmp_path: Path) -> None:
    clock = ManualClock()
    async with deployment(f"sqlite:///{tmp_path}/s.db", tmp_path, clock, rate_limit=3) as server:
        answers = [await get(server, ME) for _ in range(4)]
        assert [answer.status for answer in answers] == [200, 200, 200, 429]
        assert answers[0].headers["X-Ratelimit-Limit"] == "3"
        assert answers[0].headers["X-Ratelimit-Remaining"] == "2"
        assert int(answers[3].headers["Retry-After"]) <= 60
        body = await answers[3].json()
        assert body == {"message": "You've been rate limited for sending more than 3 requests in 1m0s."}
        assert (await get(server, "/api/v2/buildinfo")).status == 200  # another path
        member = await server.new_member("alice")
        assert (await get(server, ME, headers={"Coder-Session-Token": member})).status == 200
        bypass = {"X-Coder-Bypass-Ratelimit": "true"}
        assert (await get(server, ME, headers=bypass)).status == 200
        assert (await get(server, ME, headers={"Coder-Session-Token": member, **bypass})).status == 428
        agents = [await server.new_agent(name) for name in ("one", "two")]
        key = "/api/v2/workspaceagents/me/gitsshkey"
        for agent in agents:
            statuses = [(await get(server, key, headers={"Coder-Session-Token": agent.token})).status for _ in range(4)]
            assert statuses == [200, 200, 200, 429]
        wrong = [(await get(server, key, headers={"Coder-Session-Token": "x"})).status for _ in range(4)]
        assert wrong == [401, 401, 401, 429]
        for number in range(4):  # who is nobody cannot make up more paths than there are routes
            unknown = await get(server, f"/api/v2/nope/{number}")
            nobody = await get(server, f"/api/v2/users/{number}", headers={"Coder-Session-Token": "x"})
        assert (unknown.status, nobody.status) == (429, 429)
        await clock.advance(120)
        assert (await get(server, ME)).status == 200


async def test_foreign_pages_can_neither_open_sockets_nor_change_anything(server: Deployment) -> None:
    agent = await server.new_agent()
    own, foreign = {"Origin": server.url}, {"Origin": "https://evil.example"}
    follow = f"/api/v2/workspaceagents/{agent.id}/logs?follow"
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        async with server.http.ws_connect(server.url + follow, headers={"Coder-Session-Token": server.user, **foreign}):
            pass
    assert caught.value.status == 403
    async with server.http.ws_connect(server.url + follow, headers={"Coder-Session-Token": server.user, **own}):
        pass
    cookie = {"coder_session_token": server.user}
    async with aiohttp.ClientSession(cookies=cookie, cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        browser.cookie_jar.update_cookies(cookie)
        path = f"{server.url}/api/v2/users/me/keys"
        async with browser.post(path, headers=foreign) as response:
            assert response.status == 403
        for odd in ("http://[", "null", "", "//", server.url + ".evil.example"):
            async with browser.post(path, headers={"Origin": odd}) as response:
                assert response.status == 403, odd
        async with browser.post(path, headers=own) as response:
            assert response.status == 201
        async with browser.post(f"{server.url}/api/v2/users/first", headers=foreign, data="{}") as response:
            assert response.status == 403
        at_access_url = {"Origin": "http://access.example"}
        async with browser.post(path, headers=at_access_url) as response:
            assert response.status == 201
        async with browser.get(server.url + ME, headers=foreign) as response:
            assert response.status == 200  # the browser does not let the page read it


async def test_the_description_is_of_what_is_served(server: Deployment) -> None:
    description = await server.call("GET", "/api/v2/openapi.json", token="")
    assert description["openapi"] == "3.1.0"
    agent = description["paths"]["/api/v2/workspaceagents/{workspaceagent}"]["get"]
    assert agent["responses"]["200"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/WorkspaceAgent"
    }
    ids = [operation["operationId"] for path in description["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))
    assert description["components"]["schemas"]["WorkspaceAgent"]["properties"]["created_at"] == {
        "type": "string",
        "format": "date-time",
    }
