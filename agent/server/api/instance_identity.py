"""Cloud instances prove who they are and get their agent's session token (agent-api.md §5.3-5.6)."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Sequence
from uuid import UUID

import msgspec
import structlog
from aiohttp import web

from agent.clock import Clock
from agent.server.auth import hash_agent_token
from agent.server.errors import ApiError
from agent.server.events import Events, agent_topic
from agent.server.http import Call, reply
from agent.server.identity import ClaimsError, Cloud, IdentityError, Instance, Verifiers
from agent.server.identity.instance import MAX_ID
from agent.server.routes import Auth, Route
from agent.server.store import Database, QueryError, identities, reason, settings
from agent.server.store.identities import Bound
from agent.server.store.schema import Agent
from agent.server.wire import Body

BODY_LIMIT = 128 * 1024
"""Bytes; real proofs have a few thousand."""
NAME_LIMIT = 64
SETTING = "instance_identity_key"

log = structlog.get_logger("agent.server.identity")


class AwsIdentity(Body):
    """The instance identity document, byte for byte, and its base64 signature."""

    required = ("signature", "document")

    signature: str = ""
    document: str = ""
    agent_name: str = ""


class AzureIdentity(Body):
    """The attested document as Azure's metadata service gives it; `encoding` says nothing."""

    required = ("signature", "encoding")

    signature: str = ""
    encoding: str = ""
    agent_name: str = ""


class GoogleIdentity(Body):
    """The identity token of the instance's service account, in full format."""

    required = ("json_web_token",)

    json_web_token: str = ""
    agent_name: str = ""


class SessionToken(msgspec.Struct):
    """For the agent of the instance; the same at every exchange, until the agent is given a new token."""

    session_token: str


class IdentityTokens:
    """Makes the tokens that instances get.

    Only hashes of tokens are stored, and yet an instance that comes again must get the token that its running programs
    have in their environment: so it is computed from the deployment's key, the agent, and the hash of the token that
    the agent was made with. Giving the agent a new token changes this one, too.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def token(self, agent: Agent) -> UUID:
        made = hmac.digest(self._key, agent.id.bytes + agent.token_hash, hashlib.sha256)
        return UUID(bytes=made[:16], version=4)


async def identity_tokens(database: Database) -> IdentityTokens:
    """With the deployment's key, which is made when it is first asked for: replicas and restarts agree."""
    async with database.transaction(exclusive=True) as session:
        stored = await settings.get(session, SETTING)
        if not isinstance(stored, dict):
            stored = {"key": secrets.token_hex(32)}
            await settings.put(session, SETTING, stored)
    return IdentityTokens(bytes.fromhex(str(stored["key"])))


class InstanceIdentity:
    """Handlers. Every decision goes to the log, without the proof."""

    def __init__(
        self, verifiers: Verifiers, tokens: IdentityTokens, database: Database, events: Events, clock: Clock
    ) -> None:
        self._verifiers, self._tokens = verifiers, tokens
        self._database, self._events, self._clock = database, events, clock

    def routes(self) -> list[Route]:
        return [
            Route(
                method="POST",
                path=f"/api/v2/workspaceagents/{cloud.short}-instance-identity",
                handler=handler,
                summary=f"Exchange the proof of an instance of {cloud.value} for its agent's session token",
                auth=Auth.NONE,
                request=request,
                responses={200: SessionToken},
                body_limit=BODY_LIMIT,
            )
            for cloud, handler, request in (
                (Cloud.AWS, self.aws, AwsIdentity),
                (Cloud.AZURE, self.azure, AzureIdentity),
                (Cloud.GOOGLE, self.google, GoogleIdentity),
            )
        ]

    async def aws(self, call: Call) -> web.Response:
        proof = await call.body(AwsIdentity)
        verification = self._verifiers.aws(proof.document, proof.signature)
        return await self._exchange(call, Cloud.AWS, verification, proof.agent_name)

    async def azure(self, call: Call) -> web.Response:
        proof = await call.body(AzureIdentity)
        return await self._exchange(call, Cloud.AZURE, self._verifiers.azure(proof.signature), proof.agent_name)

    async def google(self, call: Call) -> web.Response:
        proof = await call.body(GoogleIdentity)
        verification = self._verifiers.google(proof.json_web_token)
        return await self._exchange(call, Cloud.GOOGLE, verification, proof.agent_name)

    async def _exchange(
        self, call: Call, cloud: Cloud, verification: Awaitable[Instance], agent_name: str
    ) -> web.Response:
        audit = log.bind(cloud=cloud.short, remote=call.request.remote)
        try:
            instance = await verification
        except ClaimsError as error:
            audit.warning("an instance was refused", reason=error.reason)
            raise ApiError(400, "Error decoding JWT claims.", error.detail) from error
        except IdentityError as error:
            audit.warning("an instance was refused", reason=error.reason, detail=error.detail)
            raise ApiError(401, f"Invalid {cloud.value} identity.", error.detail) from error
        audit = audit.bind(instance_id=instance.id[:MAX_ID], account=instance.account[:MAX_ID])
        try:
            agent, token = await self._admit(instance, agent_name.strip())
        except QueryError as error:
            audit.error("an instance was refused", reason="database", error=reason(error))
            raise ApiError(500, "Internal error fetching workspace agent.", reason(error)) from error
        except ApiError as error:
            audit.warning("an instance was refused", reason=error.body.message, agent_name=agent_name[:NAME_LIMIT])
            raise
        audit.info("an instance was admitted", agent_id=str(agent.id), agent_name=agent.name)
        self._events.publish(agent_topic(agent.id))
        return reply(SessionToken(str(token)))

    async def _admit(self, instance: Instance, agent_name: str) -> tuple[Agent, UUID]:
        """The agent that the instance is, and its token. Raises `ApiError`, `QueryError`."""
        readable = len(instance.id) <= MAX_ID and instance.id.isprintable()
        async with self._database.transaction() as session:
            agents = await identities.bound_to(session, instance.id) if readable else []
            agent = select(instance.id, agent_name, agents)
            token = self._tokens.token(agent)
            now = self._clock.wall() // 1000
            await identities.note(session, agent, hash_agent_token(token), instance.cloud.short, now)
        return agent, token


def select(instance_id: str, agent_name: str, bound: Sequence[Bound]) -> Agent:
    """Which agent an instance is (§5.6). Those of earlier builds neither count nor stand in the way. Raises
    `ApiError`."""
    if not bound:
        raise ApiError(404, f'Instance with id "{instance_id[:MAX_ID]}" not found.')
    if agent_name:
        bound = [candidate for candidate in bound if candidate.agent.name == agent_name]
        if not bound:
            name = agent_name[:NAME_LIMIT]
            raise ApiError(404, f'No agent found with instance ID "{instance_id}" and name "{name}".')
    current = [candidate.agent for candidate in bound if candidate.current]
    if not current:
        raise ApiError(400, f'Resource found for id "{instance_id}", but isn\'t registered on the latest history.')
    if len(current) > 1:
        names = ", ".join(sorted(agent.name for agent in current))
        raise ApiError(
            409,
            f'Multiple agents found with instance ID "{instance_id}". Set CODER_AGENT_NAME to one of: {names}',
        )
    return current[0]
