"""Resume tokens: a client that comes back keeps its peer id, and agents see the same peer (tailnet.md §3.6, §3.8)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from agent.server.store import Database, settings

LIFETIME = 24 * 3600
REFRESH = 12 * 3600
"""Seconds; from when a token was made."""
MAX_TOKEN = 2048
SETTING = "resume_key"


class ResumeError(Exception):
    """The token is not one of ours, is of somebody else, or has expired."""


@dataclass(frozen=True, slots=True)
class ResumeTokens:
    """Makes and checks tokens: compact JWS with HMAC-SHA-512, opaque to clients.

    A token is good for one `audience` only: who asks, and for what. The peer id brings the tunnels of its earlier
    connection along, which another user must not get.
    """

    key_id: str
    key: bytes = field(repr=False)

    def make(self, peer: UUID, audience: str, now: int) -> tuple[str, int]:
        """The token, and when it expires; times are in seconds since 1970."""
        expires = now + LIFETIME
        header = {"alg": "HS512", "kid": self.key_id}
        claims = {"sub": str(peer), "aud": audience, "iat": now, "exp": expires}
        signed = f"{_encode(_json(header))}.{_encode(_json(claims))}"
        return f"{signed}.{_encode(self._sign(signed))}", expires

    def check(self, token: str, audience: str, now: int) -> UUID:
        """The peer id. A token without `kid` gives a new one, as servers before signed tokens handed them out.

        Raises `ResumeError`.
        """
        parts = token.split(".")
        if len(token) > MAX_TOKEN or len(parts) != 3:
            raise ResumeError("it is no token of three parts")
        header, signature = _object(parts[0]), _decode(parts[2])
        if "kid" not in header:
            return uuid4()
        if header.get("alg") != "HS512" or header["kid"] != self.key_id:
            raise ResumeError("it was signed with another key")
        if not hmac.compare_digest(signature, self._sign(f"{parts[0]}.{parts[1]}")):
            raise ResumeError("its signature is wrong")
        claims = _object(parts[1])
        if claims["exp"] <= now:
            raise ResumeError("it has expired")
        if claims["aud"] != audience:
            raise ResumeError("it was made for another purpose")
        return UUID(claims["sub"])

    def _sign(self, signed: str) -> bytes:
        return hmac.digest(self.key, signed.encode(), hashlib.sha512)


async def resume_tokens(database: Database) -> ResumeTokens:
    """With the deployment's key, which is made when it is first asked for: replicas and restarts agree."""
    async with database.transaction(exclusive=True) as session:
        stored = await settings.get(session, SETTING)
        if not isinstance(stored, dict):
            stored = {"id": secrets.token_hex(8), "key": secrets.token_hex(64)}
            await settings.put(session, SETTING, stored)
    return ResumeTokens(str(stored["id"]), bytes.fromhex(str(stored["key"])))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ResumeError("a part of it is no base64") from error


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(_decode(text))
    except (ValueError, RecursionError) as error:
        raise ResumeError("a part of it is no JSON") from error
    if not isinstance(value, dict):
        raise ResumeError("a part of it is no JSON object")
    return value
