"""Which token a command inside of the workspace presents."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from agent.cli import workspace
from agent.clock import Clock
from agent.control import ControlHttp
from agent.daemon.config import AgentConfig
from agent.identity import CredentialSource, IdentityError


class Source:
    """Gives `outcome`; None: never anything."""

    def __init__(self, outcome: str | Exception | None) -> None:
        self._outcome = outcome

    async def obtain(self) -> str:
        if self._outcome is None:
            await asyncio.Event().wait()
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome or ""


def arrange(monkeypatch: pytest.MonkeyPatch, outcome: str | Exception | None, **variables: str) -> None:
    async def source(
        config: AgentConfig, http: ControlHttp, environment: Mapping[str, str], clock: Clock
    ) -> CredentialSource:
        assert config.auth == "aws-instance-identity"
        return Source(outcome)

    monkeypatch.setattr(workspace, "credential_source", source)
    monkeypatch.setattr(workspace, "TOKEN_LIMIT", 0.0)
    monkeypatch.setenv("CODER_AGENT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("CODER_AGENT_AUTH", "aws-instance-identity")
    monkeypatch.delenv("CODER_AGENT_TOKEN", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


async def token() -> str:
    async with workspace.server() as server:
        return server._http.token


async def test_an_exchange_of_its_own_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    arrange(monkeypatch, "fresh", CODER_AGENT_TOKEN="old")
    monkeypatch.setattr(workspace, "TOKEN_LIMIT", 5.0)
    assert await token() == "fresh"


@pytest.mark.parametrize("failure", [IdentityError("metadata: nobody answers"), None])
async def test_the_agents_token_serves_where_there_are_no_metadata(
    monkeypatch: pytest.MonkeyPatch, failure: Exception | None
) -> None:
    arrange(monkeypatch, failure, CODER_AGENT_TOKEN="old")
    assert await token() == "old"


async def test_without_either_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    arrange(monkeypatch, IdentityError("metadata: nobody answers"))
    with pytest.raises(IdentityError, match="nobody answers"):
        await token()
    arrange(monkeypatch, None)
    with pytest.raises(IdentityError, match="no token for aws-instance-identity within"):
        await token()
