"""Logs, manifest and status of the node; never a secret (terminal-ssh-http.md §4.4)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from uuid import UUID

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from agent.api.manifest import from_proto
from agent.api.proto import agent_pb2 as pb
from agent.workspace_api import logfiles
from tests.workspace_api.conftest import Client

TEXT = "text/plain; charset=utf-8"
NOON = 1_782_561_600  # 2026-06-27T12:00:00Z


def write(path: Path, text: bytes, at: float) -> None:
    path.write_bytes(text)
    os.utime(path, ns=(0, int(at * 4) * 250_000_000))


@pytest.mark.spec("terminal-ssh-http", 44)
async def test_logs(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    status, _, body = await client.get("/debug/logs")
    assert status == 500
    assert body.startswith("could not open log file: ")
    write(client.logs / "coder-agent.log", b"now\n", NOON + 0.25)
    assert await client.get("/debug/logs") == (200, TEXT, "now\n")
    monkeypatch.setattr(logfiles, "MAX_ACTIVE", 3)
    assert (await client.get("/debug/logs"))[2] == "now"


@pytest.mark.spec("terminal-ssh-http", 44)
async def test_logs_since(client: Client, tmp_path: Path) -> None:
    write(client.logs / "coder-agent.log", b"now\n", NOON + 0.25)
    write(client.logs / "coder-agent-2026-06-27T10-00-00.000.log", b"at ten\n", NOON - 7200)
    write(client.logs / "coder-agent-2026-06-27T11-00-00.000.log", b"at eleven\n", NOON - 3600)
    write(client.logs / "coder-agent-2026-06-26T11-00-00.000.log", b"yesterday\n", NOON - 90000)
    write(client.logs / "coder-agent-notes.log", b"another's\n", NOON)
    write(tmp_path / "secret", b"a secret\n", NOON)
    (client.logs / "coder-agent-2026-06-27T11-30-00.000.log").symlink_to(tmp_path / "secret")
    (client.logs / "coder-agent-2026-06-27T11-40-00.000.log").mkdir()
    status, kind, body = await client.get("/debug/logs", params={"after": " 2026-06-27T12:00:00+02:00 "})
    assert (status, kind) == (200, TEXT)
    assert body == (
        "=== coder-agent.log (mtime 2026-06-27T12:00:00.25Z) ===\nnow\n"
        "\n=== coder-agent-2026-06-27T11-00-00.000.log (mtime 2026-06-27T11:00:00Z) ===\nat eleven\n"
        "\n=== coder-agent-2026-06-27T10-00-00.000.log (mtime 2026-06-27T10:00:00Z) ===\nat ten\n"
    )
    status, _, body = await client.get("/debug/logs", params={"after": "yesterday"})
    assert status == 400
    assert body.startswith("after must be an RFC3339 timestamp: ")


@pytest.mark.spec("terminal-ssh-http", 44)
async def test_logs_are_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfiles, "MAX_ALL", 300)
    write(client.logs / "coder-agent.log", b"x" * 50, NOON)
    for hour in range(5):
        write(client.logs / f"coder-agent-2026-06-27T0{hour}-00-00.000.log", b"y" * 100, NOON)
    _, _, body = await client.get("/debug/logs?after=2026-01-01T00:00:00Z")
    assert 250 < len(body) <= 300


async def test_a_link_in_place_of_the_log_is_refused(client: Client, tmp_path: Path) -> None:
    write(tmp_path / "secret", b"a secret\n", NOON)
    (client.logs / "coder-agent.log").symlink_to(tmp_path / "secret")
    assert (await client.get("/debug/logs"))[0] == 500
    assert (await client.get("/debug/logs?after=2026-01-01T00:00:00Z"))[0] == 500


@given(st.integers(0, 253_402_300_799 * 1_000_000_000))
def test_times_there_and_back(wall: int) -> None:
    assert logfiles.from_rfc3339(logfiles.to_rfc3339(wall)) == wall


@given(st.text() | st.from_regex(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", fullmatch=True))
def test_any_time(text: str) -> None:
    try:
        wall = logfiles.from_rfc3339(text)
    except ValueError:
        return
    assert isinstance(wall, int)


@pytest.mark.spec("terminal-ssh-http", 44)
@pytest.mark.parametrize(("state", "on"), [("t", True), ("1", True), ("True", True), ("0", False), ("FALSE", False)])
async def test_node_logging(client: Client, state: str, on: bool) -> None:
    answer = await client.get(f"/debug/magicsock/debug-logging/{state}")
    assert answer == (200, TEXT, f"updated magicsock debug logging to {'true' if on else 'false'}")
    assert client.shown.debug == [on]


@pytest.mark.spec("terminal-ssh-http", 44)
@pytest.mark.parametrize("state", ["blah", "yes", "tRUE", "%20"])
async def test_node_logging_wrongly(client: Client, state: str) -> None:
    status, _, body = await client.get(f"/debug/magicsock/debug-logging/{state}")
    assert (status, body) == (400, f'invalid state "{state.replace("%20", " ")}", must be a boolean')
    assert not client.shown.debug


async def test_node(client: Client) -> None:
    status, _, body = await client.get("/debug/magicsock")
    assert (status, body) == (500, "network is not ready yet")
    client.shown.node = [("home", "region <1>")]
    status, kind, body = await client.get("/debug/magicsock")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert "<h1>magicsock</h1>" in body
    assert "<tr><th>home</th><td>region &lt;1&gt;</td></tr>" in body


@pytest.mark.spec("terminal-ssh-http", 44)
async def test_manifest(client: Client) -> None:
    status, _, body = await client.get("/debug/manifest")
    assert (status, body) == (500, "no manifest in-memory")
    message = pb.Manifest(
        agent_id=UUID(int=1).bytes,
        agent_name="main",
        owner_username="ada",
        workspace_id=UUID(int=2).bytes,
        workspace_name="engine",
        environment_variables={"API_KEY": "hidden-value"},
        secrets=[pb.WorkspaceSecret(env_name="PASSWORD", value=b"hidden-secret")],
        scripts=[
            pb.WorkspaceAgentScript(
                log_source_id=UUID(int=3).bytes,
                id=UUID(int=4).bytes,
                script="login --token s3cr3t-token",
                timeout=Duration(seconds=2),
            )
        ],
        apps=[
            pb.WorkspaceApp(
                id=UUID(int=5).bytes,
                slug="ide",
                sharing_level=pb.WorkspaceApp.OWNER,
                health=pb.WorkspaceApp.HEALTHY,
                url="http://localhost:1/",
            )
        ],
        metadata=[
            pb.WorkspaceAgentMetadata.Description(
                key="load", script="uptime", interval=Duration(nanos=10), timeout=Duration(nanos=3)
            )
        ],
    )
    client.shown.manifest, secrets = from_proto(message)
    assert secrets
    status, _, body = await client.get("/debug/manifest")
    assert status == 200
    for secret in ("hidden-value", "hidden-secret", "s3cr3t-token"):
        assert secret not in body
    value = json.loads(body)
    assert " ".join(value) == (
        "parent_id agent_id agent_name owner_name workspace_id workspace_name git_auth_configs vscode_port_proxy_uri"
        " apps derpmap derp_force_websockets environment_variables directory motd_file disable_direct_connections"
        " metadata scripts devcontainers"
    )
    assert value["environment_variables"] == {"API_KEY": "[redacted]"}
    assert value["scripts"][0]["script"] == "login --token [redacted]"
    assert value["scripts"][0]["timeout"] == 2_000_000_000
    assert (value["metadata"][0]["interval"], value["metadata"][0]["timeout"]) == (10, 3)
    assert value["apps"][0]["health"] == "healthy"
    assert value["owner_name"] == "ada"
