"""Who may ask what: places of tokens, agents of old builds, roles, sessions (agent-api.md §1.2, §1.3)."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from agent.server.auth import Passwords
from agent.server.store import users
from agent.server.store.schema import Agent, Build
from agent.testing import ManualClock
from tests.server.deployment import Deployment, NewAgent, deployment

KEY = "/api/v2/workspaceagents/me/gitsshkey"
HIDDEN = {"message": "Resource not found or you do not have access to this resource"}


@pytest.fixture
async def server(database_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(database_url, tmp_path) as running:
        yield running


async def status(server: Deployment, **options: Any) -> int:
    async with server.http.get(server.url + KEY, **options) as response:
        return response.status


@pytest.mark.spec("agent-api", 1)
async def test_refused_agents_are_told_why(server: Deployment) -> None:
    assert await server.call("GET", KEY, token="", expect=401) == {
        "message": 'Cookie "coder_session_token" must be provided.'
    }
    assert await server.call("GET", KEY, token="abc", expect=401) == {
        "message": "Workspace agent token invalid.",
        "detail": "An agent token must be a valid UUIDv4. (len 3)",
    }
    answer = await server.call("GET", KEY, token=str(uuid4()), expect=401)
    assert answer["message"] == "Workspace agent not authorized."
    assert answer["detail"].startswith("The agent cannot authenticate until")


@pytest.mark.spec("agent-api", 2)
async def test_a_token_works_in_every_place_and_the_first_one_counts(server: Deployment) -> None:
    token = (await server.new_agent()).token
    wrong = str(uuid4())
    header = {"Coder-Session-Token": token}
    assert await status(server, headers=header) == 200
    assert await status(server, cookies={"coder_session_token": token}) == 200
    assert await status(server, params={"coder_session_token": token}) == 200
    assert await status(server, params={"access_token": f" {token} "}) == 200
    assert await status(server, headers={"Authorization": f"bearer  {token} "}) == 200
    assert await status(server, headers={"Authorization": f"Basic {token}"}) == 401
    assert await status(server, headers=header, cookies={"coder_session_token": wrong}) == 401
    assert await status(server, headers=header, params={"coder_session_token": wrong}) == 401
    assert await status(server, headers=header, params={"access_token": wrong}) == 200
    server.http.cookie_jar.clear()


async def test_every_form_of_the_token(server: Deployment) -> None:
    token = UUID((await server.new_agent()).token)
    for text in (token.hex, str(token).upper(), f"{{{token}}}", f"urn:uuid:{token}"):
        assert await status(server, headers={"Coder-Session-Token": text}) == 200


async def build(server: Deployment, transition: str) -> Any:
    return await server.call("POST", "/api/v2/agents/dev/builds", json={"transition": transition}, expect=201)


async def accepted(server: Deployment, agent: NewAgent) -> bool:
    return await status(server, headers={"Coder-Session-Token": agent.token}) == 200


async def seem_connected(server: Deployment, agent: NewAgent) -> None:
    """So that a stop build waits for it."""
    async with server.database.transaction() as session:
        times = {"first_connected_at": 1, "last_connected_at": 2}
        await session.execute(update(Agent).where(Agent.id == agent.id).values(**times))


@pytest.mark.spec("agent-api", 3)
async def test_only_the_agent_of_the_current_build_is_accepted(server: Deployment) -> None:
    first = await server.new_agent()
    assert await accepted(server, first)
    answer = await build(server, "start")
    second = NewAgent(UUID(answer["id"]), answer["token"])
    assert not await accepted(server, first)
    assert await accepted(server, second)

    await seem_connected(server, second)
    stop = await build(server, "stop")
    assert stop["status"] == "running"
    assert await accepted(server, second)
    assert not await accepted(server, first)
    end = {"status": "succeeded"}
    await server.call("PATCH", f"/api/v2/agents/dev/builds/{stop['number']}", json=end)
    assert not await accepted(server, second)

    answer = await build(server, "start")
    third = NewAgent(UUID(answer["id"]), answer["token"])
    await seem_connected(server, third)
    async with server.database.transaction() as session:  # a start build that failed
        await session.execute(update(Build).where(Build.id == UUID(answer["build"]["id"])).values(status="failed"))
    assert await accepted(server, third)
    await build(server, "stop")
    assert not await accepted(server, third)


@pytest.mark.spec("agent-api", 3)
async def test_a_deleted_workspace_refuses_its_agent(server: Deployment) -> None:
    agent = await server.new_agent()
    await server.call("DELETE", "/api/v2/agents/dev", expect=204)
    assert not await accepted(server, agent)
    await server.call("GET", f"/api/v2/workspaceagents/{agent.id}", expect=404)
    again = await server.new_agent()  # the name is free again
    assert await accepted(server, again)
    await build(server, "delete")
    assert not await accepted(server, again)


async def test_a_new_token_replaces_the_old_one(server: Deployment) -> None:
    agent = await server.new_agent()
    answer = await server.call("POST", f"/api/v2/agents/{agent.id}/token", expect=201)
    assert not await accepted(server, agent)
    assert await accepted(server, NewAgent(agent.id, answer["token"]))


async def test_members_see_their_own(server: Deployment) -> None:
    alice, bob = await server.new_member("alice"), await server.new_member("bob")
    agent = await server.new_agent("hers", token=alice)
    for path in ("/api/v2/agents/hers", f"/api/v2/agents/{agent.id}", f"/api/v2/workspaceagents/{agent.id}"):
        await server.call("GET", path, token=alice)
        await server.call("GET", path)
        await server.call("GET", path, token=bob, expect=404)
    await server.call("DELETE", "/api/v2/agents/hers", token=bob, expect=404)
    await server.call("POST", f"/api/v2/agents/{agent.id}/token", token=bob, expect=404)
    assert (await server.call("GET", "/api/v2/agents", token=bob))["agents"] == []
    assert len((await server.call("GET", "/api/v2/agents"))["agents"]) == 1
    for path in ("/api/v2/users/alice", "/api/v2/users/alice/keys/tokens"):
        assert await server.call("GET", path, token=bob, expect=404) == HIDDEN
    assert (await server.call("GET", "/api/v2/users", token=bob, expect=403))["message"] == "Forbidden."
    body = {"name": "x", "owner": "alice"}
    assert (await server.call("POST", "/api/v2/agents", token=bob, json=body, expect=403))["message"] == "Forbidden."
    assert (await server.call("POST", "/api/v2/agents", json=body, expect=201))["owner_name"] == "alice"


async def test_an_owner_names_anothers_agent_if_it_is_the_only_one(server: Deployment) -> None:
    tokens = [await server.new_member(name) for name in ("alice", "bob")]
    agents = [await server.new_agent("dev", token=token) for token in tokens]
    answer = await server.call("GET", "/api/v2/agents/dev", expect=409)
    assert answer["detail"] == "Name it by its id; it is one of: alice, bob."
    own = await server.new_agent("dev")
    assert (await server.call("GET", "/api/v2/agents/DEV"))["id"] == str(own.id)
    assert (await server.call("GET", f"/api/v2/agents/{agents[0].id}"))["owner_name"] == "alice"
    await server.call("DELETE", f"/api/v2/agents/{agents[1].id}", expect=204)
    await server.call("DELETE", "/api/v2/agents/dev", expect=204)
    assert (await server.call("GET", "/api/v2/agents/dev"))["owner_name"] == "alice"


async def test_user_routes_want_a_user(server: Deployment) -> None:
    agent = await server.new_agent()
    expected = {"message": "API key or external proxy authentication required, but none provided"}
    for token in ("", "x", "abcdefghij-abcdefghijabcdefghijab", agent.token, server.user[:-1] + "-"):
        path = f"/api/v2/workspaceagents/{agent.id}"
        assert await server.call("GET", path, token=token, expect=401) == expected
        answer = await server.call("GET", "/api/v2/users/me", token=token, expect=401)
        assert answer["message"].startswith("You are signed out or your session has expired.")


async def test_sessions_live_on_while_they_are_used(database_url: str, tmp_path: Path) -> None:
    clock = ManualClock()
    day = 86400.0
    async with deployment(database_url, tmp_path, clock, session_lifetime=3 * day) as server:
        body = {"token_name": "ci", "lifetime": round(4 * day * 10**9)}
        token = (await server.call("POST", "/api/v2/users/me/keys/tokens", json=body, expect=201))["key"]

        def later(days: float) -> None:
            clock.set_wall(clock.wall() + round(days * day * 1e9))

        for _ in range(3):
            later(2)
            await server.call("GET", "/api/v2/users/me")
        await server.call("GET", "/api/v2/users/me", token=token, expect=401)
        later(3.1)
        await server.call("GET", "/api/v2/users/me", expect=401)


async def test_secrets_are_not_in_the_database(tmp_path: Path) -> None:
    async with deployment(f"sqlite:///{tmp_path}/s.db", tmp_path) as server:
        agent = await server.new_agent()
        token = (await server.call("POST", "/api/v2/users/me/keys/tokens", json={}, expect=201))["key"]
        link = (await server.call("POST", "/api/v2/users/me/login-links", expect=201))["url"]
        secrets = [server.user[11:], token[11:], link.partition("code=")[2], "correct horse battery", agent.token]
    with sqlite3.connect(tmp_path / "s.db") as connection:
        dump = "\n".join(connection.iterdump())
    connection.close()
    for secret in secrets:
        assert secret not in dump
        assert secret.replace("-", "") not in dump


async def test_passwords() -> None:
    passwords = Passwords()
    hashed = await passwords.hash("secret")
    assert await passwords.verify(hashed, "secret")
    assert not await passwords.verify(hashed, "wrong")
    assert not await passwords.verify(None, "secret")


async def test_a_database_that_takes_no_more_can_still_be_read(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise OperationalError("UPDATE", None, sqlite3.OperationalError("database or disk is full"))

    async with deployment(f"sqlite:///{tmp_path}/s.db", tmp_path, clock) as server:
        monkeypatch.setattr(users, "touch", full)
        await clock.advance(120)
        assert (await server.call("GET", "/api/v2/users/me"))["username"] == "admin"
