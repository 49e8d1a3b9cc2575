"""Instance identity: each dial begins with a proof of the cloud, exchanged for a session token (agent-api.md §5.2)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from agent.clock import Clock
from agent.identity.clouds import Cloud
from agent.identity.metadata import Asker, MetadataService, http_asker
from agent.identity.token import IdentityError, checked_token

Exchange = Callable[[str, Mapping[str, str]], Awaitable[str]]
"""Gives the session token for a proof; takes the method, which names the endpoint, and the fields of the proof. Raises
`ExchangeRefusedError`; other errors reach whoever wanted the token as they are."""
OpenAsker = Callable[[], AbstractAsyncContextManager[Asker]]

_ADVICE = {
    400: "the instance belongs to an agent of an older build: it will do when the current build is this instance's",
    401: "the control plane does not believe the proof: its certificates for this cloud may be out of date, or a clock "
    "may be wrong, its own or this machine's",
    404: "the control plane has no agent for this instance (yet): the build may not have ended, or the agent was made "
    "with another instance id or none, or CODER_AGENT_NAME names none of the instance's agents",
    409: "set CODER_AGENT_NAME (or --agent-name) to one of these names",
}


class ExchangeRefusedError(IdentityError):
    """The control plane gave no token for the proof (agent-api.md §5.6). `answer` is its message, with the detail."""

    def __init__(self, method: str, status: int, answer: str, retry_after: float | None = None) -> None:
        advice = f"; {_ADVICE[status]}" if status in _ADVICE else ""
        super().__init__(f"{method} was answered {status}: {answer}{advice}")
        self.status = status
        self.retry_after = retry_after
        """Seconds that the control plane asked to wait, if it did."""


class InstanceIdentity:
    """The credential source of one cloud.

    Nothing is kept between two dials: the machine may have become another instance (re-homed, cloned, restored), and
    the instance another build's. Either shows in the next proof. Raises `IdentityError` when the environment names no
    usable address.
    """

    def __init__(
        self,
        cloud: Cloud,
        exchange: Exchange,
        agent_name: str,
        environment: Mapping[str, str],
        clock: Clock,
        open_asker: OpenAsker = http_asker,
    ) -> None:
        self._cloud = cloud
        self._exchange = exchange
        self._agent_name = agent_name.strip()
        self._address = cloud.address(environment)
        self._clock = clock
        self._open_asker = open_asker
        self._latest = ""

    async def obtain(self) -> str:
        async with self._open_asker() as asker:
            proof = await self._cloud.prove(
                MetadataService(f"metadata of {self._cloud.title}", self._address, asker, self._clock)
            )
        if self._agent_name:
            proof["agent_name"] = self._agent_name
        token = checked_token(await self._exchange(self._cloud.method, proof), f"the answer to {self._cloud.method}")
        if self._latest and token != self._latest:
            logger().info(
                "the control plane gave another token than before: this instance belongs to another build or agent now"
            )
        self._latest = token
        return token


def logger() -> Any:
    """The log of this room."""
    import structlog  # slow to import, and of no use to commands in the workspace

    return structlog.get_logger("agent.identity")
