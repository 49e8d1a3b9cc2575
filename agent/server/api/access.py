"""Which agent a user may look at, and which API version a peer may speak."""

from __future__ import annotations

from agent.api.versions import ApiVersion, VersionRefusedError, accept_version
from agent.server.errors import ApiError, Validation
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


def negotiated(call: Call, newest: ApiVersion, default: str = "") -> ApiVersion:
    """What the peer speaks, of a server that offers `newest` (§7.1). Raises `ApiError` 400."""
    try:
        return accept_version(call.query.get("version", "") or default, newest)
    except VersionRefusedError as error:
        mistake = Validation("version", str(error))
        raise ApiError(400, "Unknown or unsupported API version", validations=[mistake]) from error
