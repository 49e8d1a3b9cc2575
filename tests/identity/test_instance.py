"""Exchanging the proof: at each dial, with the name of an agent only where there is one, and a fresh token counts."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from structlog.testing import capture_logs

from agent.identity import CLOUDS, Exchange, ExchangeRefusedError, IdentityError, InstanceIdentity
from agent.testing import ManualClock
from tests.identity.scripted import ScriptedAsker, ok

AWS = CLOUDS[0]
PROOF = {"signature": "YWJj", "document": '{"instanceId": "i-1"}'}


def on_aws() -> ScriptedAsker:
    return ScriptedAsker(*(ok("token"), ok(PROOF["signature"]), ok(PROOF["document"])) * 4)


class Server:
    """Gives out `tokens`, one an exchange."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = list(tokens)
        self.asked: list[tuple[str, dict[str, str]]] = []

    async def exchange(self, method: str, proof: Mapping[str, str]) -> str:
        self.asked.append((method, dict(proof)))
        return self.tokens.pop(0)


def source(exchange: Exchange, asker: ScriptedAsker, name: str = "") -> InstanceIdentity:
    return InstanceIdentity(AWS, exchange, name, {}, ManualClock(), asker.open)


@pytest.mark.spec("agent-api", 12, 16)
@pytest.mark.spec("daemon", 14)
async def test_each_dial_has_its_own_proof_and_token() -> None:
    server, asker = Server("one", "two"), on_aws()
    identity = source(server.exchange, asker)
    assert [await identity.obtain(), await identity.obtain()] == ["one", "two"]
    assert server.asked == [("aws-instance-identity", PROOF)] * 2
    assert asker.opened == 2
    assert len(asker.requests) == 6


@pytest.mark.spec("agent-api", 15)
@pytest.mark.spec("daemon", 14)
@pytest.mark.parametrize(("name", "sent"), [("", {}), ("  ", {}), (" main ", {"agent_name": "main"})])
async def test_the_name_goes_along_only_where_there_is_one(name: str, sent: dict[str, str]) -> None:
    server = Server("one")
    await source(server.exchange, on_aws(), name).obtain()
    assert server.asked == [("aws-instance-identity", {**PROOF, **sent})]


async def test_another_token_is_told_and_shown_nowhere() -> None:
    identity = source(Server("first", "first", "second").exchange, on_aws())
    with capture_logs() as logs:
        for _ in range(3):
            await identity.obtain()
    assert len(logs) == 1
    assert "another token than before" in logs[0]["event"]
    assert "second" not in str(logs)


@pytest.mark.parametrize("token", ["", "two words", "ü"])
async def test_an_answer_that_is_no_token(token: str) -> None:
    with pytest.raises(IdentityError, match="the answer to aws-instance-identity"):
        await source(Server(token).exchange, on_aws()).obtain()


@pytest.mark.parametrize(
    ("status", "advice"),
    [(400, "current build"), (401, "out of date"), (404, "instance id"), (409, "CODER_AGENT_NAME"), (500, "")],
)
def test_a_refusal_says_what_to_do(status: int, advice: str) -> None:
    error = ExchangeRefusedError("aws-instance-identity", status, "Its message (its detail)", 3.0)
    assert f"aws-instance-identity was answered {status}: Its message (its detail)" in str(error)
    assert advice in str(error)
    assert error.retry_after == 3.0


async def test_an_unusable_address_is_told_at_start() -> None:
    with pytest.raises(IdentityError, match="AWS_EC2_METADATA_SERVICE_ENDPOINT"):
        InstanceIdentity(AWS, Server().exchange, "", {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "x"}, ManualClock())
