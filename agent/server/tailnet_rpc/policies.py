"""What a peer may ask the coordinator for, by what kind of peer it is (tailnet.md §3.8)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol
from uuid import UUID

from agent.api.proto import tailnet_pb2 as pb
from agent.api.tailnet import LEGACY_AGENT_ADDRESS, agent_addresses, parse_prefix

MAX_ADDRESSES = 64
"""Of each kind, of one node. Real ones have one to three."""


class RefusedError(Exception):
    """The peer may not do that; the text is for it."""


class Policy(Protocol):
    """The rules of one peer."""

    async def check(self, request: pb.CoordinateRequest) -> None:
        """Before every request. Raises `RefusedError`, which ends the stream."""


class AgentPolicy:
    """An agent waits for tunnels, at its own addresses."""

    def __init__(self, agent: UUID) -> None:
        self._own = {*agent_addresses(agent), LEGACY_AGENT_ADDRESS}

    async def check(self, request: pb.CoordinateRequest) -> None:
        if request.HasField("add_tunnel"):
            raise RefusedError("agents cannot open tunnels")
        node = request.update_self.node
        for field, texts in _addresses(node):
            for text in texts:
                packed = _single(field, text)
                if packed not in self._own:
                    raise RefusedError(f"{field}: invalid node address, got {text.partition('/')[0]}")


class AgentClientPolicy:
    """A client of one agent."""

    def __init__(self, agent: UUID) -> None:
        self._agent = agent

    async def check(self, request: pb.CoordinateRequest) -> None:
        if request.HasField("add_tunnel"):
            asked = _uuid(request.add_tunnel.id)
            if asked != self._agent:
                raise RefusedError(f"invalid agent id, expected {self._agent}, got {asked}")
        _check_client(request)


class UserPolicy:
    """A client of all agents that its user may reach; `may_reach` says which, each time anew."""

    def __init__(self, may_reach: Callable[[UUID], Awaitable[bool]]) -> None:
        self._may_reach = may_reach

    async def check(self, request: pb.CoordinateRequest) -> None:
        if request.HasField("add_tunnel") and not await self._may_reach(_uuid(request.add_tunnel.id)):
            raise RefusedError("workspace agent not found or you do not have permission")
        _check_client(request)


class ServerPolicy:
    """The server's own tailnet may do everything."""

    async def check(self, request: pb.CoordinateRequest) -> None:
        return


def _check_client(request: pb.CoordinateRequest) -> None:
    """What all clients have in common: single addresses, and nothing to be ready for."""
    node = request.update_self.node
    # Go servers do not look at a client's allowed IPs. We do: an agent would send the traffic of a whole prefix, that
    # of its other clients too, to this one.
    for field, texts in _addresses(node):
        for text in texts:
            _single(field, text)
    if request.ready_for_handshake:
        raise RefusedError("clients may not send ready_for_handshake")


def _addresses(node: pb.Node) -> tuple[tuple[str, Sequence[str]], ...]:
    fields = ("Addresses", node.addresses), ("AllowedIps", node.allowed_ips)
    for field, texts in fields:
        if len(texts) > MAX_ADDRESSES:
            raise RefusedError(f"{field}: {len(texts)} addresses are more than {MAX_ADDRESSES}")
    return fields


def _single(field: str, text: str) -> bytes:
    """The one address of a prefix, packed."""
    try:
        prefix = parse_prefix(text)
    except ValueError as error:
        raise RefusedError(f"{field}: parse node address: {error}") from error
    if prefix.prefixlen != 128:
        raise RefusedError(f"{field}: invalid address bits, expected 128, got {prefix.prefixlen}")
    return prefix.network_address.packed


def _uuid(raw: bytes) -> UUID:
    if len(raw) != 16:
        raise RefusedError(f"parse tunnel id: invalid UUID (got {len(raw)} bytes)")
    return UUID(bytes=raw)
