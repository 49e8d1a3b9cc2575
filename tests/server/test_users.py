"""People, sessions, tokens and login links."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from agent.testing import ManualClock
from tests.server.deployment import Deployment, deployment

PASSWORD = "correct horse battery"
USERS = "/api/v2/users"


@pytest.fixture
async def server(database_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(database_url, tmp_path) as running:
        yield running


async def test_me_has_the_shape_that_clients_know(server: Deployment) -> None:
    me = await server.call("GET", f"{USERS}/me")
    assert list(me) == [
        "id",
        "username",
        "avatar_url",
        "name",
        "email",
        "created_at",
        "updated_at",
        "last_seen_at",
        "status",
        "login_type",
        "organization_ids",
        "roles",
    ]
    assert me["roles"] == [{"name": "owner", "display_name": "Owner"}]
    assert await server.call("GET", f"{USERS}/{me['id']}") == me
    assert await server.call("GET", f"{USERS}/Admin") == me


async def test_there_is_one_first_user(server: Deployment) -> None:
    assert await server.call("GET", f"{USERS}/first", token="") == {
        "message": "The initial user has already been created!"
    }
    body = {"username": "two", "email": "c@d", "password": PASSWORD}
    answer = await server.call("POST", f"{USERS}/first", token="", json=body, expect=409)
    assert answer == {"message": "The initial user has already been created."}


async def test_login_and_logout(server: Deployment) -> None:
    body = {"email": "A@B.co", "password": PASSWORD}
    token = (await server.call("POST", f"{USERS}/login", token="", json=body, expect=201))["session_token"]
    key = (await server.call("POST", f"{USERS}/me/keys", token=token, expect=201))["key"]
    await server.call("POST", f"{USERS}/logout", token=token)
    await server.call("GET", f"{USERS}/me", token=token, expect=401)
    await server.call("GET", f"{USERS}/me", token=key)
    for email, password in (("a@b.co", "wrong"), ("nobody@b.co", PASSWORD), ("a@b.co", "x" * 10_000)):
        wrong = {"email": email, "password": password}
        answer = await server.call("POST", f"{USERS}/login", token="", json=wrong, expect=401)
        assert answer == {"message": "Incorrect email or password."}
    answer = await server.call("POST", f"{USERS}/login", token="", json={}, expect=400)
    assert [mistake["field"] for mistake in answer["validations"]] == ["email", "password"]


async def test_a_user_from_creation_to_deletion(server: Deployment) -> None:
    token = await server.new_member("Alice")
    listed = await server.call("GET", USERS)
    assert [user["username"] for user in listed["users"]] == ["admin", "alice"]
    assert listed["count"] == 2
    same = {"username": "ALICE", "email": "other@example.com", "password": PASSWORD}
    answer = await server.call("POST", USERS, json=same, expect=409)
    assert answer["validations"][0]["field"] == "username"
    await server.new_agent("hers", token=token)
    answer = await server.call("DELETE", f"{USERS}/alice", expect=409)
    assert answer["message"].startswith("You cannot delete a user that has workspaces.")
    await server.call("DELETE", "/api/v2/agents/hers", expect=204)
    await server.call("DELETE", f"{USERS}/alice", token=token, expect=403)
    await server.call("DELETE", f"{USERS}/alice")
    await server.call("GET", f"{USERS}/me", token=token, expect=401)
    assert (await server.call("DELETE", f"{USERS}/admin", expect=403))["message"] == "You cannot delete yourself!"


async def test_users_that_are_refused(server: Deployment) -> None:
    for change, field in (
        ({"username": "me"}, "username"),
        ({"username": "a b"}, "username"),
        ({"username": "x" * 33}, "username"),
        ({"email": "nope"}, "email"),
        ({"email": "x" * 250 + "@b.co"}, "email"),
        ({"name": "x" * 129}, "name"),
        ({"password": "short"}, "password"),
        ({"password": "x" * 257}, "password"),
        ({"password": ""}, "password"),
    ):
        body = {"username": "alice", "email": "a@example.com", "password": PASSWORD} | change
        answer = await server.call("POST", USERS, json=body, expect=400)
        assert [mistake["field"] for mistake in answer["validations"]] == [field]


async def test_a_new_password_ends_the_sessions(server: Deployment) -> None:
    alice = await server.new_member("alice")
    path = f"{USERS}/me/password"
    answer = await server.call("PUT", path, token=alice, json={"password": "another one"}, expect=400)
    assert answer["validations"] == [{"field": "old_password", "detail": "Old password is incorrect."}]
    body = {"password": "another one", "old_password": PASSWORD}
    await server.call("PUT", path, token=alice, json=body, expect=204)
    await server.call("GET", f"{USERS}/me", token=alice, expect=401)
    await server.call("PUT", f"{USERS}/alice/password", json={"password": "set by owner"}, expect=204)
    login = {"email": "alice@example.com", "password": "set by owner"}
    await server.call("POST", f"{USERS}/login", token="", json=login, expect=201)


async def test_tokens(server: Deployment) -> None:
    path = f"{USERS}/me/keys/tokens"
    token = (await server.call("POST", path, json={"token_name": "ci"}, expect=201))["key"]
    assert (await server.call("POST", path, json={"token_name": "ci"}, expect=409))["message"] == (
        'A token with name "ci" already exists.'
    )
    [listed] = await server.call("GET", path, token=token)
    assert (listed["id"], listed["token_name"]) == (token[:10], "ci")
    assert listed["lifetime_seconds"] == 30 * 86400
    assert "secret" not in str(listed)
    for body in ({"token_name": "a b"}, {"lifetime": -1}, {"lifetime": 2**63}):
        await server.call("POST", path, json=body, expect=400)
    assert await server.call("GET", f"{USERS}/me/keys/ci") == {**listed, "last_used": listed["last_used"]}
    alice = await server.new_member("alice")
    await server.call("DELETE", f"{USERS}/me/keys/{token[:10]}", token=alice, expect=404)
    await server.call("DELETE", f"{USERS}/me/keys/{token[:10]}", expect=204)
    await server.call("GET", f"{USERS}/me", token=token, expect=401)


async def test_a_login_link_works_once(server: Deployment) -> None:
    link = await server.call("POST", f"{USERS}/me/login-links", expect=201)
    assert link["url"].startswith("http://access.example/login?code=")
    path = server.url + link["url"].removeprefix("http://access.example")
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        async with browser.get(f"{server.url}{USERS}/me") as response:
            assert response.status == 401
        async with browser.get(path, allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (303, "/")
            cookie = response.headers["Set-Cookie"]
            assert "HttpOnly" in cookie
            assert "SameSite=Lax" in cookie
        async with browser.get(f"{server.url}{USERS}/me") as response:
            assert response.status == 200
        async with browser.get(path) as response:
            assert response.status == 400
            assert "used before or has expired" in await response.text()


async def test_a_login_link_ends(database_url: str, tmp_path: Path) -> None:
    clock = ManualClock()
    async with deployment(database_url, tmp_path, clock, login_link_lifetime=60) as server:
        link = await server.call("POST", f"{USERS}/me/login-links", expect=201)
        clock.set_wall(clock.wall() + 61 * 10**9)
        async with server.http.get(server.url + link["url"].removeprefix("http://access.example")) as response:
            assert response.status == 400
