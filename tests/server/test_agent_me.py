"""What a workspace asks for with its agent's token (agent-api.md §2)."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from agent.server.log_lines import EXTERNAL_SOURCE
from tests.server.deployment import Deployment, deployment

ME = "/api/v2/workspaceagents/me"


@pytest.fixture
async def server(database_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(database_url, tmp_path) as running:
        yield running


@pytest.mark.spec("agent-api", 5)
async def test_patch_logs(server: Deployment) -> None:
    agent = await server.new_agent()
    await server.patch_logs(agent, "one", "two")
    first, second = await server.logs(agent)
    assert (first["output"], second["output"]) == ("one", "two")
    assert first["id"] < second["id"]
    assert {first["level"], second["level"]} == {"info"}
    assert {first["source_id"], second["source_id"]} == {str(EXTERNAL_SOURCE)}
    path = f"{ME}/logs"
    refused = await server.call("PATCH", path, token=agent.token, json={"logs": []}, expect=400)
    assert refused == {"message": "No logs provided."}
    fatal = {"logs": [{"output": "stored?"}, {"output": "x", "level": "fatal"}]}
    refused = await server.call("PATCH", path, token=agent.token, json=fatal, expect=400)
    assert refused == {"message": "Invalid log level provided.", "detail": 'invalid log level: "fatal"'}
    huge = {"logs": [{"output": "y" * 1048577}]}
    refused = await server.call("PATCH", path, token=agent.token, json=huge, expect=413)
    assert refused == {"message": "Logs limit exceeded"}
    assert (await server.agent(agent))["logs_overflowed"] is True
    assert len(await server.logs(agent)) == 2
    again = await server.call("PATCH", path, token=agent.token, json=huge, expect=413)
    assert again["detail"]


@pytest.mark.spec("agent-api", 6)
async def test_nul_in_logs(server: Deployment) -> None:
    agent = await server.new_agent()
    await server.patch_logs(agent, "before\0after")
    assert [line["output"] for line in await server.logs(agent)] == ["before❌after"]
    assert (await server.agent(agent))["logs_length"] == 14


@pytest.mark.spec("agent-api", 4)
async def test_an_answer_without_content_is_null(server: Deployment) -> None:
    agent = await server.new_agent()
    headers = {"Coder-Session-Token": agent.token}
    body = {"logs": [{"output": "x"}]}
    async with server.http.patch(f"{server.url}{ME}/logs", headers=headers, json=body) as response:
        assert await response.read() == b"null\n"
        assert response.headers["X-Coder-Build-Version"].startswith("v")


@pytest.mark.spec("agent-api", 7)
async def test_log_source_twice(server: Deployment) -> None:
    agent, source = await server.new_agent(), str(uuid4())
    for name in ("first", "second"):
        answer = await server.call(
            "POST",
            f"{ME}/log-source",
            token=agent.token,
            json={"id": source, "display_name": name, "icon": "/i"},
            expect=201,
        )
        assert answer.pop("created_at").endswith("Z")
        assert answer == {"workspace_agent_id": str(agent.id), "id": source, "display_name": name, "icon": "/i"}
    sources = [one for one in (await server.agent(agent))["log_sources"] if one["id"] == source]
    assert [one["display_name"] for one in sources] == ["first"]
    huge = {"id": str(uuid4()), "display_name": "n" * 1000, "icon": "i" * 10_000}
    await server.call("POST", f"{ME}/log-source", token=agent.token, json=huge, expect=201)
    assert ("n" * 127, "i" * 4096) in [
        (one["display_name"], one["icon"]) for one in (await server.agent(agent))["log_sources"]
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"logs": 5}',
        b'{"logs": [5]}',
        b'{"logs": [{"output": 5}]}',
        b'{"logs": [{"output": "x", "created_at": "nope"}]}',
        b'{"log_source_id": "", "logs": [{"output": "x"}]}',
        b'{"log_source_id": "nope", "logs": [{"output": "x"}]}',
        b'{"logs": [{"output": "\xff"}]}',
        b"[" * 100_000,
    ],
)
async def test_malformed_bodies(server: Deployment, body: bytes) -> None:
    agent = await server.new_agent()
    refused = await server.call("PATCH", f"{ME}/logs", token=agent.token, data=body, expect=400)
    assert refused["message"] == "Request body must be valid JSON."
    assert await server.logs(agent) == []


async def test_an_oversized_body(server: Deployment) -> None:
    agent = await server.new_agent()
    refused = await server.call("PATCH", f"{ME}/logs", token=agent.token, data=io.BytesIO(b" " * 9_000_000), expect=413)
    assert "too large" in refused["message"]


async def test_a_database_that_fails(server: Deployment) -> None:
    agent = await server.new_agent()
    async with server.database.engine.begin() as connection:
        await connection.exec_driver_sql("ALTER TABLE logs RENAME TO gone")
    body = {"logs": [{"output": "x"}], "log_source_id": str(uuid4())}
    refused = await server.call("PATCH", f"{ME}/logs", token=agent.token, json=body, expect=500)
    assert refused["message"] == "Failed to upload logs"
    assert "logs" in refused["detail"]
    assert "INSERT" not in refused["detail"]


async def test_git_ssh_key(server: Deployment) -> None:
    agent, other = await server.new_agent(), await server.new_agent("other")
    key = await server.call("GET", f"{ME}/gitsshkey", token=agent.token)
    assert key["public_key"].startswith("ssh-ed25519 ")
    assert key["public_key"].endswith("\n")
    assert key["private_key"].startswith("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert key["private_key"].endswith("-----END OPENSSH PRIVATE KEY-----\n")
    assert await server.call("GET", f"{ME}/gitsshkey", token=other.token) == key
    member = await server.new_member("mia")
    theirs = await server.new_agent("hers", token=member)
    assert await server.call("GET", f"{ME}/gitsshkey", token=theirs.token) != key


@pytest.mark.spec("agent-api", 11)
async def test_reinit_is_refused(server: Deployment) -> None:
    agent = await server.new_agent()
    for query in ("?wait=true", ""):
        refused = await server.call("GET", f"{ME}/reinit{query}", token=agent.token, expect=409)
        assert refused["message"] == "Workspace is not a prebuilt workspace waiting to be claimed."


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("GET", "manifest"),
        ("POST", "startup"),
        ("POST", "metadata"),
        ("POST", "report-stats"),
        ("POST", "report-lifecycle"),
        ("POST", "app-health"),
        ("GET", "coordinate"),
        ("PATCH", "startup-logs"),
    ],
)
async def test_first_version_is_gone(server: Deployment, method: str, name: str) -> None:
    agent = await server.new_agent()
    assert await server.call(method, f"{ME}/{name}", token=agent.token, expect=404) == {"message": "Route not found."}
