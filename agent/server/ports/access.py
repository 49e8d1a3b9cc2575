"""Who may open a port: tickets, which are good once, and passes, which browsers keep as a cookie."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote
from uuid import UUID

from agent.clock import Clock
from agent.server.api.models import status_of
from agent.server.auth import UserPrincipal, hash_secret
from agent.server.ports.origins import Origin
from agent.server.store import Database, agents, port_tickets, settings, users
from agent.server.store.agents import AgentRow
from agent.server.store.schema import PortTicket

TICKET: Final = "workspace_port_ticket"
"""The query parameter."""
TICKET_LIFETIME: Final = 60
PASS_LIFETIME: Final = 24 * 3600
"""Seconds; the user's key may end before."""
SETTING: Final = "port_pass_key"
_SECOND: Final = 1_000_000
_TICKET: Final = re.compile(r"[0-9A-Za-z_-]{43}", re.ASCII)
_PASS: Final = re.compile(r"([0-9A-Za-z]{10})\.([0-9]{1,12})\.([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Visit:
    """Somebody may see an agent, as of now; `status` is the agent's."""

    status: str


class PortAccess:
    """Makes tickets and passes, and checks them against the database."""

    def __init__(self, database: Database, clock: Clock, key: bytes) -> None:
        self._database, self._clock, self._key = database, clock, key

    async def issue(self, origin: Origin, user: UserPrincipal) -> str:
        """A URL that opens the origin once, for `TICKET_LIFETIME` seconds, with this key of the user's."""
        ticket, now = secrets.token_urlsafe(32), self._clock.wall() // 1000
        row = PortTicket(
            code_hash=hash_secret(ticket),
            key_id=user.key_id,
            agent_id=origin.agent,
            port=origin.port,
            expires_at=now + TICKET_LIFETIME * _SECOND,
        )
        async with self._database.transaction() as session:
            await port_tickets.remove_expired(session, now)
            await port_tickets.add(session, row)
        return f"{origin.url}/?{TICKET}={quote(ticket)}"

    async def redeem(self, ticket: str, origin: Origin) -> Pass | None:
        """The pass that a ticket is good for. It is used up; None where it was before, is too old or another port's."""
        if _TICKET.fullmatch(ticket) is None:
            return None
        code = hash_secret(ticket)
        async with self._database.reading() as session:
            # Strangers who guess do not make the database write.
            if not await port_tickets.exists(session, code):
                return None
        async with self._database.transaction() as session:
            row = await port_tickets.redeem(session, code)
        now = self._clock.wall() // 1000
        if row is None or row.expires_at <= now or (row.agent_id, row.port) != (origin.agent, origin.port):
            return None
        if await self.visit(row.key_id, origin.agent) is None:
            return None
        expires = now // _SECOND + PASS_LIFETIME
        return Pass(f"{row.key_id}.{expires}.{self._sign(origin, row.key_id, expires)}")

    def key_of(self, cookie: str, origin: Origin) -> str | None:
        """The key that a pass was made with, if it is one for this origin and not too old."""
        parts = _PASS.fullmatch(cookie)
        if parts is None or int(parts[2]) <= self._clock.wall() // 1_000_000_000:
            return None
        valid = hmac.compare_digest(parts[3], self._sign(origin, parts[1], int(parts[2])))
        return parts[1] if valid else None

    async def visit(self, key_id: str, agent: UUID) -> Visit | None:
        """What the database says now; None where the key has ended, or its user may not see the agent."""
        now = self._clock.wall() // 1000
        async with self._database.reading() as session:
            found = await users.key_with_user(session, key_id)
            row = await agents.by_id(session, agent)
        if found is None or row is None:
            return None
        key, user = found
        if key.expires_at <= now or not _sees(user.role, user.id, row):
            return None
        return Visit(status_of(row, now))

    def _sign(self, origin: Origin, key_id: str, expires: int) -> str:
        signed = f"{origin.url}\n{origin.agent}\n{origin.port}\n{key_id}\n{expires}"
        return hmac.digest(self._key, signed.encode(), hashlib.sha256).hex()


@dataclass(frozen=True, slots=True)
class Pass:
    """`value` is what the cookie holds."""

    value: str = field(repr=False)


async def open_access(database: Database, clock: Clock) -> PortAccess:
    """With the deployment's key, which is made when it is first asked for: replicas and restarts agree."""
    async with database.transaction(exclusive=True) as session:
        stored = await settings.get(session, SETTING)
        if not isinstance(stored, dict):
            stored = {"key": secrets.token_hex(32)}
            await settings.put(session, SETTING, stored)
    return PortAccess(database, clock, bytes.fromhex(str(stored["key"])))


def _sees(role: str, user: UUID, row: AgentRow) -> bool:
    return role == "owner" or row.owner.id == user
