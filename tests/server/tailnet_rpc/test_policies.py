"""Who may do what, and with which words it is refused (tailnet.md §3.8)."""

from __future__ import annotations

from uuid import UUID

import pytest

from agent.api.proto import tailnet_pb2 as pb
from agent.api.tailnet import address_text, agent_addresses
from agent.server.tailnet_rpc.policies import (
    AgentClientPolicy,
    AgentPolicy,
    Policy,
    RefusedError,
    ServerPolicy,
    UserPolicy,
)

AGENT = UUID("8a3c5d1e-0b7f-4c2a-9d6e-1f2e3d4c5b6a")
OTHER = UUID("11111111-2222-4333-8444-555555555555")
OWN = [address_text(packed) for packed in agent_addresses(AGENT)]
LEGACY = "fd7a:115c:a1e0:49d6:b259:b7ac:b1b2:48f4/128"
CLIENT = "fd7a:115c:a1e0:4333:8444:5555:5555:5555"
Request = pb.CoordinateRequest


def me(addresses: list[str], allowed_ips: list[str] | None = None) -> Request:
    node = pb.Node(addresses=addresses, allowed_ips=addresses if allowed_ips is None else allowed_ips)
    return Request(update_self=Request.UpdateSelf(node=node))


def tunnel(to: bytes) -> Request:
    return Request(add_tunnel=Request.Tunnel(id=to))


READY = Request(ready_for_handshake=[Request.ReadyForHandshake(id=OTHER.bytes)])


async def may_reach(agent: UUID) -> bool:
    return agent == AGENT


@pytest.mark.spec("tailnet", 22)
@pytest.mark.parametrize(
    ("policy", "request_", "text"),
    [
        (AgentPolicy(AGENT), me(OWN), ""),
        (AgentPolicy(AGENT), me([*OWN, LEGACY]), ""),
        (AgentPolicy(AGENT), READY, ""),
        (AgentPolicy(AGENT), tunnel(OTHER.bytes), "agents cannot open tunnels"),
        (AgentPolicy(AGENT), me([f"{CLIENT}/64"]), "Addresses: invalid address bits, expected 128, got 64"),
        (AgentPolicy(AGENT), me([f"{CLIENT}/128"]), f"Addresses: invalid node address, got {CLIENT}"),
        (AgentPolicy(AGENT), me(OWN, [f"{CLIENT}/64"]), "AllowedIps: invalid address bits, expected 128, got 64"),
        (AgentPolicy(AGENT), me(OWN, [f"{CLIENT}/128"]), f"AllowedIps: invalid node address, got {CLIENT}"),
        (AgentPolicy(AGENT), me(["100.64.0.1/32"]), "Addresses: invalid address bits, expected 128, got 32"),
        (AgentPolicy(AGENT), me(["x"]), 'Addresses: parse node address: "x" is not'),
        (AgentClientPolicy(AGENT), me([f"{CLIENT}/128"]), ""),
        (AgentClientPolicy(AGENT), tunnel(AGENT.bytes), ""),
        (AgentClientPolicy(AGENT), tunnel(OTHER.bytes), f"invalid agent id, expected {AGENT}, got {OTHER}"),
        (AgentClientPolicy(AGENT), tunnel(b"x" * 15), "parse tunnel id: invalid UUID (got 15 bytes)"),
        (AgentPolicy(AGENT), me(OWN * 33), "Addresses: 66 addresses are more than 64"),
        (AgentClientPolicy(AGENT), me([], [f"{CLIENT}/128"] * 65), "AllowedIps: 65 addresses are more than 64"),
        (AgentClientPolicy(AGENT), READY, "clients may not send ready_for_handshake"),
        (AgentClientPolicy(AGENT), me([f"{CLIENT}/64"]), "Addresses: invalid address bits, expected 128, got 64"),
        (AgentClientPolicy(AGENT), me([f"{CLIENT}/128"], ["::/0"]), "AllowedIps: invalid address bits"),
        (UserPolicy(may_reach), tunnel(AGENT.bytes), ""),
        (UserPolicy(may_reach), tunnel(OTHER.bytes), "workspace agent not found or you do not have permission"),
        (UserPolicy(may_reach), READY, "clients may not send ready_for_handshake"),
        (UserPolicy(may_reach), me([f"{CLIENT}/127"]), "Addresses: invalid address bits, expected 128, got 127"),
        (ServerPolicy(), tunnel(OTHER.bytes), ""),
        (ServerPolicy(), me(["::/0"]), ""),
    ],
)
async def test_rules(policy: Policy, request_: Request, text: str) -> None:
    if not text:
        await policy.check(request_)
        return
    with pytest.raises(RefusedError) as refused:
        await policy.check(request_)
    assert str(refused.value).startswith(text)
