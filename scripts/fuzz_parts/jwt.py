"""Identity tokens of Google, and the key sets that they are checked against. A token's three parts are written without
base64 here, after a byte each that tells its length, so that changes of them are still tokens."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

from agent.server.identity import google, jwt
from agent.server.identity.instance import IdentityError
from fuzz_parts import Input

NOW = 1_800_000_000.0
CLAIMS = {"exp": 1.9e9, "iat": 1, "iss": "accounts.google.com", "aud": "coder", "google": {"compute_engine": {}}}
RSA_KEY = {"kty": "RSA", "kid": "a", "use": "sig", "e": "AQAB", "n": "w" * 342}
EC_KEY = {
    "kty": "EC",
    "crv": "P-256",
    "kid": "b",
    "x": "axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY",
    "y": "T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU",
}
KEYS = json.dumps({"keys": [RSA_KEY, EC_KEY]}).encode()


def seeds() -> Iterator[bytes]:
    claims = json.dumps(CLAIMS).encode()
    for header in ({"alg": "RS256", "kid": "a"}, {"alg": "ES256", "kid": "b"}, {"alg": "none"}):
        yield b"\0" + b"".join(bytes((len(part),)) + part for part in (json.dumps(header).encode(), claims, bytes(64)))
    yield b"\1" + KEYS
    yield b"\2eyJhbGciOiJSUzI1NiJ9.e30.AA"


def target(data: bytes) -> None:
    kind, rest = data[:1], data[1:]
    if kind == b"\1":
        try:
            jwt.parse_key_set(rest)
        except jwt.KeySetError:
            return
    elif kind == b"\2":
        _token(rest.decode("latin-1"))
    else:
        given = Input(rest)
        _token(".".join(base64.urlsafe_b64encode(given.text()).rstrip(b"=").decode() for _ in range(3)))


def _token(text: str) -> None:
    keys = jwt.parse_key_set(KEYS)
    try:
        token = google.read(text, (), NOW)
        instance = google.verified(token, keys.get(token.key_id, next(iter(keys.values()))))
    except IdentityError:
        return
    raise AssertionError(f"nobody signed {instance}")
