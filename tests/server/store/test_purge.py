"""What is forgotten after the retention, and what stays."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import select

from agent.server.store import Database, workspaces
from agent.server.store.schema import Connection, Script, ScriptTiming
from tests.server.store.fixtures import add_agent


async def test_old_timings_and_connections(database: Database) -> None:
    agent, script = await add_agent(database), uuid4()
    async with database.transaction() as session:
        session.add(
            Script(
                id=script,
                agent_id=agent,
                log_source_id=uuid4(),
                position=0,
                display_name="s",
                script="x",
                log_path="",
                cron="",
                run_on_start=True,
                run_on_stop=False,
                start_blocks_login=False,
                timeout_ns=0,
            )
        )
        await session.flush()
        for ended in (10, 20):
            run = {"started_at": 1, "ended_at": ended, "exit_code": 0, "stage": "cron", "status": "ok"}
            session.add(ScriptTiming(script_id=script, **run))
            await session.flush()
        for at in (10, None, 100):
            session.add(Connection(agent_id=agent, id=uuid4(), type="ssh", connected_at=1, disconnected_at=at))
    async with database.transaction() as session:
        await workspaces.purge(session, 50)
    async with database.reading() as session:
        assert list(await session.scalars(select(ScriptTiming.ended_at))) == [20]
        assert set(await session.scalars(select(Connection.disconnected_at))) == {None, 100}
