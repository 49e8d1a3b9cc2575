"""Requests recorded at a Go server, replayed at ours: same status, same message, same shape."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from agent.api import methods
from agent.api.proto import agent_pb2 as pb
from agent.api.proto import tailnet_pb2 as tailnet_pb
from agent.api.versions import ApiVersion
from tests.server.deployment import DEFINITION, Deployment, NewAgent, deployment
from tests.server.shapes import differences

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "rest.json").read_text())
RECORDED_AGENT = "936f0a74-460e-44d7-a254-0789f5951835"
RECORDED_SOURCE = "22222222-2222-4222-8222-222222222222"

LATER = {
    "listening ports": "asks the agent over the tailnet",
    "pty no params": "terminal",
    "pty bad": "terminal",
    "pty no upgrade": "terminal",
    **dict.fromkeys(
        (
            "aws empty",
            "aws not json",
            "aws no body",
            "azure empty",
            "azure not json",
            "azure no body",
            "google empty",
            "google not json",
            "google no body",
            "aws junk",
            "aws junk b64",
            "azure junk",
            "google junk",
            "google junk 2",
        ),
        "instance identity",
    ),
}
"""Endpoints that come with later issues, and with what."""

BETTER: dict[str, tuple[int, str]] = {
    "logs patch": (200, "a NUL byte is replaced, as the servers of 2026 do (agent-api.md §10.3)"),
}
"""Where we answer with another status on purpose, and why."""

NO_SUFFIX = {"hostname_suffix": "omitted where it is empty (agent-api.md §3.2): we have no in-tunnel names"}
ABSENT = {"connection": NO_SUFFIX, "connection generic": NO_SUFFIX}
ADDED = {"parent_id": "[2026], agent-api.md §3.1", "exit_code": "[2026]", "status": "[2026]"}
"""Keys that we do not have, or have in addition."""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Deployment]:
    settings: dict[str, Any] = {"api_version": ApiVersion(2, 4), "rate_limit": 512}
    async with deployment(f"sqlite:///{tmp_path}/x.db", tmp_path, **settings) as running:
        yield running


def test_the_tables_name_recorded_requests() -> None:
    names = {vector["name"] for vector in VECTORS}
    assert names >= LATER.keys() | BETTER.keys() | ABSENT.keys()
    assert not LATER.keys() & BETTER.keys()


async def test_replay(server: Deployment) -> None:
    agent = await server.new_agent(
        scripts=[*DEFINITION["scripts"], {"display_name": "bye", "script": "exit", "run_on_stop": True}]
    )
    async with server.rpc(agent, "version=2.4"):
        pass  # the recorded agent had lost and regained its connection
    for _ in range(100):
        if "disconnected_at" in await server.agent(agent):
            break
        await asyncio.sleep(0.02)
    async with server.rpc(agent, "version=2.4") as client, await client.duplex(methods.COORDINATE.path) as coordination:
        await _live(server, agent, client)
        node = tailnet_pb.Node(preferred_derp=999, derp_latency={"999-v4": 0.004105974})
        update = tailnet_pb.CoordinateRequest(update_self=tailnet_pb.CoordinateRequest.UpdateSelf(node=node))
        await coordination.send(update.SerializeToString())
        for _ in range(100):
            if "latency" in await server.agent(agent):
                break
            await asyncio.sleep(0.02)
        different = [line for vector in VECTORS for line in [*await _replay(server, agent, vector)]]
    assert "\n".join(different) == ""


async def _live(server: Deployment, agent: NewAgent, client: Any) -> None:
    """What the recorded agent had done before."""
    startup = pb.Startup(version="v2.21.0", expanded_directory="/home/dev")
    await client.unary(
        methods.UPDATE_STARTUP.path, pb.UpdateStartupRequest(startup=startup).SerializeToString(), timeout=20
    )
    for state in (pb.Lifecycle.STARTING, pb.Lifecycle.READY):
        lifecycle = pb.Lifecycle(state=state, changed_at=Timestamp(seconds=1))
        request = pb.UpdateLifecycleRequest(lifecycle=lifecycle)
        await client.unary(methods.UPDATE_LIFECYCLE.path, request.SerializeToString(), timeout=20)
    await server.patch_logs(agent, "line 1", "line 2", log_source_id="2b1c7e04-88cc-49f2-b984-7890618f83c6")


async def _replay(server: Deployment, agent: NewAgent, vector: dict[str, Any]) -> Iterator[str]:
    name = vector["name"]
    if name in LATER:
        return iter(())
    tokens = {"USER-TOKEN": server.user, "AGENT-TOKEN": agent.token}
    headers = {key: tokens.get(value, value) for key, value in vector["request_headers"].items()}
    options: dict[str, Any] = {}
    if name == "logs patch too big":
        body = {"log_source_id": RECORDED_SOURCE, "logs": [{"level": "info", "output": "y" * 1_200_000}]}
        options["data"] = io.BytesIO(json.dumps(body).encode())
    elif "request" in vector:
        options["data"] = json.dumps(vector["request"]).encode()
    elif "request_text" in vector:
        options["data"] = vector["request_text"].encode()
    path = vector["path"].replace(RECORDED_AGENT, str(agent.id))
    async with server.http.request(vector["method"], server.url + path, headers=headers, **options) as response:
        text = await response.text()
    return _differences(name, vector, response.status, dict(response.headers), text)


def _differences(name: str, vector: dict[str, Any], status: int, headers: dict[str, str], text: str) -> Iterator[str]:
    expected_status, _ = BETTER.get(name, (vector["status"], ""))
    if status != expected_status:
        yield f"{name}: status {status} for {expected_status}: {text}"
        return
    for header in vector["headers"]:
        if header.lower() not in {own.lower() for own in headers}:
            yield f"{name}: no header {header}"
        elif header == "Content-Type" and headers[header] != vector["headers"][header]:
            yield f"{name}: {header} {headers[header]}"
    if name in BETTER:
        return
    if "response_text" in vector:
        # The Go server writes a second answer behind the first.
        expected = vector["response_text"].partition("\n")[0].replace('"close"', '""')
        if text.partition("\n")[0].replace('"keep-alive"', '""') != expected:
            yield f"{name}: text {text!r} for {expected!r}"
        return
    ours, theirs = json.loads(text), vector["response"]
    if isinstance(theirs, dict):
        if ours.get("message") != theirs.get("message"):
            yield f"{name}: message {ours.get('message')} for {theirs.get('message')}"
        if ("message" in theirs and "validations" in theirs) and ours.get("validations") != theirs["validations"]:
            yield f"{name}: validations {ours.get('validations')} for {theirs['validations']}"
    yield from (f"{name}: {line}" for line in differences(ours, theirs, absent=ABSENT.get(name, {}), added=ADDED))
