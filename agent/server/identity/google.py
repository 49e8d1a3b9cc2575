"""Google Cloud: an identity token of an instance's service account (agent-api.md §5.5). No I/O.

Stricter than the Go server: the issuer must be Google, the audience the one that agents ask for, and a token from the
future is refused. Whoever holds a token that the instance gave to another service gets nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from agent.server.identity import jwt
from agent.server.identity.instance import ClaimsError, Cloud, IdentityError, Instance

LEEWAY: Final = 300
"""Seconds by which a token may come from the future: a server whose clock is some minutes slow is no rarity."""

_ISSUERS: Final = {
    "RS256": ("https://accounts.google.com", "accounts.google.com"),
    "ES256": ("https://cloud.google.com/iap",),
}


def read(token: str, audiences: tuple[str, ...], now: float) -> jwt.Token:
    """The first half: everything that needs no key. `now` is in seconds since 1970; without `audiences`, any will do.
    Raises `IdentityError`."""
    try:
        parsed = jwt.parse(token)
    except jwt.JwtError as error:
        raise IdentityError("malformed token", f"idtoken: {error}") from error
    claims = parsed.claims
    expires = _number(claims, "exp")
    if expires is None:
        raise IdentityError("no expiry", "idtoken: the token has no expiry")
    if expires <= now:
        raise IdentityError("expired", f"idtoken: token expired: now={int(now)}, expires={int(expires)}")
    for name in ("nbf", "iat"):
        since = _number(claims, name)
        if name in claims and (since is None or since > now + LEEWAY):
            raise IdentityError(
                "from the future", f"idtoken: the token is not valid yet ({name}); a clock may be wrong"
            )
    if "iss" in claims and claims["iss"] not in _ISSUERS[parsed.algorithm]:
        raise IdentityError("wrong issuer", "idtoken: the token was not issued by Google")
    if audiences and claims.get("aud") not in audiences:
        wanted = ", ".join(sorted(audiences))
        raise IdentityError("wrong audience", f"idtoken: the token is meant for another service than {wanted}")
    return parsed


def verified(token: jwt.Token, key: jwt.Key) -> Instance:
    """The second half. Raises `IdentityError`, of which `ClaimsError` says that the token is genuine."""
    try:
        token.verify(key)
    except jwt.JwtError as error:
        raise IdentityError("wrong signature", f"idtoken: {error}") from error
    engine = _object(_object(token.claims, "google"), "compute_engine")
    return Instance(
        Cloud.GOOGLE, _text(engine, "instance_id"), _text(engine, "project_id"), _region(_text(engine, "zone"))
    )


def _number(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # integers have no end
        return None
    return number if math.isfinite(number) else None


def _object(claims: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = claims.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ClaimsError("malformed claims", f"{name} is no object")
    return value


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ClaimsError("malformed claims", f"{name} is no string")
    return value


def _region(zone: str) -> str:
    """`us-central1-a` is in `us-central1`."""
    return zone.rpartition("-")[0]
