"""Identity tokens of Google Cloud."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from agent.server.identity import google, jwt
from agent.server.identity.instance import ClaimsError, Cloud, IdentityError, Instance
from tests.server.identity.clouds import SECONDS, Google, rsa_key, segment

CLOUD = Google()
KEYS = jwt.parse_key_set(CLOUD.key_set()) | jwt.parse_key_set(CLOUD.proxy_key_set())
PROXY = {"alg": "ES256", "kid": "two"}


def verify(token: str, audiences: tuple[str, ...] = ("coder",)) -> Instance:
    read = google.read(token, audiences, SECONDS)
    return google.verified(read, KEYS[read.key_id])


def refusal(token: str) -> IdentityError:
    with pytest.raises(IdentityError) as raised:
        verify(token)
    return raised.value


def test_a_genuine_token() -> None:
    token = CLOUD.token(CLOUD.claims("123"))
    assert verify(token) == Instance(Cloud.GOOGLE, "123", "project-1", "us-central1")


def test_a_genuine_token_of_the_proxy() -> None:
    claims = CLOUD.claims("123", iss="https://cloud.google.com/iap")
    assert verify(CLOUD.token(claims, PROXY)).id == "123"
    assert refusal(CLOUD.token(CLOUD.claims("123"), PROXY)).reason == "wrong issuer"
    assert refusal(CLOUD.token(claims)).reason == "wrong issuer"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": int(SECONDS)}, "expired"),
        ({"exp": int(SECONDS) - 1}, "expired"),
        ({"exp": -1e308}, "expired"),
        ({"exp": None}, "no expiry"),
        ({"exp": "9999999999"}, "no expiry"),
        ({"exp": True}, "no expiry"),
        ({"iat": int(SECONDS) + 301}, "from the future"),
        ({"nbf": int(SECONDS) + 3600}, "from the future"),
        ({"nbf": "0"}, "from the future"),
        ({"exp": 10**400}, "no expiry"),
        ({"exp": -(10**400)}, "no expiry"),
        ({"iat": 10**400}, "from the future"),
        ({"iss": "https://accounts.google.com.evil.com"}, "wrong issuer"),
        ({"iss": ["https://accounts.google.com"]}, "wrong issuer"),
        ({"iss": {}}, "wrong issuer"),
        ({"aud": "vault"}, "wrong audience"),
        ({"aud": None}, "wrong audience"),
        ({"aud": ["coder"]}, "wrong audience"),
    ],
)
def test_claims_that_are_refused(changes: dict[str, Any], reason: str) -> None:
    assert refusal(CLOUD.token(CLOUD.claims("1", **changes))).reason == reason


def test_the_text_about_an_expired_token() -> None:
    error = refusal(CLOUD.token(CLOUD.claims("1", exp=1)))
    assert error.detail == f"idtoken: token expired: now={int(SECONDS)}, expires=1"


def test_claims_that_are_accepted() -> None:
    assert verify(CLOUD.token(CLOUD.claims("1", iat=int(SECONDS) + 300))).id == "1"
    assert verify(CLOUD.token(CLOUD.claims("1", iss=None))).id == "1"
    assert verify(CLOUD.token(CLOUD.claims("1", aud="vault")), audiences=()).id == "1"
    assert verify(CLOUD.token(CLOUD.claims("1", google=None))).id == ""
    assert verify(CLOUD.token(CLOUD.claims("1", google={}))).id == ""


@pytest.mark.parametrize("claim", [[], "x", {"compute_engine": 1}, {"compute_engine": {"instance_id": 5}}])
def test_claims_about_the_instance_of_another_kind(claim: object) -> None:
    with pytest.raises(ClaimsError):
        verify(CLOUD.token(CLOUD.claims("1", google=claim)))


def _unsigned(header: dict[str, Any]) -> str:
    claims = json.dumps(CLOUD.claims("1")).encode()
    return f"{segment(json.dumps(header).encode())}.{segment(claims)}"


def _with_public_key_as_secret() -> str:
    """What a verifier accepts that takes the token's word for what kind of key it has."""
    public = CLOUD.rsa.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signed = _unsigned({"alg": "HS256", "kid": "one"})
    return f"{signed}.{segment(hmac.digest(public, signed.encode(), hashlib.sha256))}"


def _altered() -> str:
    header, _, signature = CLOUD.token(CLOUD.claims("1")).split(".")
    return f"{header}.{segment(json.dumps(CLOUD.claims('2')).encode())}.{signature}"


def _not_canonical() -> str:
    """Two spare bits of the last character are set: the same bytes, another text."""
    token = CLOUD.token(CLOUD.claims("1"))
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) + 1]


FORGED: dict[str, tuple[Callable[[], str], str, str]] = {
    "none": (lambda: _unsigned({"alg": "none"}) + ".", "malformed token", "neither RS256 nor ES256"),
    "None": (lambda: _unsigned({"alg": "None"}) + ".AA", "malformed token", "neither RS256 nor ES256"),
    "no signature": (lambda: _unsigned({"alg": "RS256", "kid": "one"}) + ".", "malformed token", "not base64url"),
    "HS256": (_with_public_key_as_secret, "malformed token", "neither RS256 nor ES256"),
    "PS256": (lambda: _unsigned({"alg": "PS256"}) + ".AA", "malformed token", "neither RS256 nor ES256"),
    "no algorithm": (lambda: _unsigned({}) + ".AA", "malformed token", "neither RS256 nor ES256"),
    "extension": (
        lambda: CLOUD.token(CLOUD.claims("1"), {"alg": "RS256", "kid": "one", "crit": ["b64"], "b64": False}),
        "malformed token",
        "extensions",
    ),
    "altered": (_altered, "wrong signature", "the signature is wrong"),
    "other signer": (
        lambda: Google(rsa=rsa_key(99)).token(CLOUD.claims("1")),
        "wrong signature",
        "the signature is wrong",
    ),
    "key of another kind": (
        lambda: CLOUD.token(CLOUD.claims("1", iss="https://cloud.google.com/iap"), {"alg": "ES256", "kid": "one"}),
        "wrong signature",
        "the key is none for ES256",
    ),
    "short": (
        lambda: f"{_unsigned(PROXY)}.AA",
        "wrong issuer",
        "not issued by Google",
    ),
    "not canonical": (_not_canonical, "malformed token", "not canonical"),
    "padded": (lambda: CLOUD.token(CLOUD.claims("1")) + "==", "malformed token", "not base64url"),
    "line end": (lambda: CLOUD.token(CLOUD.claims("1")) + "\n", "malformed token", "not base64url"),
    "two segments": (lambda: "e30.e30", "malformed token", "three segments"),
    "four segments": (lambda: "e30.e30.e30.e30", "malformed token", "three segments"),
    "empty": (lambda: "", "malformed token", "three segments"),
    "10 MB": (lambda: "e30.e30." + "A" * 10_000_000, "malformed token", "longer than"),
    "deep": (
        lambda: f"{segment(b'[' * 9000)}.e30.AA",
        "malformed token",
        "the header cannot be read",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_tokens(name: str) -> None:
    forge, reason, text = FORGED[name]
    error = refusal(forge())
    assert error.reason == reason
    assert text in error.detail


def test_a_signature_of_the_proxy_has_64_bytes() -> None:
    claims = CLOUD.claims("1", iss="https://cloud.google.com/iap")
    token = CLOUD.token(claims, PROXY)
    signed, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    for other in (raw[:-1], raw + b"\0", bytes(64), b"\xff" * 64):
        assert refusal(f"{signed}.{segment(other)}").reason == "wrong signature"


def test_key_sets() -> None:
    good = json.loads(CLOUD.key_set())["keys"][0]

    def keys(*changes: dict[str, Any]) -> list[str]:
        listed = [{name: value for name, value in (good | change).items() if value is not None} for change in changes]
        return list(jwt.parse_key_set(json.dumps({"keys": listed}).encode()))

    assert keys({}) == ["one"]
    assert keys({"use": None, "alg": None}, {"kid": "x", "more": [1]}) == ["one", "x"]
    for change in (
        {"use": "enc"},
        {"kid": 5},
        {"kid": None},
        {"kty": "oct"},
        {"n": None},
        {"n": "!"},
        {"n": good["n"][:40]},
        {"n": segment(b"\xff" * 2048)},
        {"e": "AQ"},
        {"e": segment(b"\x01" * 9)},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-521"},
    ):
        assert keys(change, {"kid": "good"}) == ["good"]
    for data in (b"", b"[]", b"{}", b'{"keys":5}', b"[" * 100_000, json.dumps({"keys": [good] * 65}).encode()):
        with pytest.raises(jwt.KeySetError):
            jwt.parse_key_set(data)


@given(st.text(max_size=200))
def test_any_text_is_refused(token: str) -> None:
    with pytest.raises(IdentityError):
        google.read(token, (), SECONDS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["exp", "iat", "nbf", "iss", "aud", "google"]), json_values))
def test_any_claims_give_an_instance_or_a_refusal(changes: dict[str, Any]) -> None:
    try:
        instance = verify(CLOUD.token(CLOUD.claims("1", **changes)))
    except IdentityError:
        return
    assert instance.id == ("1" if "google" not in changes else instance.id)


@given(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit"]), json_values))
def test_any_header_of_a_forged_token_is_refused(header: dict[str, Any]) -> None:
    forged = f"{_unsigned(header)}.{segment(bytes(256))}"

    def verify_with_any_key() -> None:
        read = google.read(forged, (), SECONDS)
        google.verified(read, KEYS.get(read.key_id, KEYS["one"]))

    with pytest.raises(IdentityError):
        verify_with_any_key()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_key_set_or_refused(data: bytes) -> None:
    try:
        jwt.parse_key_set(data)
    except jwt.KeySetError:
        return
