"""Resume tokens: who made it, for whom, for how long."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.server.store import Database
from agent.server.tailnet_rpc.resume import LIFETIME, ResumeError, ResumeTokens, resume_tokens

PEER = UUID("11111111-2222-4333-8444-555555555555")
TOKENS = ResumeTokens("key", b"k" * 64)


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_a_token_names_its_peer_until_it_expires() -> None:
    token, expires = TOKENS.make(PEER, "me", 1000)
    assert expires == 1000 + LIFETIME
    assert TOKENS.check(token, "me", 1000) == TOKENS.check(token, "me", expires - 1) == PEER
    with pytest.raises(ResumeError, match="expired"):
        TOKENS.check(token, "me", expires)


def test_a_token_is_of_one_key_and_for_one_purpose() -> None:
    token, _ = TOKENS.make(PEER, "me", 1000)
    with pytest.raises(ResumeError, match="another purpose"):
        TOKENS.check(token, "you", 1000)
    with pytest.raises(ResumeError, match="another key"):
        ResumeTokens("other", b"k" * 64).check(token, "me", 1000)
    with pytest.raises(ResumeError, match="signature"):
        ResumeTokens("key", b"x" * 64).check(token, "me", 1000)
    header, claims, signature = token.split(".")
    with pytest.raises(ResumeError, match="signature"):
        TOKENS.check(f"{header}.{part({'sub': str(uuid4()), 'aud': 'me', 'exp': 9**9})}.{signature}", "me", 1000)
    with pytest.raises(ResumeError, match="another key"):
        TOKENS.check(f"{part({'alg': 'none', 'kid': 'key'})}.{claims}.", "me", 1000)


def test_a_token_without_a_key_id_gives_a_new_peer() -> None:
    token = f"{part({'alg': 'HS512'})}.{part({'sub': str(PEER)})}.x"
    with pytest.raises(ResumeError, match="base64"):
        TOKENS.check(token, "me", 1000)
    assert TOKENS.check(token + "x", "me", 1000) != PEER


@given(
    st.one_of(
        st.text(), st.tuples(*[st.one_of(st.text(), st.dictionaries(st.text(), st.text()).map(part))] * 3).map(".".join)
    )
)
def test_anything_else_is_refused(token: str) -> None:
    with suppress(ResumeError):
        assert TOKENS.check(token, "me", 1000).version == 4


def test_the_key_stays_secret() -> None:
    assert "kkk" not in repr(TOKENS)


async def test_replicas_and_restarts_agree(database: Database) -> None:
    first, second = await resume_tokens(database), await resume_tokens(database)
    assert first == second
    assert len(first.key) == 64
