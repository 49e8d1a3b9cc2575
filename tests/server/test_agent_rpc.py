"""The connection of an agent, from the upgrade to the database (agent-api.md §2.1, §6.7, §7, §11)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import aiohttp
import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from agent.api import methods
from agent.api.manifest import from_proto
from agent.api.methods import RpcMethod
from agent.api.proto import agent_pb2 as pb
from agent.api.versions import ApiVersion
from agent.protocol.drpc import ErrorCode
from agent.rpc import RpcClient, RpcError
from agent.server.log_lines import EXTERNAL_SOURCE
from agent.server.store import schema
from tests.server.deployment import Deployment, NewAgent, deployment

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

THEN = Timestamp(seconds=1730433233, nanos=500_000_000)


@pytest.fixture
async def server(database_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(database_url, tmp_path) as running:
        yield running


async def call(client: RpcClient, method: RpcMethod[Request, Response], request: Request) -> Response:
    return method.response.FromString(await client.unary(method.path, request.SerializeToString(), timeout=20))


async def refusal(client: RpcClient, method: RpcMethod[Request, Response], request: Request) -> str:
    with pytest.raises(RpcError) as refused:
        await call(client, method, request)
    assert refused.value.code == ErrorCode.UNSPECIFIED
    return refused.value.text


async def test_manifest_and_banners(server: Deployment) -> None:
    agent = await server.new_agent()
    banner = {"enabled": True, "message": "Hi", "background_color": "#ff0000"}
    await server.call("PUT", "/api/v2/appearance", json={"announcement_banners": [banner]})
    async with server.rpc(agent) as client:
        manifest, _ = from_proto(await call(client, methods.GET_MANIFEST, pb.GetManifestRequest()))
        assert manifest.agent_id == agent.id
        assert [script.display_name for script in manifest.scripts] == ["hello", "cronny"]
        assert [(item.key, item.interval, item.timeout) for item in manifest.metadata] == [
            ("cpu", 10, 5),
            ("disk", 60, 0),
        ]
        banners = await call(client, methods.GET_ANNOUNCEMENT_BANNERS, pb.GetAnnouncementBannersRequest())
        assert [one.message for one in banners.announcement_banners] == ["Hi"]
        old = await call(client, methods.GET_SERVICE_BANNER, pb.GetServiceBannerRequest())
        assert (old.enabled, old.message, old.background_color) == (True, "Hi", "#ff0000")


async def test_startup_and_lifecycle(server: Deployment) -> None:
    agent, states = await server.new_agent(), pb.Lifecycle.State
    async with server.rpc(agent, "version=2.4") as client:
        startup = pb.Startup(version="v2.1.0", expanded_directory="/home/dev", subsystems=[pb.Startup.ENVBOX])
        echo = await call(client, methods.UPDATE_STARTUP, pb.UpdateStartupRequest(startup=startup))
        assert echo == startup
        for state in (states.STARTING, states.READY):
            lifecycle = pb.Lifecycle(state=state, changed_at=THEN)
            assert (
                await call(client, methods.UPDATE_LIFECYCLE, pb.UpdateLifecycleRequest(lifecycle=lifecycle))
                == lifecycle
            )
        shown = await server.agent(agent)
        assert (shown["version"], shown["api_version"], shown["expanded_directory"], shown["subsystems"]) == (
            "v2.1.0",
            "2.4",
            "/home/dev",
            ["envbox"],
        )
        assert (shown["lifecycle_state"], shown["started_at"], shown["ready_at"]) == (
            "ready",
            "2024-11-01T03:53:53.5Z",
            "2024-11-01T03:53:53.5Z",
        )
        lifecycle = pb.Lifecycle(state=states.STARTING, changed_at=THEN)
        await call(client, methods.UPDATE_LIFECYCLE, pb.UpdateLifecycleRequest(lifecycle=lifecycle))
        assert "ready_at" not in await server.agent(agent)
        huge = pb.Startup(version="v1.0.0+" + "x" * 1000, expanded_directory="/" * 5000)
        assert await call(client, methods.UPDATE_STARTUP, pb.UpdateStartupRequest(startup=huge)) == huge
        shown = await server.agent(agent)
        assert (shown["version"], shown["expanded_directory"]) == (huge.version[:128], "/" * 4096)
        bad = pb.UpdateStartupRequest(startup=pb.Startup(version="2.1.0"))
        assert await refusal(client, methods.UPDATE_STARTUP, bad) == 'invalid agent semver version "2.1.0"'
        text = await refusal(client, methods.UPDATE_LIFECYCLE, pb.UpdateLifecycleRequest())
        assert text == "lifecycle is required"


async def test_logs(server: Deployment) -> None:
    agent, source, spool = await server.new_agent(), uuid4(), uuid4()
    levels = pb.Log.Level
    request = pb.BatchCreateLogsRequest(log_source_id=source.bytes, spool_id=spool.bytes, first_sequence=1)
    request.logs.add(output="one", level=levels.ERROR, created_at=THEN)
    request.logs.add(output="t\0o")
    async with server.rpc(agent) as client:
        for _ in range(3):
            answer = await call(client, methods.BATCH_CREATE_LOGS, request)
            assert not answer.log_limit_exceeded
        rows = await server.logs(agent)
        assert [(row["output"], row["level"], row["source_id"]) for row in rows] == [
            ("one", "error", str(source)),
            ("t❌o", "info", str(source)),
        ]
        assert rows[0]["created_at"] == rows[1]["created_at"] > "2026"
        nil = pb.BatchCreateLogsRequest(log_source_id=bytes(16), logs=[pb.Log(output="external")])
        await call(client, methods.BATCH_CREATE_LOGS, nil)
        assert (await server.logs(agent))[2]["source_id"] == str(EXTERNAL_SOURCE)
        await call(client, methods.BATCH_CREATE_LOGS, pb.BatchCreateLogsRequest(log_source_id=b"x"))
        text = await refusal(
            client, methods.BATCH_CREATE_LOGS, pb.BatchCreateLogsRequest(log_source_id=b"x", logs=[pb.Log()])
        )
        assert text == 'parse log source ID "x": invalid UUID (got 1 bytes)'
        huge = pb.BatchCreateLogsRequest(log_source_id=source.bytes, logs=[pb.Log(output="x" * 1048577)])
        small = pb.BatchCreateLogsRequest(log_source_id=source.bytes, logs=[pb.Log(output="x")])
        for refused in (huge, small):
            assert (await call(client, methods.BATCH_CREATE_LOGS, refused)).log_limit_exceeded
        assert len(await server.logs(agent)) == 3


def _metadata(key: str, value: str) -> pb.Metadata:
    return pb.Metadata(key=key, result=pb.WorkspaceAgentMetadata.Result(value=value, error=""))


@pytest.mark.spec("agent-api", 34)
async def test_metadata_to_both_kinds_of_watchers(server: Deployment) -> None:
    agent = await server.new_agent()
    path = f"/api/v2/workspaceagents/{agent.id}/watch-metadata"
    headers = {"Coder-Session-Token": server.user}
    async with (
        server.rpc(agent) as client,
        server.websocket(path + "-ws", server.user) as socket,
        server.http.get(server.url + path, headers=headers) as stream,
    ):
        first = (await socket.receive(timeout=10)).json()
        assert first["type"] == "data"
        assert first["data"][0] == {
            "result": {"collected_at": "0001-01-01T00:00:00Z", "age": 0, "value": "", "error": ""},
            "description": {"display_name": "CPU", "key": "cpu", "script": "uptime", "interval": 10, "timeout": 5},
        }
        assert stream.headers["Content-Type"] == "text/event-stream"
        assert await stream.content.readline() == b"event: data\n"
        assert (await stream.content.readline()).startswith(b'data: [{"result":')
        assert await stream.content.readline() == b"\n"
        request = pb.BatchUpdateMetadataRequest(
            metadata=[_metadata("cpu", "x" * 3000), _metadata("unknown", "1"), _metadata("disk", " 7 ")]
        )
        await call(client, methods.BATCH_UPDATE_METADATA, request)
        cpu, disk = ((await socket.receive(timeout=10)).json())["data"]
        assert cpu["result"]["value"] == "x" * 2048
        assert cpu["result"]["error"] == "value of 3000 bytes exceeded 2048 bytes"
        assert (disk["result"]["value"], disk["result"]["error"]) == ("7", "")
        assert await stream.content.readline() == b"event: data\n"
        assert b'"value":"7"' in await stream.content.readline()
        long = pb.BatchUpdateMetadataRequest(metadata=[_metadata("disk", "8"), _metadata("k" * 6141, "")])
        text = await refusal(client, methods.BATCH_UPDATE_METADATA, long)
        assert text == "metadata keys of 6145 bytes exceeded 6144 bytes"
        assert ((await socket.receive(timeout=10)).json())["data"][1]["result"]["value"] == "8"
        await socket.send_str("hello")
        while (message := await socket.receive(timeout=10)).type is aiohttp.WSMsgType.TEXT:
            pass
        assert (message.data, message.extra) == (1002, "Clients cannot send messages for one-way WebSockets")


async def test_app_health(server: Deployment) -> None:
    agent = await server.new_agent()
    plain, web = (await server.agent(agent))["apps"]
    assert (web["health"], plain["health"]) == ("initializing", "disabled")
    update = pb.BatchUpdateAppHealthRequest.HealthUpdate
    health = pb.AppHealth

    def request(*updates: tuple[str, pb.AppHealth.ValueType]) -> pb.BatchUpdateAppHealthRequest:
        return pb.BatchUpdateAppHealthRequest(
            updates=[update(id=UUID(app).bytes, health=state) for app, state in updates]
        )

    async with server.rpc(agent) as client:
        await call(client, methods.BATCH_UPDATE_APP_HEALTHS, request((web["id"], health.UNHEALTHY)))
        assert (await server.agent(agent))["apps"][1]["health"] == "unhealthy"
        both = request((web["id"], health.HEALTHY), (plain["id"], health.HEALTHY))
        text = await refusal(client, methods.BATCH_UPDATE_APP_HEALTHS, both)
        assert text == f'workspace app "{plain["id"]}" ("plain") does not have healthchecks enabled'
        assert (await server.agent(agent))["apps"][1]["health"] == "unhealthy"


@pytest.mark.spec("agent-api", 36)
async def test_stats(server: Deployment, database_url: str) -> None:
    agent = await server.new_agent()
    async with server.rpc(agent) as client:
        answer = await call(client, methods.UPDATE_STATS, pb.UpdateStatsRequest())
        assert answer.report_interval.ToSeconds() == 30
        assert await server.rows(schema.AgentStats) == []
        stats = pb.Stats(connection_median_latency_ms=-0.001, rx_bytes=2**40, connections_by_proto={"TCP": 3})
        await call(client, methods.UPDATE_STATS, pb.UpdateStatsRequest(stats=stats))
        [row] = await server.rows(schema.AgentStats)
        assert (row.agent_id, row.rx_bytes, row.connection_median_latency_ms) == (agent.id, 2**40, -0.001)
        assert row.connections_by_proto == {"TCP": 3}
        hostile = pb.Stats(connections_by_proto={f"{number:0100}": 1 for number in range(1000)})
        await call(client, methods.UPDATE_STATS, pb.UpdateStatsRequest(stats=hostile))
        assert len((await server.rows(schema.AgentStats))[1].connections_by_proto) <= 64


async def test_script_timings(server: Deployment) -> None:
    agent, other = await server.new_agent(), await server.new_agent("other")
    script = (await server.agent(agent))["scripts"][0]
    later = Timestamp(seconds=THEN.seconds + 9)
    timing = pb.Timing(
        script_id=UUID(script["id"]).bytes, start=THEN, end=later, exit_code=3, status=pb.Timing.EXIT_FAILURE
    )
    request = pb.WorkspaceAgentScriptCompletedRequest(timing=timing)
    async with server.rpc(agent) as client, server.rpc(other) as stranger:
        await call(client, methods.SCRIPT_COMPLETED, request)
        shown = (await server.agent(agent))["scripts"][0]
        assert (shown["exit_code"], shown["status"]) == (3, "exit_failure")
        text = await refusal(stranger, methods.SCRIPT_COMPLETED, request)
        assert text.startswith("insert workspace agent script timings into database: ")
        text = await refusal(client, methods.SCRIPT_COMPLETED, pb.WorkspaceAgentScriptCompletedRequest())
        assert text == "script timing is required"


async def test_resource_monitoring(server: Deployment) -> None:
    agent = await server.new_agent()
    push = pb.PushResourcesMonitoringUsageRequest()
    async with server.rpc(agent) as client:
        answer = await call(
            client, methods.GET_RESOURCES_MONITORING_CONFIGURATION, pb.GetResourcesMonitoringConfigurationRequest()
        )
        assert (answer.config.num_datapoints, answer.config.collection_interval_seconds) == (20, 10)
        assert answer.memory.enabled
        assert [(volume.path, volume.enabled) for volume in answer.volumes] == [("/home", True)]
        for number in range(20):
            point = push.datapoints.add(collected_at=Timestamp(seconds=1000 + number))
            point.memory.used, point.memory.total = 90 if number > 15 else 1, 100
            point.volumes.add(volume="/home", used=1, total=100)
            point.volumes.add(volume="/unwatched", used=1, total=100)
        for _ in range(2):
            await call(client, methods.PUSH_RESOURCES_MONITORING_USAGE, push)
        assert len(await server.rows(schema.ResourceDatapoint)) == 40
        alerts = {monitor.path: monitor.alert for monitor in await server.rows(schema.ResourceMonitor)}
        assert alerts == {"": True, "/home": False}
        for point in push.datapoints:
            point.memory.used = 1
        await call(client, methods.PUSH_RESOURCES_MONITORING_USAGE, push)
        assert not any(monitor.alert for monitor in await server.rows(schema.ResourceMonitor))


@pytest.mark.spec("agent-api", 37)
async def test_connection_reports(server: Deployment) -> None:
    agent, session, kinds = await server.new_agent(), uuid4(), pb.Connection
    connect = kinds(id=session.bytes, action=kinds.CONNECT, type=kinds.SSH, timestamp=THEN)
    end = kinds(id=session.bytes, action=kinds.DISCONNECT, type=kinds.SSH, timestamp=THEN, status_code=7, reason="bye")
    async with server.rpc(agent) as client:
        for one in (connect, end, connect, end):
            await call(client, methods.REPORT_CONNECTION, pb.ReportConnectionRequest(connection=one))
        [row] = await server.rows(schema.Connection)
        assert (row.id, row.type, row.ip, row.status_code, row.reason) == (session, "ssh", None, 7, "bye")
        assert row.connected_at == row.disconnected_at == 1_730_433_233_500_000
        bad = pb.ReportConnectionRequest(connection=kinds(id=bytes(16)))
        assert await refusal(client, methods.REPORT_CONNECTION, bad) == "connection ID cannot be nil"
        await call(client, methods.REPORT_CONNECTION, pb.ReportConnectionRequest(connection=connect))


@pytest.mark.spec("agent-api", 22)
async def test_what_is_not_served(server: Deployment) -> None:
    agent = await server.new_agent()
    async with server.rpc(agent) as client:
        for method in (
            methods.CREATE_SUB_AGENT,
            methods.LIST_SUB_AGENTS,
            methods.REPORT_BOUNDARY_LOGS,
            methods.UPDATE_APP_STATUS,
            methods.PUSH_CONTEXT_STATE,
        ):
            with pytest.raises(RpcError) as refused:
                await client.unary(method.path, b"", timeout=20)
            assert refused.value.code == ErrorCode.UNIMPLEMENTED
        with pytest.raises(RpcError) as refused:
            await client.unary("/coder.agent.v2.Agent/Nope", b"", timeout=20)
        assert refused.value.text == 'protocol error: unknown rpc: "/coder.agent.v2.Agent/Nope"'
        with pytest.raises(RpcError, match="the request is no UpdateStatsRequest"):
            await client.unary(methods.UPDATE_STATS.path, b"\xff\xff", timeout=20)
        await call(client, methods.UPDATE_STATS, pb.UpdateStatsRequest())


@pytest.mark.spec("agent-api", 25)
@pytest.mark.parametrize(
    ("version", "detail"),
    [
        ("2.11", "server is at version 2.10, behind requested minor version 2.11"),
        ("3.0", "server is at version 2.10, behind requested major version 3.0"),
        ("1.0", "version 1.0 is no longer supported"),
        ("cats", "invalid version string: cats"),
        ("cats.dogs", "invalid major version: cats.dogs"),
        ("1.dogs", "invalid minor version: 1.dogs"),
        ("2.0.1", "invalid version string: 2.0.1"),
        ("2", "invalid version string: 2"),
    ],
)
async def test_versions_that_are_refused(server: Deployment, version: str, detail: str) -> None:
    agent = await server.new_agent()
    path = f"/api/v2/workspaceagents/me/rpc?version={version}"
    refused = await server.call("GET", path, token=agent.token, expect=400)
    assert refused == {
        "message": "Unknown or unsupported API version",
        "validations": [{"field": "version", "detail": detail}],
    }


@pytest.mark.spec("agent-api", 25)
@pytest.mark.parametrize(("query", "stored"), [("version=2.10", "2.10"), ("version=2.0", "2.0"), ("", "2.0")])
async def test_versions_that_are_accepted(server: Deployment, query: str, stored: str) -> None:
    agent = await server.new_agent()
    async with server.rpc(agent, query) as client:
        request = pb.UpdateStartupRequest(startup=pb.Startup(version="v1"))
        await call(client, methods.UPDATE_STARTUP, request)
        assert (await server.agent(agent))["api_version"] == stored


@pytest.mark.spec("agent-api", 26)
async def test_a_server_that_is_limited(database_url: str, tmp_path: Path) -> None:
    async with deployment(database_url, tmp_path, api_version=ApiVersion(2, 2)) as server:
        agent = await server.new_agent()
        refused = await server.call("GET", "/api/v2/workspaceagents/me/rpc?version=2.10", token=agent.token, expect=400)
        assert refused["validations"][0]["detail"] == "server is at version 2.2, behind requested minor version 2.10"
        async with server.rpc(agent, "version=2.2") as client:
            await call(client, methods.GET_MANIFEST, pb.GetManifestRequest())


async def status(server: Deployment, agent: NewAgent, wanted: str) -> Any:
    """The agent as soon as it has that status; a write may lie between the socket and the database."""
    for _ in range(200):
        shown = await server.agent(agent)
        if shown["status"] == wanted:
            return shown
        await asyncio.sleep(0.05)
    raise AssertionError(f"the agent stays {shown['status']}")


@pytest.mark.spec("agent-api", 39)
async def test_roles_and_status(server: Deployment) -> None:
    agent = await server.new_agent()
    assert (await server.agent(agent))["status"] == "connecting"
    async with server.rpc(agent, "version=2.10&role=shipper") as client:
        await call(client, methods.GET_MANIFEST, pb.GetManifestRequest())
        assert (await server.agent(agent))["status"] == "connecting"
    for query in ("version=2.10&role=agent", "version=2.10"):
        async with server.rpc(agent, query):
            assert "first_connected_at" in await status(server, agent, "connected")
        assert "disconnected_at" in await status(server, agent, "disconnected")


async def test_an_old_connection_that_ends_does_not_disconnect_a_new_one(server: Deployment) -> None:
    agent = await server.new_agent()
    async with server.rpc(agent):
        await status(server, agent, "connected")
        async with server.rpc(agent) as newer:
            await call(newer, methods.GET_MANIFEST, pb.GetManifestRequest())
            async with server.rpc(agent) as newest:
                await call(newest, methods.GET_MANIFEST, pb.GetManifestRequest())
                await newer.aclose()
                await asyncio.sleep(0.2)
                assert (await server.agent(agent))["status"] == "connected"


@pytest.mark.spec("agent-api", 40)
@pytest.mark.parametrize("role", ["agent", "shipper"])
@pytest.mark.parametrize(
    ("path", "body"), [("/builds", {"transition": "start"}), ("/builds", {"transition": "delete"}), ("/token", None)]
)
async def test_whose_token_lets_nobody_in_any_more_is_dropped(
    tmp_path: Path, role: str, path: str, body: dict[str, str] | None
) -> None:
    async with deployment(f"sqlite:///{tmp_path}/s.db", tmp_path, ping_period=0.3) as server:
        agent = await server.new_agent()
        async with server.rpc(agent, f"version=2.10&role={role}") as client:
            await call(client, methods.GET_MANIFEST, pb.GetManifestRequest())
            await server.call("POST", "/api/v2/agents/dev" + path, json=body, expect=201)
            async with asyncio.timeout(10):
                assert await client.wait_closed() is None
        await server.call("GET", "/api/v2/workspaceagents/me/gitsshkey", token=agent.token, expect=401)


async def test_an_agent_that_answers_pings_stays(database_url: str, tmp_path: Path) -> None:
    async with deployment(database_url, tmp_path, ping_period=0.15) as server:
        agent = await server.new_agent()
        async with server.rpc(agent) as client:
            before = (await status(server, agent, "connected"))["last_connected_at"]
            await asyncio.sleep(2.5)
            await call(client, methods.GET_MANIFEST, pb.GetManifestRequest())
            assert (await server.agent(agent))["last_connected_at"] > before


@pytest.mark.spec("agent-api", 39)
async def test_a_silent_agent_is_dropped(database_url: str, tmp_path: Path) -> None:
    """It neither answers pings nor closes: the times are scaled down with the ping period."""
    async with deployment(database_url, tmp_path, ping_period=0.3) as server:
        agent = await server.new_agent()
        path = "/api/v2/workspaceagents/me/rpc?version=2.10"
        async with server.websocket(path, agent.token) as socket:
            await status(server, agent, "connected")
            async with asyncio.timeout(10):
                while (message := await socket.receive()).type is aiohttp.WSMsgType.BINARY:
                    pass
            assert message.data == 1000
            await status(server, agent, "disconnected")


@pytest.mark.parametrize(
    "frames",
    [
        [b"\xff" * 12],
        [b"\x00\x01\x00\x01\x00\x00\x00\x02\x00\x00\x00\x00"],
        [b"\x00\x01\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\xff\xff\xff"],
    ],
)
async def test_garbage_ends_only_its_connection(server: Deployment, frames: list[bytes]) -> None:
    agent = await server.new_agent()
    async with server.rpc(agent) as healthy:
        async with server.websocket("/api/v2/workspaceagents/me/rpc?version=2.0", agent.token) as socket:
            for frame in frames:
                await socket.send_bytes(frame)
            async with asyncio.timeout(10):
                while (await socket.receive()).type is aiohttp.WSMsgType.BINARY:
                    pass
        await call(healthy, methods.GET_MANIFEST, pb.GetManifestRequest())


async def test_a_text_message_is_refused(server: Deployment) -> None:
    agent = await server.new_agent()
    async with server.websocket("/api/v2/workspaceagents/me/rpc?version=2.0", agent.token) as socket:
        await socket.send_str("hello")
        async with asyncio.timeout(10):
            while (message := await socket.receive()).type is aiohttp.WSMsgType.BINARY:
                pass
        assert message.data == 1003


async def test_a_database_that_fails_costs_no_connection(server: Deployment) -> None:
    agent, source = await server.new_agent(), uuid4()
    request = pb.BatchCreateLogsRequest(log_source_id=source.bytes, logs=[pb.Log(output="x")])
    async with server.rpc(agent) as client:
        async with server.database.engine.begin() as connection:
            await connection.exec_driver_sql("ALTER TABLE logs RENAME TO gone")
        assert await refusal(client, methods.BATCH_CREATE_LOGS, request) == "internal error"
        async with server.database.engine.begin() as connection:
            await connection.exec_driver_sql("ALTER TABLE gone RENAME TO logs")
        await call(client, methods.BATCH_CREATE_LOGS, request)


async def test_connections_end_when_the_server_stops(database_url: str, tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as http:
        async with deployment(database_url, tmp_path) as server:
            agent = await server.new_agent()
            url = f"{server.url}/api/v2/workspaceagents/me/rpc?version=2.0"
            socket = await http.ws_connect(url, headers={"Coder-Session-Token": agent.token})
            await status(server, agent, "connected")
        async with asyncio.timeout(10):
            while (message := await socket.receive()).type is aiohttp.WSMsgType.BINARY:
                pass
        assert message.data == 1001
        await socket.close()
    from agent.server.store import open_database

    database = await open_database(database_url)
    async with database.reading() as session:
        row = await session.get(schema.Agent, agent.id)
    await database.aclose()
    assert row is not None
    assert row.disconnected_at is not None
    assert row.connection_id is None
