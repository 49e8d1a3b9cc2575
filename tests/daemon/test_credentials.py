"""Which source of credentials the configuration gives, and what becomes of the control plane's answers to a proof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from yarl import URL

from agent.control import ControlHttp, RefusedError, RestClient, UnreachableError
from agent.daemon.config import AgentConfig, ConfigError, parse_config
from agent.daemon.credentials import credential_source
from agent.daemon.reconnect import diagnose
from agent.identity import CLOUDS, Auto, ExchangeRefusedError, FixedToken, IdentityError, InstanceIdentity, aws
from agent.identity.metadata import MetadataService
from agent.testing import ManualClock

URL_ONLY = {"CODER_AGENT_URL": "http://server.example.com"}
PROOF = {"signature": "s", "document": "d"}


def config(**variables: str) -> AgentConfig:
    return parse_config({}, {**URL_ONLY, **variables})


async def source(given: AgentConfig, environment: Mapping[str, str] = {}) -> object:
    clock = ManualClock()
    return await credential_source(given, ControlHttp(URL(given.url), (), clock), environment, clock)


@pytest.mark.parametrize(
    ("auth", "kind"),
    [
        ("aws-instance-identity", InstanceIdentity),
        ("azure-instance-identity", InstanceIdentity),
        ("google-instance-identity", InstanceIdentity),
        ("auto", Auto),
    ],
)
async def test_a_cloud_needs_no_token(auth: str, kind: type) -> None:
    assert isinstance(await source(config(CODER_AGENT_AUTH=auth)), kind)


async def test_token_needs_one() -> None:
    with pytest.raises(ConfigError, match="Either CODER_AGENT_TOKEN or CODER_AGENT_TOKEN_FILE must be set"):
        config()
    assert isinstance(await source(config(CODER_AGENT_TOKEN="t")), FixedToken)


async def test_a_token_file_that_is_named_must_be_there_for_auto_too(tmp_path: Path) -> None:
    given = config(CODER_AGENT_AUTH="auto", CODER_AGENT_TOKEN_FILE=str(tmp_path / "none"))
    with pytest.raises(IdentityError, match="No such file"):
        await source(given)


async def test_an_address_that_is_none_ends_the_start() -> None:
    given = config(CODER_AGENT_AUTH="google-instance-identity")
    with pytest.raises(IdentityError, match="GCE_METADATA_HOST"):
        await source(given, {"GCE_METADATA_HOST": "a b"})


@pytest.fixture
def proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata service of AWS gives `PROOF`."""

    async def prove(service: MetadataService) -> dict[str, str]:
        return dict(PROOF)

    clouds = [replace(cloud, prove=prove) if cloud.method == aws.NAME else cloud for cloud in CLOUDS]
    monkeypatch.setattr("agent.daemon.credentials.CLOUDS", clouds)


async def obtain(monkeypatch: pytest.MonkeyPatch, answer: str | Exception, **variables: str) -> tuple[str, object]:
    """The token, and what the control plane was sent."""
    sent: list[object] = []

    async def exchange(client: RestClient, method: str, proof: Mapping[str, str]) -> str:
        sent.append((method, dict(proof)))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(RestClient, "instance_identity", exchange)
    found = await source(config(CODER_AGENT_AUTH="aws-instance-identity", **variables))
    assert isinstance(found, InstanceIdentity)
    return await found.obtain(), sent[0]


@pytest.mark.usefixtures("proven")
@pytest.mark.spec("daemon", 14)
async def test_the_agents_name_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await obtain(monkeypatch, "t") == ("t", ("aws-instance-identity", PROOF))
    named = {**PROOF, "agent_name": "main"}
    assert await obtain(monkeypatch, "t", CODER_AGENT_NAME="main") == ("t", ("aws-instance-identity", named))


@pytest.mark.usefixtures("proven")
@pytest.mark.spec("daemon", 14)
@pytest.mark.spec("agent-api", 15)
@pytest.mark.parametrize(
    ("status", "message", "detail"),
    [
        (400, 'Resource found for id "i", but isn\'t registered on the latest history.', ""),
        (401, "Invalid AWS identity.", "crypto/rsa: verification error"),
        (404, 'Instance with id "i" not found.', ""),
        (409, 'Multiple agents found with instance ID "i". Set CODER_AGENT_NAME to one of: a, b', ""),
    ],
)
async def test_a_refusal_is_an_attempt_that_failed(
    monkeypatch: pytest.MonkeyPatch, status: int, message: str, detail: str
) -> None:
    refusal = RefusedError("POST http://server", status, message, detail, retry_after=7.0)
    with pytest.raises(ExchangeRefusedError) as caught:
        await obtain(monkeypatch, refusal)
    trouble = diagnose(caught.value)
    assert trouble.kind == f"identity refused {status}"
    assert trouble.text.startswith("refresh token: aws-instance-identity was answered")
    assert message in trouble.text
    assert detail in trouble.text
    assert "check the agent token" not in trouble.text
    assert not trouble.away
    assert trouble.retry_after == 7.0


@pytest.mark.usefixtures("proven")
async def test_a_server_that_is_away_is_looked_for_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    for failure in (RefusedError("POST", 503, "away"), UnreachableError("http://server: refused")):
        with pytest.raises((ExchangeRefusedError, UnreachableError)) as caught:
            await obtain(monkeypatch, failure)
        assert diagnose(caught.value).away


def test_metadata_that_do_not_answer_are_told_by_name() -> None:
    trouble = diagnose(IdentityError("metadata of AWS: PUT http://x: nobody answers"))
    assert trouble.text == "refresh token: metadata of AWS: PUT http://x: nobody answers"
    assert not trouble.away
