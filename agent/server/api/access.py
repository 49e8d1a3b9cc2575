"""Which agent a user may look at."""

from __future__ import annotations

from agent.server.errors import ApiError
from agent.server.http import Call
from agent.server.store import Database, agents
from agent.server.store.agents import AgentRow


async def visible_agent(database: Database, call: Call) -> AgentRow:
    """The agent that `{workspaceagent}` names: owners see all, members their own (§3). Raises `ApiError` 400 or 404."""
    agent_id = call.uuid("workspaceagent")
    async with database.reading() as session:
        row = await agents.by_id(session, agent_id)
    if row is None or not (call.user.is_owner or row.owner.id == call.user.id):
        raise ApiError(404, "Agent doesn't exist with that id, or you do not have access to it.")
    return row
