"""The calls that a Go agent was recorded to make, made again at our real server over a WebSocket."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing
from pathlib import Path
from uuid import UUID

from sqlalchemy import update

from agent.api import methods, tailnet
from agent.api.proto import agent_pb2 as pb
from agent.api.proto import tailnet_pb2 as tailnet_pb
from agent.rpc import RpcClient
from agent.server.metadata_writer import PERIOD
from agent.server.store import schema
from tests.rpc.test_replay import Call, recorded
from tests.server.deployment import Deployment, NewAgent, deployment


async def _with_recorded_ids(server: Deployment, calls: list[Call]) -> NewAgent:
    """An agent with the recorded manifest, ids included."""
    manifest = pb.Manifest.FromString(next(call for call in calls if call.path == methods.GET_MANIFEST.path).replies[0])
    agent = await server.new_agent(
        scripts=[
            {"display_name": f"s{number}", "script": script.script, "run_on_start": True}
            for number, script in enumerate(manifest.scripts)
        ],
        metadata=[{"key": item.key, "script": item.script} for item in manifest.metadata],
        apps=[
            {
                "slug": app.slug,
                "url": app.url,
                "healthcheck": {"url": app.healthcheck.url, "interval": 2, "threshold": app.healthcheck.threshold},
            }
            for app in manifest.apps
        ],
    )
    async with server.database.transaction() as session:
        for position, script in enumerate(manifest.scripts):
            await session.execute(
                update(schema.Script).where(schema.Script.position == position).values(id=UUID(bytes=script.id))
            )
        for position, app in enumerate(manifest.apps):
            await session.execute(
                update(schema.App).where(schema.App.position == position).values(id=UUID(bytes=app.id))
            )
    return agent


async def _coordinate(client: RpcClient, agent: NewAgent, call: Call) -> None:
    """What the agent told the coordinator, with the addresses of this agent, and without its clients."""
    requests = [tailnet_pb.CoordinateRequest.FromString(data) for data in call.requests]
    own = [tailnet.address_text(packed) for packed in tailnet.agent_addresses(agent.id)]
    assert any(request.HasField("update_self") for request in requests)
    asked = 0
    async with await client.duplex(call.path) as stream:
        for request in requests:
            if request.HasField("update_self"):
                node = request.update_self.node
                assert len(node.addresses) == len(node.allowed_ips) == len(own)
                node.addresses[:] = node.allowed_ips[:] = own
            asked += len(request.ready_for_handshake)
            await stream.send(request.SerializeToString())
        for _ in range(asked):
            response = tailnet_pb.CoordinateResponse.FromString(await stream.receive() or b"")
            assert response.error.startswith("ready for handshake error: you do not share a tunnel with")
        if not any(request.HasField("disconnect") for request in requests):
            disconnect = tailnet_pb.CoordinateRequest(disconnect=tailnet_pb.CoordinateRequest.Disconnect())
            await stream.send(disconnect.SerializeToString())
        assert await stream.receive() is None


async def test_every_recorded_call_is_answered(database_url: str, tmp_path: Path) -> None:
    calls = list(recorded().values())
    assert len(calls) > 50
    async with deployment(database_url, tmp_path) as server:
        agent = await _with_recorded_ids(server, calls)
        async with server.rpc(agent, "version=2.4") as client:
            for call in calls:
                if call.path == methods.STREAM_DERP_MAPS.path:
                    async with aclosing(client.stream(call.path, call.requests[0])) as maps:
                        derp_map = tailnet_pb.DERPMap.FromString(await anext(maps))
                    assert derp_map.HasField("home_params")
                    assert list(derp_map.regions) == [999]
                elif call.path == methods.COORDINATE.path:
                    await _coordinate(client, agent, call)
                else:
                    await client.unary(call.path, call.requests[0], timeout=20)
        batches = [
            pb.BatchCreateLogsRequest.FromString(call.requests[0])
            for call in calls
            if call.path == methods.BATCH_CREATE_LOGS.path
        ]
        sent = [
            (log.output, pb.Log.Level.Name(log.level).lower(), str(UUID(bytes=batch.log_source_id)))
            for batch in batches
            for log in batch.logs
        ]
        assert [(row["output"], row["level"], row["source_id"]) for row in await server.logs(agent)] == sent
        shown = await server.agent(agent)
        assert (shown["lifecycle_state"], shown["version"], shown["api_version"]) == ("off", "v2.21.0", "2.4")
        assert shown["started_at"] < shown["ready_at"]
        assert shown["logs_length"] == sum(len(output.encode()) for output, _, _ in sent)
        assert [app["health"] for app in shown["apps"]] == ["unhealthy"]
        await asyncio.sleep(2 * PERIOD)
        [load] = await server.rows(schema.Metadata)
        last = [call for call in calls if call.path == methods.BATCH_UPDATE_METADATA.path][-1].requests[0]
        assert load.value == pb.BatchUpdateMetadataRequest.FromString(last).metadata[0].result.value.strip()
        made = Counter(call.path for call in calls)
        assert len(await server.rows(schema.ScriptTiming)) == made[methods.SCRIPT_COMPLETED.path]
        assert len(await server.rows(schema.AgentStats)) == made[methods.UPDATE_STATS.path] - 1
        [connection] = await server.rows(schema.Connection)
        assert (connection.status_code, connection.ip) == (3, "fd7a:115c:a1e0:4cfc:b837:cfc:c09c:17df")
