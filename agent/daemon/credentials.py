"""Which source of credentials the configuration asks for; the only place where identity and control plane meet."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from agent.clock import Clock
from agent.control import ControlHttp, RefusedError, RestClient
from agent.daemon.config import AgentConfig
from agent.identity import (
    CLOUDS,
    Auto,
    Cloud,
    CredentialSource,
    ExchangeRefusedError,
    InstanceIdentity,
    token_source,
)


async def credential_source(
    config: AgentConfig, http: ControlHttp, environment: Mapping[str, str], clock: Clock
) -> CredentialSource:
    """The source for `--auth`. Proofs are exchanged over `http`, which must present no token of its own.

    Asks no cloud yet. Raises `IdentityError` for what no later attempt could make good.
    """

    async def exchange(method: str, proof: Mapping[str, str]) -> str:
        try:
            return await RestClient(http, clock).instance_identity(method, proof)
        except RefusedError as refusal:
            answer = f"{refusal.message} ({refusal.detail})" if refusal.detail else refusal.message
            raise ExchangeRefusedError(method, refusal.status, answer, refusal.retry_after) from refusal

    def instance(cloud: Cloud) -> CredentialSource:
        return InstanceIdentity(cloud, exchange, config.name, environment, clock)

    async def token() -> CredentialSource:
        return await asyncio.to_thread(token_source, config.token, config.token_file, config.credentials_directory)

    if config.auth == "token":
        return await token()
    if config.auth == "auto":
        configured = config.token or config.token_file or config.credentials_directory
        return Auto(instance, await token() if configured else None, environment, clock)
    return instance(next(cloud for cloud in CLOUDS if cloud.method == config.auth))
