"""Who is asking: tokens of users and of agents (agent-api.md §1.2, §1.3, §3), and the secrets behind them."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import string
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import structlog
from aiohttp import hdrs, web

from agent.clock import Clock
from agent.server.errors import ApiError, hidden
from agent.server.routes import Auth
from agent.server.store import Database, QueryError, agents, reason, users
from agent.server.wire import parse_uuid

if TYPE_CHECKING:
    from argon2 import PasswordHasher

COOKIE = "coder_session_token"
HEADER = "Coder-Session-Token"
TOUCH_PERIOD = 60_000_000
"""Microseconds between two notes that a key was used; every request would be a write otherwise."""
PARALLEL_PASSWORDS = 2
"""Each check takes 64 MiB and a core for tens of milliseconds."""

log = structlog.get_logger("agent.server.auth")

_ALPHABET = string.ascii_letters + string.digits
_USER_TOKEN = re.compile(r"([0-9A-Za-z]{10})-([0-9A-Za-z]{22})", re.ASCII)


@dataclass(frozen=True, slots=True)
class UserPrincipal:
    """A user, for one request."""

    id: UUID
    username: str
    role: str
    key_id: str

    @property
    def is_owner(self) -> bool:
        return self.role == "owner"


@dataclass(frozen=True, slots=True)
class AgentPrincipal:
    """An agent, for one request. `token_hash` is that of the token which it came with."""

    id: UUID
    token_hash: bytes
    name: str
    build_id: UUID
    workspace_id: UUID
    workspace_name: str
    owner_id: UUID
    owner_username: str


def find_token(request: web.Request) -> str:
    """The first non-empty value of the places of §1.2: a stale cookie beats a correct header."""
    scheme, _, bearer = request.headers.get(hdrs.AUTHORIZATION, "").strip().partition(" ")
    places = (
        request.cookies.get(COOKIE, ""),
        request.query.get(COOKIE, ""),
        request.headers.get(HEADER, ""),
        bearer.strip() if scheme.lower() == "bearer" else "",
        request.query.get("access_token", "").strip(),
    )
    return next(filter(None, places), "")


class NewKey(NamedTuple):
    """`token` is shown once; only the rest is kept."""

    id: str
    secret_hash: bytes
    token: str


def new_key() -> NewKey:
    """A user token `<10 characters>-<22 characters>`; the secret has 131 bits."""
    key_id, secret = ("".join(secrets.choice(_ALPHABET) for _ in range(length)) for length in (10, 22))
    return NewKey(key_id, hash_secret(secret), f"{key_id}-{secret}")


def hash_secret(secret: str) -> bytes:
    """For secrets that nobody can guess; passwords go through `Passwords`."""
    return hashlib.sha256(secret.encode()).digest()


def hash_agent_token(token: UUID) -> bytes:
    return hashlib.sha256(token.bytes).digest()


class Authenticator:
    """Finds out who sent a request."""

    def __init__(self, database: Database, clock: Clock, session_lifetime: float) -> None:
        self._database, self._clock = database, clock
        self._session_lifetime = round(session_lifetime * 1_000_000)

    async def authenticate(self, auth: Auth, request: web.Request) -> UserPrincipal | AgentPrincipal | None:
        """The caller, as the route wants it; None on a route for everybody. Raises `ApiError`."""
        match auth:
            case Auth.NONE:
                return None
            case Auth.AGENT:
                return await self._agent(find_token(request))
            case Auth.USER | Auth.USER_OR_PROXY | Auth.TERMINAL:
                token = find_token(request)
                user = await self.user(token)
                if user is not None:
                    return user
                if auth is Auth.TERMINAL:
                    raise hidden()
                if auth is Auth.USER_OR_PROXY:
                    raise ApiError(401, "API key or external proxy authentication required, but none provided")
                raise ApiError(
                    401,
                    "You are signed out or your session has expired. Please sign in again to continue.",
                    "The session token is invalid or has expired."
                    if token
                    else f'Cookie "{COOKIE}" or query parameter must be provided.',
                )

    async def user(self, token: str) -> UserPrincipal | None:
        """Whose token this is, if it is a valid one."""
        parts = _USER_TOKEN.fullmatch(token)
        if parts is None:
            return None
        now = self._clock.wall() // 1000
        async with self._database.reading() as session:
            found = await users.key_with_user(session, parts[1])
        if found is None:
            return None
        key, user = found
        if not hmac.compare_digest(key.secret_hash, hash_secret(parts[2])) or key.expires_at <= now:
            return None
        if now - key.last_used_at >= TOUCH_PERIOD:
            # A session lives on while it is used; a token ends when it was made to end.
            is_session = key.login_type == "password"
            expires = max(key.expires_at, now + self._session_lifetime) if is_session else key.expires_at
            try:
                async with self._database.transaction() as session:
                    await users.touch(session, key, now, expires)
            except QueryError as error:  # a database that is full can still be read
                log.warning("cannot note that a key was used", error=reason(error))
        return UserPrincipal(user.id, user.username, user.role, key.id)

    async def _agent(self, token: str) -> AgentPrincipal:
        if not token:
            raise ApiError(401, f'Cookie "{COOKIE}" must be provided.')
        try:
            parsed = parse_uuid(token)
        except ValueError as error:
            length = len(token.encode(errors="replace"))
            raise ApiError(
                401, "Workspace agent token invalid.", f"An agent token must be a valid UUIDv4. (len {length})"
            ) from error
        try:
            token_hash = hash_agent_token(parsed)
            async with self._database.reading() as session:
                row = await agents.by_token(session, token_hash)
        except QueryError as error:
            raise ApiError(500, "Internal error checking workspace agent authorization.", reason(error)) from error
        if row is None:
            raise ApiError(
                401,
                "Workspace agent not authorized.",
                "The agent cannot authenticate until the workspace provision job has been completed. "
                "If the job is no longer running, this agent is invalid.",
            )
        return AgentPrincipal(
            id=row.agent.id,
            token_hash=token_hash,
            name=row.agent.name,
            build_id=row.build.id,
            workspace_id=row.workspace.id,
            workspace_name=row.workspace.name,
            owner_id=row.owner.id,
            owner_username=row.owner.username,
        )


class Passwords:
    """Hashes and checks passwords, off the loop and few at a time."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(PARALLEL_PASSWORDS)

    async def hash(self, password: str) -> str:
        async with self._slots:
            return await asyncio.to_thread(lambda: _hasher().hash(password))

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Takes as long for a user who does not exist or has no password, so that nobody learns which ones do."""
        async with self._slots:
            return await asyncio.to_thread(_verify, password_hash, password)


@lru_cache(maxsize=1)
def _hasher() -> PasswordHasher:
    from argon2 import PasswordHasher

    return PasswordHasher()


@lru_cache(maxsize=1)
def _nobodys_hash() -> str:
    return _hasher().hash(secrets.token_hex())


def _verify(password_hash: str | None, password: str) -> bool:
    from argon2.exceptions import VerificationError

    try:
        _hasher().verify(password_hash or _nobodys_hash(), password)
    except VerificationError:
        return False
    return password_hash is not None
