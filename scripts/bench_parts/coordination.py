"""What the coordinator costs the server's loop: 1000 agents, each with a client, and one peer that reaches all."""

from __future__ import annotations

import time
from uuid import UUID

from agent.api.proto import tailnet_pb2 as pb
from agent.api.tailnet import TAILSCALE_PREFIX, address, address_text, write_disco, write_key
from agent.server.coordinator import Connection, Coordinator

PAIRS = 1000
ROUNDS = 2000


def _me(number: int) -> pb.CoordinateRequest:
    peer = UUID(int=number)
    own = [address_text(address(TAILSCALE_PREFIX, peer))]
    node = pb.Node(
        id=number,
        key=write_key(peer.bytes * 2),
        disco=write_disco(peer.bytes * 2),
        preferred_derp=999,
        derp_latency={"999-v4": 0.01},
        addresses=own,
        allowed_ips=own,
        endpoints=[f"192.0.2.{host}:41641" for host in range(5)],
    )
    return pb.CoordinateRequest(update_self=pb.CoordinateRequest.UpdateSelf(node=node))


def _tunnel(to: Connection) -> pb.CoordinateRequest:
    return pb.CoordinateRequest(add_tunnel=pb.CoordinateRequest.Tunnel(id=to.id.bytes))


def _drain(*connections: Connection) -> None:
    for connection in connections:
        while (response := connection.take()) is not None:
            response.SerializeToString()


async def measure() -> dict[str, float]:
    """Time of this process; what streams and sockets cost comes on top."""
    coordinator = Coordinator()
    requests = [_me(number) for number in range(1, ROUNDS + 1)]
    begin = time.perf_counter()
    agents = [coordinator.connect(UUID(int=number), lambda: None) for number in range(1, PAIRS + 1)]
    clients = [coordinator.connect(UUID(int=PAIRS + number), lambda: None) for number in range(1, PAIRS + 1)]
    for agent, client, request in zip(agents, clients, requests, strict=False):
        coordinator.handle(agent, request)
        coordinator.handle(client, _tunnel(agent))
        coordinator.handle(client, request)
    _drain(*agents, *clients)
    met = time.perf_counter()
    hub = coordinator.connect(UUID(int=0), lambda: None)
    for agent in agents:
        coordinator.handle(hub, _tunnel(agent))
        _drain(hub)
    joined = time.perf_counter()
    coordinator.handle(hub, requests[0])
    _drain(*agents)
    told = time.perf_counter()
    for number, request in enumerate(requests):
        at = number % PAIRS
        coordinator.handle(agents[at], request)
        _drain(hub, clients[at])
    end = time.perf_counter()
    return {
        "an agent and a client meet, µs": (met - begin) / PAIRS * 1e6,
        "one node to 1000 peers, ms": (told - joined) * 1e3,
        "one node to 2 peers, µs": (end - told) / ROUNDS * 1e6,
    }
