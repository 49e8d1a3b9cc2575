"""Agents, builds, and what an agent is told (agent-api.md §3.1, §8.1, §12.5)."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import update

from agent.api.manifest import from_proto
from agent.api.methods import GET_MANIFEST
from agent.api.proto import agent_pb2 as pb
from agent.rpc import CallError, ConnectionLostError
from agent.server.manifest import quirk
from agent.server.store.schema import Agent, Log, ScriptTiming
from agent.testing import ManualClock
from tests.server.deployment import DEFINITION, Deployment, NewAgent, deployment

VECTORS = Path(__file__).parents[1] / "vectors" / "rest.json"
AGENTS = "/api/v2/agents"


@pytest.fixture
async def server(database_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(database_url, tmp_path) as running:
        yield running


async def test_an_agent_from_yaml(server: Deployment) -> None:
    text = (
        "name: Dev\nscripts:\n- {display_name: a, script: x, cron: 'CRON_TZ=Nowhere * * * * * *'}\n"
        "secrets: [{env: S, value: hidden}]\n"
    )
    answer = await server.call("POST", AGENTS, data=text.encode(), expect=201)
    assert answer["name"] == "dev"
    assert answer["agent_name"] == "main"
    assert answer["warnings"] == [
        "scripts[0].cron: time zone 'Nowhere' is not known; the agent will not run this script by schedule"
    ]
    listed = await server.call("GET", AGENTS)
    assert [agent["id"] for agent in listed["agents"]] == [answer["id"]]
    assert "token" not in listed["agents"][0]
    shown = await server.call("GET", f"/api/v2/workspaceagents/{answer['id']}")
    assert "hidden" not in json.dumps(shown)
    taken = await server.call("POST", AGENTS, data=text.encode(), expect=409)
    assert taken["message"] == 'There is an agent "dev" already.'


async def test_mistakes_of_a_definition_are_all_told(server: Deployment) -> None:
    answer = await server.call("POST", AGENTS, data=b"nam: x\nenv: 3\n", expect=400)
    assert answer == {
        "message": "The definition cannot be used.",
        "validations": [
            {"field": "definition", "detail": "line 1: name is missing"},
            {"field": "nam", "detail": "line 1: unknown key; did you mean name?"},
            {"field": "env", "detail": "line 2: must be a mapping of keys and values, not a single value"},
        ],
    }
    answer = await server.call("POST", AGENTS, data=b"\xff", expect=400)
    assert answer["detail"].startswith("It is not UTF-8")
    answer = await server.call("POST", AGENTS, data=b"name: x\nowner: nobody", expect=400)
    assert answer["validations"] == [{"field": "owner", "detail": 'There is no user "nobody".'}]
    await server.call("POST", AGENTS, data=io.BytesIO(b"#" * 3_000_000), expect=413)


async def test_an_agent_has_the_recorded_shape(server: Deployment) -> None:
    agent = await server.new_agent()
    async with server.database.transaction() as session:
        values = {"lifecycle_state": "ready", "expanded_directory": "/home/dev", "disconnected_at": 5}
        times = dict.fromkeys(("first_connected_at", "last_connected_at", "started_at", "ready_at"), 10)
        await session.execute(update(Agent).where(Agent.id == agent.id).values(**values, **times))
    shown = await server.agent(agent)
    recorded = next(case for case in json.loads(VECTORS.read_text()) if case["name"] == "agent")["response"]
    missing = {"latency"}  # comes with the tailnet
    assert set(recorded) - set(shown) == missing
    assert set(shown) - set(recorded) == {"parent_id"}  # newer than the recording
    for part in ("scripts", "apps", "log_sources"):
        assert set(recorded[part][0]) - set(shown[part][0]) == set()
    assert shown["scripts"][0]["timeout"] == 60_000_000_000
    assert shown["apps"][1]["healthcheck"] == {"url": "http://127.0.0.1:18081/healthz", "interval": 2, "threshold": 2}
    assert [app["health"] for app in shown["apps"]] == ["disabled", "initializing"]
    assert shown["startup_script_behavior"] == "non-blocking"
    assert shown["health"] == {"healthy": False, "reason": "agent has lost connection"}


async def test_the_last_run_of_a_script_is_shown(server: Deployment) -> None:
    agent = await server.new_agent()
    script = (await server.agent(agent))["scripts"][0]
    assert "exit_code" not in script
    run = {"script_id": UUID(script["id"]), "started_at": 1, "ended_at": 2, "stage": "start"}
    async with server.database.transaction() as session:
        session.add(ScriptTiming(exit_code=0, status="ok", **run))
        await session.flush()
        session.add(ScriptTiming(exit_code=3, status="exit_failure", **run))
    first, second = (await server.agent(agent))["scripts"]
    assert (first["exit_code"], first["status"]) == (3, "exit_failure")
    assert "exit_code" not in second


async def test_ids_that_are_none(server: Deployment) -> None:
    answer = await server.call("GET", "/api/v2/workspaceagents/nope", expect=400)
    assert answer == {"message": 'Invalid UUID "nope".', "detail": "invalid UUID length: 4"}
    answer = await server.call("GET", "/api/v2/workspaceagents/00000000-0000-0000-0000-000000000000", expect=404)
    assert answer == {"message": "Agent doesn't exist with that id, or you do not have access to it."}
    answer = await server.call("GET", f"{AGENTS}/nope", expect=404)
    assert answer == {"message": 'There is no agent "nope", or you do not have access to it.'}


async def build(server: Deployment, expect: int = 201, **body: Any) -> Any:
    return await server.call("POST", f"{AGENTS}/dev/builds", json=body, expect=expect)


async def test_builds(server: Deployment) -> None:
    first = await server.new_agent()
    changed = json.dumps(DEFINITION | {"directory": "/elsewhere"})
    second = await build(server, transition="start", definition=changed)
    assert second["id"] != str(first.id)
    shown = await server.call("GET", f"/api/v2/workspaceagents/{second['id']}")
    assert shown["directory"] == "/elsewhere"
    third = await build(server, transition="start")  # goes on with the last definition
    shown = await server.call("GET", f"/api/v2/workspaceagents/{third['id']}")
    assert shown["directory"] == "/elsewhere"
    other = json.dumps(DEFINITION | {"name": "other"})
    answer = await build(server, expect=400, transition="start", definition=other)
    assert answer["message"] == 'The definition is of "other", not of "dev".'
    await build(server, expect=400)
    await build(server, expect=400, transition="restart")
    stop = await build(server, transition="stop")
    builds = (await server.call("GET", f"{AGENTS}/dev/builds"))["builds"]
    assert [(one["number"], one["transition"]) for one in builds] == [
        (4, "stop"),
        (3, "start"),
        (2, "start"),
        (1, "start"),
    ]
    path = f"{AGENTS}/dev/builds/{stop['number']}"
    assert (await server.call("PATCH", path, json={"status": "failed", "error": "boom"}))["error"] == "boom"
    answer = await server.call("PATCH", path, json={"status": "succeeded"}, expect=409)
    assert answer["message"] == "Build 4 has ended already: it failed."
    await server.call("PATCH", f"{AGENTS}/dev/builds/99", json={"status": "failed"}, expect=404)


async def test_builds_that_begin_together_are_numbered_one_after_another(server: Deployment) -> None:
    await server.new_agent()
    made = await asyncio.gather(*(build(server, transition="start") for _ in range(5)))
    assert sorted(one["build"]["number"] for one in made) == [2, 3, 4, 5, 6]
    assert len({one["token"] for one in made}) == 5


async def wait_for_build(server: Deployment, status: str) -> None:
    async with asyncio.timeout(20):
        while (await server.call("GET", f"{AGENTS}/dev"))["build"]["status"] != status:
            await asyncio.sleep(0.05)


async def test_a_stop_build_ends_when_the_agent_is_off_and_gone(server: Deployment) -> None:
    agent = await server.new_agent()
    async with server.rpc(agent) as client:
        await client.unary(GET_MANIFEST.path, b"", timeout=10)
        assert (await build(server, transition="stop"))["status"] == "running"
        async with server.database.transaction() as session:
            await session.execute(update(Agent).where(Agent.id == agent.id).values(lifecycle_state="off"))
        await asyncio.sleep(1.5)
        assert (await server.call("GET", f"{AGENTS}/dev"))["build"]["status"] == "running"
    await wait_for_build(server, "succeeded")


async def test_a_stop_build_of_an_agent_that_never_came_ends(server: Deployment) -> None:
    await server.new_agent()
    await build(server, transition="stop")
    await wait_for_build(server, "succeeded")


@pytest.mark.spec("agent-api", 40)
async def test_an_agent_of_an_old_build_is_dropped_within_a_ping_period(database_url: str, tmp_path: Path) -> None:
    async with deployment(database_url, tmp_path, ping_period=1.0) as server:
        agent = await server.new_agent()
        async with server.rpc(agent) as client:
            await client.unary(GET_MANIFEST.path, b"", timeout=10)
            await build(server, transition="start")
            await asyncio.wait_for(client.wait_closed(), 10)
            with pytest.raises((ConnectionLostError, CallError)):
                await client.unary(GET_MANIFEST.path, b"", timeout=10)


async def manifest(server: Deployment, agent: NewAgent) -> pb.Manifest:
    async with server.rpc(agent) as client:
        return pb.Manifest.FromString(await client.unary(GET_MANIFEST.path, b"", timeout=10))


async def test_the_manifest_is_one_that_agents_take(server: Deployment) -> None:
    agent = await server.new_agent(secrets=[{"env": "S", "file": "~/s", "value": "hidden"}], motd_file="/etc/motd")
    message = await manifest(server, agent)
    read, secrets = from_proto(message)
    assert read.agent_id == agent.id
    assert (read.workspace_name, read.owner_name, read.agent_name) == ("dev", "admin", "main")
    assert read.environment == {"FOO": "bar"}
    assert [script.display_name for script in read.scripts] == ["hello", "cronny"]
    assert read.scripts[0].timeout == 60
    assert [(item.key, item.interval, item.timeout) for item in read.metadata] == [("cpu", 10, 5), ("disk", 60, 0)]
    assert message.metadata[0].interval.nanos == 10
    assert all(app.HasField("healthcheck") for app in message.apps)
    assert [app.health for app in message.apps] == [pb.WorkspaceApp.INITIALIZING, pb.WorkspaceApp.DISABLED]
    assert message.HasField("derp_map")
    assert not message.HasField("parent_id")
    assert [(secret.env_name, secret.file_path, secret.value) for secret in secrets] == [("S", "~/s", b"hidden")]
    shown = await server.agent(agent)
    assert [str(script.log_source_id) for script in read.scripts] == [one["log_source_id"] for one in shown["scripts"]]


async def test_a_script_of_half_a_megabyte_arrives(server: Deployment) -> None:
    text = "#" * 512_000
    scripts = [{"display_name": "big", "script": text, "run_on_start": True}]
    agent = await server.new_agent(scripts=scripts)
    assert (await manifest(server, agent)).scripts[0].script == text


def test_the_unit_quirk() -> None:
    assert quirk(10).SerializeToString() == bytes.fromhex("100a")
    assert (quirk(2 * 10**9 + 5).seconds, quirk(2 * 10**9 + 5).nanos) == (2, 5)


async def test_data_of_deleted_workspaces_goes(database_url: str, tmp_path: Path) -> None:
    clock = ManualClock()
    async with deployment(database_url, tmp_path, clock, retention=60) as server:
        agent, kept = await server.new_agent(), await server.new_agent("kept")
        for one in (agent, kept):
            await server.patch_logs(one, "line")
        await server.call("DELETE", f"{AGENTS}/dev", expect=204)
        clock.set_wall(clock.wall() + 61 * 10**9)
        await clock.advance(3601)
        async with asyncio.timeout(20):
            while len(await server.rows(Log)) > 1:
                await clock.advance(1)
                await asyncio.sleep(0.02)
        assert len(await server.logs(kept)) == 1
