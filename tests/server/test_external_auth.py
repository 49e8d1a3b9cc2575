"""Tokens for git hosts (agent-api.md §2.4)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.server import external_auth as rules
from agent.server.external_auth import Provider, ProviderError, ProviderNotFoundError
from tests.server.deployment import Deployment, NewAgent, deployment

ME = "/api/v2/workspaceagents/me"
BASE = "/api/v2/external-auth"


@pytest.fixture
async def server(database_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(database_url, tmp_path) as running:
        yield running


async def ask(server: Deployment, agent: NewAgent, query: str, name: str = "external-auth", expect: int = 200) -> Any:
    return await server.call("GET", f"{ME}/{name}?{query}", token=agent.token, expect=expect)


@pytest.mark.spec("agent-api", 10)
@pytest.mark.parametrize("name", ["external-auth", "gitauth"])
async def test_asking(server: Deployment, name: str) -> None:
    agent = await server.new_agent()
    assert await ask(server, agent, "", name, 400) == {"message": "'url' or 'id' must be provided!"}
    assert await ask(server, agent, "id=a&match=b", name, 400) == {
        "message": "'url' and 'id' cannot be provided together!"
    }
    missing = 'No matching external auth provider found in Coder for the url "{}".'
    detail = "External auth provider not found."
    assert await ask(server, agent, "id=gitlab&match=", name, 404) == {"message": missing.format(""), "detail": detail}
    assert await ask(server, agent, "match=x.org", name, 404) == {"message": missing.format("x.org"), "detail": detail}
    gitlab = {"type": "gitlab", "regex": r"gitlab\.com"}
    await server.call("PUT", f"{BASE}/gitlab", json=gitlab)
    refused = await ask(server, agent, "url=github.com", name, 404)
    assert refused["detail"].endswith('Provider url regex: gitlab="gitlab\\.com"')
    unlinked = {
        "access_token": "",
        "token_extra": None,
        "url": "http://access.example/external-auth/gitlab",
        "type": "",
        "username": "",
        "password": "",
    }
    assert await ask(server, agent, "match=https://gitlab.com/a/b", name) == unlinked
    assert await ask(server, agent, "id=gitlab", name) == unlinked
    await server.call("PUT", f"{BASE}/gitlab/token", json={"access_token": "t0k3n"}, expect=204)
    linked = {
        "access_token": "t0k3n",
        "token_extra": None,
        "url": "",
        "type": "gitlab",
        "username": "oauth2",
        "password": "t0k3n",
    }
    assert await ask(server, agent, "match=gitlab.com", name) == linked
    assert await ask(server, agent, "url=gitlab.com&listen=false", name) == linked


@pytest.mark.spec("agent-api", 10)
async def test_listening(server: Deployment) -> None:
    agent = await server.new_agent()
    await server.call("PUT", f"{BASE}/github", json={"type": "github"})
    waiting = asyncio.create_task(ask(server, agent, "id=github&listen"))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    expired = {"access_token": "old", "expires": "2020-01-01T00:00:00Z"}
    await server.call("PUT", f"{BASE}/github/token", json=expired, expect=204)
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await server.call("PUT", f"{BASE}/github/token", json={"access_token": "new"}, expect=204)
    async with asyncio.timeout(1.5):
        answer = await waiting
    assert (answer["access_token"], answer["username"], answer["password"]) == ("new", "new", "")


async def test_owners_configure_users_link(server: Deployment) -> None:
    member = await server.new_member("mia")
    await server.call("PUT", f"{BASE}/x", token=member, json={"type": "github"}, expect=403)
    await server.call("PUT", f"{BASE}/x/token", token=member, json={"access_token": "t"}, expect=404)
    for regex in ("old", "new"):
        await server.call("PUT", f"{BASE}/x", json={"type": "github", "regex": regex})
    await server.call("PUT", f"{BASE}/x/token", token=member, json={"access_token": "s3cret"}, expect=204)
    listed = await server.call("GET", BASE, token=member)
    assert listed["providers"] == [{"id": "x", "type": "github", "regex": "new", "display_name": "x"}]
    assert [link["provider_id"] for link in listed["links"]] == ["x"]
    assert "s3cret" not in str(listed)
    assert (await server.call("GET", BASE))["links"] == []
    agent = await server.new_agent(token=member)
    assert (await ask(server, agent, "id=x"))["access_token"] == "s3cret"
    await server.call("DELETE", f"{BASE}/x/token", token=member, expect=204)
    await server.call("DELETE", f"{BASE}/x/token", token=member, expect=404)
    assert (await ask(server, agent, "id=x"))["access_token"] == ""
    await server.call("DELETE", f"{BASE}/x", token=member, expect=403)
    await server.call("DELETE", f"{BASE}/x", expect=204)
    await server.call("DELETE", f"{BASE}/x", expect=404)


@pytest.mark.parametrize(
    ("provider", "body", "field"),
    [
        ("x", {"type": "github", "regex": "("}, "regex"),
        ("x", {"type": "github", "regex": "a" * 513}, "regex"),
        ("x", {"type": ""}, "type"),
        ("x", {"type": "t" * 33}, "type"),
        ("x", {"type": "github", "display_name": "x" * 129}, "display_name"),
        ("X!", {"type": "github"}, "id"),
        ("a-" * 32 + "a", {"type": "github"}, "id"),
    ],
)
async def test_bad_providers(server: Deployment, provider: str, body: dict[str, str], field: str) -> None:
    refused = await server.call("PUT", f"{BASE}/{provider}", json=body, expect=400)
    assert [mistake["field"] for mistake in refused["validations"]] == [field]


def test_the_last_provider_that_matches_wins() -> None:
    providers = [Provider(id=str(number), type="github", regex="git") for number in range(3)]
    assert rules.choose(providers, "", "https://github.com").id == "2"
    assert rules.choose(providers, "0", "").id == "0"
    with pytest.raises(ProviderNotFoundError):
        rules.choose(providers, "9", "")


def test_credentials_per_type() -> None:
    assert rules.git_credentials("gitlab", "t") == ("oauth2", "t")
    assert rules.git_credentials("bitbucket-server", "t") == ("x-token-auth", "t")
    assert rules.git_credentials("github", "t") == ("t", "")


def test_a_mistake_names_its_field() -> None:
    with pytest.raises(ProviderError) as error:
        rules.check_provider(Provider("x", "github", "["))
    assert error.value.field == "regex"
