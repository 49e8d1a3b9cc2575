"""Coordination: requests of any peer to the server's coordinator, and nodes of any peer at an agent."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

from google.protobuf.message import DecodeError

from agent.api.proto import tailnet_pb2 as pb
from agent.api.tailnet import NodeError, address_text, agent_addresses, read_node, write_disco, write_key
from agent.server.coordinator import MAX_NODE, MAX_PENDING, Connection, Coordinator, RequestError
from agent.server.tailnet_rpc.policies import AgentClientPolicy, AgentPolicy, Policy, RefusedError
from agent.tailnet.paths import MAX_ENDPOINTS, Paths
from agent.tailnet.peers import _endpoints, _owned
from fuzz_parts import Input

IDS = [UUID(int=number) for number in (1, 2, 3)]


def _node() -> pb.Node:
    own = [address_text(address) for address in agent_addresses(IDS[0])]
    return pb.Node(
        id=1,
        key=write_key(bytes(range(32))),
        disco=write_disco(bytes(range(32))),
        preferred_derp=1,
        derp_latency={"1-v4": 0.1},
        addresses=own,
        allowed_ips=own,
        endpoints=["192.0.2.1:1", "[2001:db8::1]:2"],
    )


def _sized(text: bytes) -> bytes:
    """As `Input.text` takes it."""
    return (bytes((len(text),)) if len(text) < 255 else b"\xff" + len(text).to_bytes(2, "little")) + text


def seeds() -> Iterator[bytes]:
    request = pb.CoordinateRequest
    tunnel = request(add_tunnel=request.Tunnel(id=IDS[0].bytes)).SerializeToString()
    for who, message in (
        (0, request(update_self=request.UpdateSelf(node=_node()))),
        (1, request(add_tunnel=request.Tunnel(id=IDS[0].bytes))),
        (1, request(remove_tunnel=request.Tunnel(id=IDS[0].bytes))),
        (0, request(ready_for_handshake=[request.ReadyForHandshake(id=IDS[1].bytes)])),
        (1, request(disconnect=request.Disconnect())),
    ):
        encoded = message.SerializeToString()
        yield bytes((1, len(tunnel))) + tunnel + bytes((1, 1, who)) + _sized(encoded) + bytes((1, 1))
    yield b"\3" + _sized(_node().SerializeToString())


def target(data: bytes) -> None:
    given = Input(data)
    coordinator = Coordinator()
    connections: dict[int, Connection] = {}
    policies: list[Policy] = [AgentPolicy(IDS[0]), AgentClientPolicy(IDS[0]), AgentClientPolicy(IDS[0])]
    while given:
        who = given.number() % 4
        text = given.text()
        if who == 3:
            _at_an_agent(text)
            continue
        connection = connections.get(who)
        if connection is None or connection.ended:
            connection = connections[who] = coordinator.connect(IDS[who], lambda: None)
        error = ""
        try:
            request = pb.CoordinateRequest.FromString(text)
            _now(policies[who].check(request))
            coordinator.handle(connection, request)
        except (DecodeError, RefusedError, RequestError) as cause:
            error = str(cause)
            coordinator.lose(connection, error)
        for other in connections.values():
            assert other.pending <= MAX_PENDING + 1
            if given.number() % 2:
                while (response := other.take()) is not None:
                    assert response.ByteSize() <= 2 * MAX_NODE
    for connection in connections.values():
        coordinator.lose(connection)
    assert len(coordinator) == 0


def _now(check: object) -> None:
    """Runs a coroutine that does not wait for anything."""
    try:
        check.send(None)  # type: ignore[attr-defined]
    except StopIteration:
        return
    raise AssertionError("these policies do not wait")


def _at_an_agent(text: bytes) -> None:
    try:
        node = read_node(pb.Node.FromString(text))
    except (DecodeError, NodeError):
        return
    assert all(len(address) == 16 for address in _owned(node))
    paths = Paths(bytes(range(1, 33)), bytes(32))
    try:
        paths.set_peer(node.key, node.disco, node.home, _endpoints(node))
    except ValueError:
        return
    _, sends = paths.route(node.key, 1.0)
    assert len(sends) <= MAX_ENDPOINTS + 1
