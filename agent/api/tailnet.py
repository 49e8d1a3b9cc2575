"""Addresses and nodes of the tailnet, as they stand in messages (tailnet.md §2.1, §3.4, §11.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final
from uuid import UUID

from agent.api.proto import tailnet_pb2 as pb

TAILSCALE_PREFIX: Final = bytes.fromhex("fd7a115ca1e0")
CODER_PREFIX: Final = bytes.fromhex("fd60627aa42b")
LEGACY_AGENT_ADDRESS: Final = IPv6Address("fd7a:115c:a1e0:49d6:b259:b7ac:b1b2:48f4").packed
"""All agents had it once; servers still let agents announce it."""
KEY_PREFIX: Final = b"np"
DISCO_PREFIX: Final = "discokey:"
KEY_SIZE: Final = 32


class NodeError(ValueError):
    """A node that cannot be used; the text names its field."""


def address(prefix: bytes, peer: UUID) -> bytes:
    """The 16 bytes of the peer's address under a service prefix."""
    return prefix + peer.bytes[len(prefix) :]


def agent_addresses(agent: UUID) -> tuple[bytes, bytes]:
    """What an agent owns, in the order in which it announces them."""
    return address(TAILSCALE_PREFIX, agent), address(CODER_PREFIX, agent)


def address_text(packed: bytes) -> str:
    """Canonical IPv6 and `/128`, as in `Node.addresses`."""
    return f"{IPv6Address(packed)}/128"


def node_id(peer: UUID) -> int:
    """`Node.id`, which is for people to look at."""
    return abs(int.from_bytes(peer.bytes[8:], signed=True)) & 0x7FFF_FFFF_FFFF_FFFF


def parse_prefix(text: str) -> IPv6Network | IPv4Network:
    """`<address>/<bits>`, both parts required; bits beyond the mask may be set. Raises `ValueError`."""
    host, slash, bits = text.partition("/")
    if not slash or not bits.isascii() or not bits.isdigit() or "%" in host:
        raise ValueError(f'"{text}" is not an address, "/" and a number of bits')
    return ip_network(text, strict=False)


@dataclass(frozen=True, slots=True)
class PeerNode:
    """A node whose fields were checked. Keys are 32 raw bytes, addresses 16."""

    key: bytes
    disco: bytes
    home: int
    """Region of its relay; 0: none yet, and the node is of no use (§3.5)."""
    addresses: tuple[IPv6Network | IPv4Network, ...]
    allowed_ips: tuple[IPv6Network | IPv4Network, ...]
    endpoints: tuple[str, ...]
    latencies: Mapping[str, float]


def read_node(node: pb.Node) -> PeerNode:
    """Raises `NodeError`. Endpoints are left as text: one that is odd costs the others nothing."""
    if len(node.key) != len(KEY_PREFIX) + KEY_SIZE or not node.key.startswith(KEY_PREFIX):
        raise NodeError(f'key: must be "np" and {KEY_SIZE} bytes, not {len(node.key)} bytes')
    return PeerNode(
        key=node.key[len(KEY_PREFIX) :],
        disco=_disco(node.disco),
        home=node.preferred_derp,
        addresses=_prefixes("addresses", node.addresses),
        allowed_ips=_prefixes("allowed_ips", node.allowed_ips),
        endpoints=tuple(node.endpoints),
        latencies=dict(node.derp_latency),
    )


def write_key(key: bytes) -> bytes:
    """A node key as in `Node.key`."""
    return KEY_PREFIX + key


def write_disco(key: bytes) -> str:
    """A disco key as in `Node.disco`."""
    return DISCO_PREFIX + key.hex()


def _disco(text: str) -> bytes:
    digits = text.removeprefix(DISCO_PREFIX)
    if len(digits) == len(text) or len(digits) != 2 * KEY_SIZE or not digits.isascii() or not digits.isalnum():
        raise NodeError(f'disco: must be "{DISCO_PREFIX}" and {2 * KEY_SIZE} hexadecimal digits')
    try:
        key = bytes.fromhex(digits)
    except ValueError as error:
        raise NodeError(f'disco: must be "{DISCO_PREFIX}" and {2 * KEY_SIZE} hexadecimal digits') from error
    if not any(key):
        raise NodeError("disco: must not be zero")
    return key


def _prefixes(field: str, texts: Iterable[str]) -> tuple[IPv6Network | IPv4Network, ...]:
    try:
        return tuple(map(parse_prefix, texts))
    except ValueError as error:
        raise NodeError(f"{field}: {error}") from error
