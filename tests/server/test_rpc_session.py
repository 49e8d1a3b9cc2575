"""The calls that a Go agent was recorded to make, made again at our real server over a WebSocket."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import update

from agent.api import methods
from agent.api.proto import agent_pb2 as pb
from agent.rpc import RpcError
from agent.server.metadata_writer import PERIOD
from agent.server.store import schema
from tests.rpc.test_replay import TAILNET, Call, recorded
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


async def test_every_recorded_call_is_answered(database_url: str, tmp_path: Path) -> None:
    calls = list(recorded().values())
    assert len(calls) > 50
    async with deployment(database_url, tmp_path) as server:
        agent = await _with_recorded_ids(server, calls)
        async with server.rpc(agent, "version=2.4") as client:
            for call in calls:
                if call.path.startswith(TAILNET):  # comes with the tailnet; agents go on without it
                    with pytest.raises(RpcError, match=r"^protocol error: unknown rpc: "):
                        await client.unary(call.path, call.requests[0] if call.requests else b"", timeout=20)
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
