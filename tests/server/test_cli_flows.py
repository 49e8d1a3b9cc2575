"""What the `coder` command line asked a Go server, asked of ours: same sequence, same statuses, same shapes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from agent.api import methods
from agent.api.proto import agent_pb2 as pb
from agent.api.proto import tailnet_pb2 as tailnet_pb
from agent.api.versions import ApiVersion
from tests.server.deployment import DEFINITION, Deployment, NewAgent, deployment
from tests.server.shapes import differences

FLOWS = json.loads((Path(__file__).parent.parent / "vectors" / "cli-flows.json").read_text())
VERSION = "08e14846-b0ee-438c-8313-6050d640b54c"
AGENT = "936f0a74-460e-44d7-a254-0789f5951835"
WORKSPACE = "34cc0ebd-bcd8-4b6a-b970-cec3f535968c"

BETTER = {"/api/v2/appearance": (200, "we have banners; that build of the Go server had none")}
ABSENT = {
    "worker_id": "builds are made by the server itself",
    "hostname_suffix": "omitted where it is empty (agent-api.md §3.2): we have no in-tunnel names",
}
ADDED = {
    "parent_id": "[2026], agent-api.md §3.1",
    "exit_code": "[2026]",
    "status": "[2026]",
    "instance_proof": "an addition to §3.1",
}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(f"sqlite:///{tmp_path}/x.db", tmp_path, api_version=ApiVersion(2, 4)) as running:
        yield running


@pytest.mark.parametrize("flow", FLOWS)
async def test_replay(server: Deployment, flow: str) -> None:
    await _gone(server)
    agent = await server.new_agent("ws3", agent_name="main", apps=[DEFINITION["apps"][0]])
    async with server.rpc(agent, "version=2.4") as client, await client.duplex(methods.COORDINATE.path) as coordination:
        await _live(client)
        node = tailnet_pb.Node(preferred_derp=999, derp_latency={"999-v4": 0.004})
        update = tailnet_pb.CoordinateRequest(update_self=tailnet_pb.CoordinateRequest.UpdateSelf(node=node))
        await coordination.send(update.SerializeToString())
        while "latency" not in await server.agent(agent):
            await asyncio.sleep(0.01)
        workspace = (await server.call("GET", "/api/v2/workspaces?q=ws3"))["workspaces"][0]
        for exchange in FLOWS[flow]["exchanges"]:
            found = [line async for line in _replay(server, agent, workspace, exchange)]
            assert "\n".join(found) == "", exchange["path"]


async def _gone(server: Deployment) -> None:
    """The first workspace of the recording: its agent had been there."""
    agent = await server.new_agent("ws1", agent_name="main", apps=[DEFINITION["apps"][0]])
    async with server.rpc(agent, "version=2.4") as client:
        await _live(client)
    while "disconnected_at" not in await server.agent(agent):
        await asyncio.sleep(0.01)


async def _live(client: Any) -> None:
    """What the recorded agent had done before."""
    startup = pb.Startup(version="v2.21.0", expanded_directory="/home/dev")
    request = pb.UpdateStartupRequest(startup=startup).SerializeToString()
    await client.unary(methods.UPDATE_STARTUP.path, request, timeout=20)
    for state in (pb.Lifecycle.STARTING, pb.Lifecycle.READY):
        lifecycle = pb.Lifecycle(state=state, changed_at=Timestamp(seconds=1))
        request = pb.UpdateLifecycleRequest(lifecycle=lifecycle).SerializeToString()
        await client.unary(methods.UPDATE_LIFECYCLE.path, request, timeout=20)


async def _replay(
    server: Deployment, agent: NewAgent, workspace: dict[str, Any], exchange: dict[str, Any]
) -> AsyncIterator[str]:
    ids = {AGENT: str(agent.id), WORKSPACE: workspace["id"], VERSION: workspace["template_active_version_id"]}
    path, headers = exchange["path"], {"Coder-Session-Token": server.user}
    body = json.dumps(exchange["request"]) if "request" in exchange else None
    for theirs, ours in ids.items():
        path = path.replace(theirs, ours)
        body = body and body.replace(theirs, ours)
    if path.endswith("/listening-ports"):
        return  # it asks the agent in the tunnel: tests/e2e has it
    if exchange["status"] == 101:
        async with server.http.ws_connect(server.url + path, headers=headers):
            return
    async with server.http.request(exchange["method"], server.url + path, headers=headers, data=body) as response:
        wanted, _ = BETTER.get(path, (exchange["status"], ""))
        if response.status != wanted:
            yield f"status {response.status} for {wanted}: {await response.text()}"
        elif path.endswith("/watch"):
            for line in _events((await response.content.readuntil(b"}\n\n")).decode(), workspace):
                yield line
        elif path not in BETTER and exchange["content_type"] is not None:
            if response.headers["Content-Type"] != exchange["content_type"]:
                yield f"content type {response.headers['Content-Type']}"
            ours, theirs = await response.json(), exchange["response"]
            for line in differences(ours, theirs, absent=ABSENT, added=ADDED):
                yield line


def _events(text: str, workspace: dict[str, Any]) -> Iterator[str]:
    # A ping first, as recorded; then the state.
    ping, _, data = text.partition("\n\n")
    if ping != "event: ping":
        yield f"first event {ping!r}"
    if json.loads(data.partition("data: ")[2])["id"] != workspace["id"]:
        yield f"state {data}"


async def test_a_workspace_is_what_became_of_its_builds(server: Deployment) -> None:
    agent = await server.new_agent()
    path = "/api/v2/users/me/workspace/dev"
    started = await server.call("GET", path)
    assert started["latest_build"]["status"] == "running"
    assert started["latest_build"]["job"]["status"] == "succeeded"
    assert [UUID(one["id"]) for one in started["latest_build"]["resources"][0]["agents"]] == [agent.id]
    assert started["health"] == {"healthy": False, "failing_agents": [str(agent.id)]}  # it has not connected yet
    await server.call("POST", "/api/v2/agents/dev/builds", json={"transition": "stop"}, expect=201)
    stopping = await server.call("GET", path)
    assert stopping["latest_build"]["status"] == "stopping"
    assert stopping["latest_build"]["resources"] == []
    assert stopping["health"] == {"healthy": True, "failing_agents": []}
    await server.call("PATCH", "/api/v2/agents/dev/builds/2", json={"status": "failed", "error": "no way"})
    failed = (await server.call("GET", path))["latest_build"]
    assert (failed["status"], failed["job"]["error"]) == ("failed", "no way")
    await server.call("DELETE", "/api/v2/agents/dev", expect=204)
    await server.call("GET", path, expect=404)
    by_id = f"/api/v2/workspaces/{started['id']}"
    assert "was deleted" in (await server.call("GET", by_id, expect=410))["message"]
    deleted = await server.call("GET", by_id + "?include_deleted=true")
    assert deleted["latest_build"]["status"] == "deleted"
    await server.call("POST", by_id + "/usage", expect=404)


async def test_searches_and_strangers(server: Deployment) -> None:
    member = await server.new_member("mary")
    await server.new_agent("dev")
    await server.new_agent("docs")
    await server.new_agent("dev", token=member)

    async def names(query: str, token: str = "") -> list[str]:
        found = await server.call("GET", f"/api/v2/workspaces?{query}", token=token or server.user)
        return [f"{one['owner_name']}/{one['name']}" for one in found["workspaces"]]

    assert await names("") == ["admin/dev", "admin/docs", "mary/dev"]
    assert await names('q=owner:"me"') == ["admin/dev", "admin/docs"]
    assert await names("q=owner:mary name:DE") == ["mary/dev"]
    assert await names("q=mary/dev") == ["mary/dev"]
    assert await names("q=status:stopped") == []
    assert await names("limit=1&offset=1") == ["admin/docs"]
    assert (await server.call("GET", "/api/v2/workspaces?limit=1"))["count"] == 3
    assert await names("", member) == ["mary/dev"]
    theirs = (await server.call("GET", "/api/v2/users/me/workspace/docs"))["id"]
    for path in (f"workspaces/{theirs}", f"workspaces/{theirs}/watch", "users/admin/workspace/docs"):
        await server.call("GET", f"/api/v2/{path}", token=member, expect=404)
    await server.call("POST", f"/api/v2/workspaces/{theirs}/usage", token=member, expect=404)
    for query in ("q=color:red", "q=name:a name:b", "limit=-1", "offset=x", 'q="'):
        await server.call("GET", f"/api/v2/workspaces?{query}", expect=400)


async def test_use_is_noted(server: Deployment) -> None:
    agent = await server.new_agent()
    before = await server.call("GET", "/api/v2/users/me/workspace/dev")
    path = f"/api/v2/workspaces/{before['id']}"
    await server.call("POST", f"{path}/usage", json={"agent_id": str(agent.id), "app_name": "ssh"}, expect=204)
    assert (await server.call("GET", path))["last_used_at"] > before["last_used_at"]
    for usage in ({"agent_id": str(agent.id)}, {"app_name": "ssh"}, {"agent_id": "x", "app_name": "ssh"}):
        await server.call("POST", f"{path}/usage", json=usage, expect=400)
    stranger = {"agent_id": before["id"], "app_name": "ssh"}
    await server.call("POST", f"{path}/usage", json=stranger, expect=400)
    await server.call("POST", f"{path}/usage", json={"agent_id": str(agent.id), "app_name": "nail"}, expect=400)


@pytest.mark.parametrize("kind", ["watch", "watch-ws"])
async def test_changes_are_told(server: Deployment, kind: str) -> None:
    await server.new_agent()
    workspace = (await server.call("GET", "/api/v2/users/me/workspace/dev"))["id"]
    url, headers = f"{server.url}/api/v2/workspaces/{workspace}/{kind}", {"Coder-Session-Token": server.user}
    seen = []
    async with asyncio.timeout(20):
        if kind == "watch":
            async with server.http.get(url, headers=headers) as response:
                async for line in response.content:
                    if line.startswith(b"data: "):
                        seen.append(json.loads(line[6:])["latest_build"]["status"])
                        if len(seen) == 2:
                            break
                        await server.call("DELETE", "/api/v2/agents/dev", expect=204)
        else:
            async with server.http.ws_connect(url, headers=headers) as socket:
                assert await socket.receive_json() == {"type": "ping", "data": None}
                seen.append((await socket.receive_json())["data"]["latest_build"]["status"])
                await server.call("DELETE", "/api/v2/agents/dev", expect=204)
                seen.append((await socket.receive_json())["data"]["latest_build"]["status"])
    assert seen == ["running", "deleted"]


async def test_the_rest(server: Deployment) -> None:
    agent = await server.new_agent()
    version = "/api/v2/templateversions"
    await server.call("GET", f"{version}/{agent.id}", expect=404)
    containers = f"/api/v2/workspaceagents/{agent.id}/containers"
    refused = await server.call("GET", containers, expect=400)
    assert refused["message"] == 'Agent state is "connecting", it must be in the "connected" state.'
    async with server.rpc(agent, "version=2.4"):
        while (await server.agent(agent))["status"] != "connected":
            await asyncio.sleep(0.01)
        assert await server.call("GET", containers) == {"containers": None}
        assert (await server.call("GET", containers + "?label=x", expect=400))["message"] == "Invalid label format"
