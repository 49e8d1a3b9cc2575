"""Who hears of whom: playbooks of tailnet.md §3.8, and a state machine against a simple model."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.api.proto import tailnet_pb2 as pb
from agent.server.coordinator import (
    MAX_BATCH,
    MAX_NODE,
    MAX_PENDING,
    MAX_READY,
    Connection,
    Coordinator,
    RequestError,
    Update,
)

P1, P2, P3 = (UUID(int=number) for number in (1, 2, 3))
NODE, LOST, DISCONNECTED, READY = Update.NODE, Update.LOST, Update.DISCONNECTED, Update.READY_FOR_HANDSHAKE
Request = pb.CoordinateRequest


def node(number: int) -> pb.Node:
    return pb.Node(id=number, preferred_derp=1)


def me(number: int) -> Request:
    return Request(update_self=Request.UpdateSelf(node=node(number)))


def tunnel(to: UUID) -> Request:
    return Request(add_tunnel=Request.Tunnel(id=to.bytes))


def no_tunnel(to: UUID) -> Request:
    return Request(remove_tunnel=Request.Tunnel(id=to.bytes))


def ready(*peers: UUID) -> Request:
    return Request(ready_for_handshake=[Request.ReadyForHandshake(id=peer.bytes) for peer in peers])


LEAVE = Request(disconnect=Request.Disconnect())


def connect(coordinator: Coordinator, peer: UUID) -> Connection:
    return coordinator.connect(peer, lambda: None)


def taken(connection: Connection) -> list[pb.CoordinateResponse]:
    responses = []
    while (response := connection.take()) is not None:
        responses.append(response)
    return responses


def updates(connection: Connection) -> list[tuple[UUID, int, int, str]]:
    """Peer, kind, number of the node and reason of each update, where nothing else was said."""
    found: list[tuple[UUID, int, int, str]] = []
    for response in taken(connection):
        assert not response.error
        found += [(UUID(bytes=one.id), one.kind, one.node.id, one.reason) for one in response.peer_updates]
        assert all(one.HasField("node") == (one.kind == NODE) for one in response.peer_updates)
    return found


def errors(connection: Connection) -> list[str]:
    return [response.error for response in taken(connection) if response.error]


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator()


def joined(coordinator: Coordinator) -> tuple[Connection, Connection]:
    """P1 with a tunnel to P2; both know each other, and have taken everything."""
    p1, p2 = connect(coordinator, P1), connect(coordinator, P2)
    coordinator.handle(p1, tunnel(P2))
    coordinator.handle(p1, me(1))
    coordinator.handle(p2, me(2))
    taken(p1)
    taken(p2)
    return p1, p2


@pytest.mark.spec("tailnet", 16)
def test_a_tunnel_before_either_node(coordinator: Coordinator) -> None:
    p1, p2 = connect(coordinator, P1), connect(coordinator, P2)
    coordinator.handle(p1, tunnel(P2))
    assert updates(p1) == updates(p2) == []
    coordinator.handle(p1, me(1))
    assert updates(p2) == [(P1, NODE, 1, "node update")]
    coordinator.handle(p2, me(2))
    assert updates(p1) == [(P2, NODE, 2, "node update")]
    assert updates(p2) == []


@pytest.mark.spec("tailnet", 16)
def test_a_tunnel_after_the_nodes(coordinator: Coordinator) -> None:
    p1, p2 = connect(coordinator, P1), connect(coordinator, P2)
    coordinator.handle(p2, me(2))
    coordinator.handle(p1, me(1))
    assert updates(p1) == updates(p2) == []
    coordinator.handle(p1, tunnel(P2))
    assert updates(p1) == [(P2, NODE, 2, "add tunnel")]
    assert updates(p2) == [(P1, NODE, 1, "add tunnel")]


def test_everything_in_one_request_is_done_in_order(coordinator: Coordinator) -> None:
    p2 = connect(coordinator, P2)
    coordinator.handle(p2, me(2))
    p1 = connect(coordinator, P1)
    request = me(1)
    request.MergeFrom(tunnel(P2))
    request.MergeFrom(ready(P2))
    coordinator.handle(p1, request)
    assert updates(p1) == [(P2, NODE, 2, "add tunnel")]
    assert updates(p2) == [(P1, NODE, 1, "add tunnel"), (P1, READY, 0, "")]
    request.MergeFrom(LEAVE)
    coordinator.handle(p1, request)
    assert updates(p2) == [(P1, DISCONNECTED, 0, "graceful disconnect")]
    assert errors(p1) == []


@pytest.mark.spec("tailnet", 17)
def test_a_destination_leaves_gets_lost_and_comes_back(coordinator: Coordinator) -> None:
    p1, p2 = joined(coordinator)
    coordinator.handle(p2, LEAVE)
    assert updates(p1) == [(P2, DISCONNECTED, 0, "graceful disconnect")]
    assert p2.ended
    assert taken(p2) == []
    p2 = connect(coordinator, P2)
    assert updates(p2) == [(P1, NODE, 1, "init")]
    coordinator.handle(p2, me(22))
    assert updates(p1) == [(P2, NODE, 22, "node update")]
    coordinator.lose(p2)
    assert updates(p1) == [(P2, LOST, 0, "lost")]
    p2 = connect(coordinator, P2)
    coordinator.handle(p2, me(22))
    assert updates(p1) == [(P2, NODE, 22, "node update")]


def test_tunnels_of_a_source_end_with_it(coordinator: Coordinator) -> None:
    p1, p2 = joined(coordinator)
    coordinator.lose(p1)
    assert updates(p2) == [(P1, LOST, 0, "lost")]
    p1 = connect(coordinator, P1)
    coordinator.handle(p1, me(1))
    assert updates(p1) == updates(p2) == []


@pytest.mark.spec("tailnet", 18)
def test_a_removed_tunnel(coordinator: Coordinator) -> None:
    p1, p2 = joined(coordinator)
    p3 = connect(coordinator, P3)
    coordinator.handle(p1, tunnel(P3))
    taken(p3)
    coordinator.handle(p1, no_tunnel(P2))
    assert updates(p1) == [(P2, DISCONNECTED, 0, "remove tunnel")]
    assert updates(p2) == [(P1, DISCONNECTED, 0, "remove tunnel")]
    coordinator.handle(p1, no_tunnel(P2))
    coordinator.handle(p1, no_tunnel(P3))  # P1 never heard of it
    coordinator.handle(p2, me(3))
    assert updates(p1) == updates(p2) == []
    assert updates(p3) == [(P1, DISCONNECTED, 0, "remove tunnel")]


@pytest.mark.spec("tailnet", 18)
def test_nothing_is_said_of_whom_nobody_heard(coordinator: Coordinator) -> None:
    p1, p2 = connect(coordinator, P1), connect(coordinator, P2)
    coordinator.handle(p1, tunnel(P2))
    coordinator.lose(p1)
    coordinator.handle(p2, LEAVE)
    assert taken(p1) == taken(p2) == []


@pytest.mark.spec("tailnet", 19)
def test_tunnels_both_ways_say_everything_once(coordinator: Coordinator) -> None:
    p1, p2 = joined(coordinator)
    coordinator.handle(p2, tunnel(P1))
    coordinator.handle(p1, tunnel(P2))
    assert updates(p1) == updates(p2) == []
    coordinator.handle(p1, me(11))
    assert updates(p2) == [(P1, NODE, 11, "node update")]
    coordinator.handle(p1, me(11))
    assert updates(p2) == []
    coordinator.handle(p1, no_tunnel(P2))  # the other way remains
    assert updates(p1) == updates(p2) == []
    coordinator.handle(p2, LEAVE)
    assert updates(p1) == [(P2, DISCONNECTED, 0, "graceful disconnect")]


@pytest.mark.spec("tailnet", 20)
def test_ready_for_handshake(coordinator: Coordinator) -> None:
    p1, p2 = joined(coordinator)
    coordinator.handle(p2, ready(P1))
    assert updates(p1) == [(P2, READY, 0, "")]
    coordinator.handle(p2, ready(P3, P1))
    assert errors(p2) == [f'ready for handshake error: you do not share a tunnel with "{P3}"']
    assert updates(p1) == [(P2, READY, 0, "")]
    assert not p2.ended
    coordinator.lose(p1)
    taken(p2)
    coordinator.handle(p2, ready(P1))
    assert errors(p2) == [f'ready for handshake error: you do not share a tunnel with "{P1}"']


@pytest.mark.spec("tailnet", 21)
def test_the_same_id_again(coordinator: Coordinator) -> None:
    p1, old = joined(coordinator)
    new = connect(coordinator, P2)
    assert errors(old) == ["peer ID overwritten by new connection"]
    assert old.ended
    assert updates(new) == [(P1, NODE, 1, "init")]
    coordinator.lose(old)
    coordinator.handle(old, me(4))
    assert updates(p1) == []
    coordinator.handle(new, me(5))
    assert updates(p1) == [(P2, NODE, 5, "node update")]
    assert len(coordinator) == 2


@pytest.mark.spec("tailnet", 23)
def test_the_server_stops(coordinator: Coordinator) -> None:
    p1, p2 = joined(coordinator)
    coordinator.close()
    for one, other in ((p1, P2), (p2, P1)):
        first, last = taken(one)
        assert [(update.kind, update.id, update.reason) for update in first.peer_updates] == [
            (LOST, other.bytes, "coordinator close")
        ]
        assert last.error == "coordinator closed"
        assert one.ended
    late = connect(coordinator, P3)
    assert errors(late) == ["coordinator closed"]
    assert late.ended
    coordinator.handle(late, me(3))
    assert len(coordinator) == 0


@pytest.mark.spec("tailnet", 24)
def test_many_peers_come_in_batches(coordinator: Coordinator) -> None:
    for number in range(3000):
        client = connect(coordinator, UUID(int=100 + number))
        coordinator.handle(client, tunnel(P2))
        coordinator.handle(client, me(number))
    responses = taken(connect(coordinator, P2))
    assert [len(response.peer_updates) for response in responses] == [1024, 1024, 952]
    assert max(len(response.peer_updates) for response in responses) <= MAX_BATCH
    assert len({update.id for response in responses for update in response.peer_updates}) == 3000


def test_a_node_is_there_as_long_as_its_peer(coordinator: Coordinator) -> None:
    assert coordinator.node(P1) is None
    p1 = connect(coordinator, P1)
    assert coordinator.node(P1) is None
    coordinator.handle(p1, me(1))
    assert coordinator.node(P1) == node(1)
    coordinator.lose(p1)
    assert coordinator.node(P1) is None


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (Request(update_self=Request.UpdateSelf()), "update self: node is missing"),
        (Request(update_self=Request.UpdateSelf(node=pb.Node(endpoints=["x" * MAX_NODE]))), "larger than"),
        (Request(add_tunnel=Request.Tunnel(id=b"x" * 15)), r"add tunnel: invalid UUID \(got 15 bytes\)"),
        (Request(remove_tunnel=Request.Tunnel()), r"remove tunnel: invalid UUID \(got 0 bytes\)"),
        (Request(ready_for_handshake=[Request.ReadyForHandshake(id=b"x")]), "ready for handshake: invalid UUID"),
        (ready(*[P2] * (MAX_READY + 1)), "ready for handshake: 4097 peers are more than 4096"),
    ],
)
def test_requests_that_break_the_protocol(coordinator: Coordinator, request_: Request, text: str) -> None:
    p1 = connect(coordinator, P1)
    with pytest.raises(RequestError, match=text):
        coordinator.handle(p1, request_)


def test_who_reads_nothing_is_removed(coordinator: Coordinator) -> None:
    woken: list[None] = []
    agent = coordinator.connect(P2, lambda: woken.append(None))
    coordinator.handle(agent, me(2))
    clients = [connect(coordinator, UUID(int=100 + number)) for number in range(MAX_PENDING + 1)]
    for client in clients:
        coordinator.handle(client, tunnel(P2))
        assert [kind for _, kind, _, _ in updates(client)] == [NODE]
    for number, client in enumerate(clients):
        assert not agent.ended
        coordinator.handle(client, me(number))
    assert agent.ended
    assert agent.pending == MAX_PENDING + 1
    assert len(woken) == MAX_PENDING + 1
    assert taken(agent)[-1].error == "failed to update tunnel peer mapping"
    assert updates(clients[0]) == [(P2, DISCONNECTED, 0, "failed update")]
    assert coordinator.overflows == 1
    assert coordinator.node(P2) is None


def test_nobody_fills_the_queue_of_another(coordinator: Coordinator) -> None:
    """Newer words about a peer take the place of older ones that were not taken."""
    p1, p2 = joined(coordinator)
    for number in range(3 * MAX_PENDING):
        coordinator.handle(p1, me(number))
        coordinator.handle(p2, ready(P1))
        if number % 3 == 0:
            coordinator.handle(p1, no_tunnel(P2))
            coordinator.handle(p1, tunnel(P2))
    assert not p1.ended
    assert p2.pending == 1
    assert updates(p2) == [(P1, NODE, 3 * MAX_PENDING - 1, "node update")]
    assert sorted(kind for _, kind, _, _ in updates(p1)) == [NODE, READY]


def test_removals_do_not_nest(coordinator: Coordinator) -> None:
    """A chain of peers with full queues, each of which is told of the end of the one before."""
    length = 1500
    chain = [connect(coordinator, UUID(int=100 + number)) for number in range(length)]
    for number, connection in enumerate(chain):
        coordinator.handle(connection, me(number))
        if number:
            coordinator.handle(connection, tunnel(chain[number - 1].id))
    for connection in chain:
        taken(connection)
        while connection.pending < MAX_PENDING:
            connection.push(pb.CoordinateResponse(error="x"))
    coordinator.handle(chain[0], ready(P3))
    assert all(connection.ended for connection in chain)
    assert coordinator.overflows == length
    assert len(coordinator) == 0


IDS = [UUID(int=number) for number in range(1, 5)]
ids = st.sampled_from(IDS)


class Model(RuleBasedStateMachine):
    """What every peer believes, having followed its updates, against what is so."""

    def __init__(self) -> None:
        super().__init__()
        self.coordinator = Coordinator()
        self.streams: dict[UUID, Connection] = {}
        self.beliefs: dict[UUID, dict[UUID, int]] = {}
        self.nodes: dict[UUID, int] = {}
        self.tunnels: set[tuple[UUID, UUID]] = set()
        self.number = 0

    def others(self, peer: UUID) -> set[UUID]:
        return {b for a, b in self.tunnels if a == peer} | {a for a, b in self.tunnels if b == peer}

    def forget(self, peer: UUID) -> None:
        del self.streams[peer]
        self.nodes.pop(peer, None)
        self.tunnels = {(a, b) for a, b in self.tunnels if a != peer}

    @rule(peer=ids)
    def connect(self, peer: UUID) -> None:
        old = self.streams.get(peer)
        self.streams[peer] = connect(self.coordinator, peer)
        self.beliefs[peer] = {}
        self.nodes.pop(peer, None)
        if old is not None:
            assert old.ended
            assert errors(old)[-1] == "peer ID overwritten by new connection"

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), same=st.booleans())
    def update(self, data: st.DataObject, same: bool) -> None:
        peer = data.draw(st.sampled_from(sorted(self.streams)))
        self.number += not same
        self.nodes[peer] = self.number
        self.coordinator.handle(self.streams[peer], me(self.number))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), to=ids, add=st.booleans())
    def change_tunnel(self, data: st.DataObject, to: UUID, add: bool) -> None:
        peer = data.draw(st.sampled_from(sorted(self.streams)))
        if peer == to:
            return
        (self.tunnels.add if add else self.tunnels.discard)((peer, to))
        self.coordinator.handle(self.streams[peer], tunnel(to) if add else no_tunnel(to))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), graceful=st.booleans())
    def leave(self, data: st.DataObject, graceful: bool) -> None:
        peer = data.draw(st.sampled_from(sorted(self.streams)))
        connection = self.streams[peer]
        if graceful:
            self.coordinator.handle(connection, LEAVE)
        else:
            self.coordinator.lose(connection)
        assert connection.ended
        self.forget(peer)

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        """Only now and then: what is not taken is superseded."""
        self.follow([data.draw(st.sampled_from(sorted(self.streams)))])

    def follow(self, peers: Iterable[UUID]) -> None:
        for peer in peers:
            for other, kind, number, _ in updates(self.streams[peer]):
                if kind == NODE:
                    self.beliefs[peer][other] = number
                else:
                    self.beliefs[peer].pop(other, None)

    @invariant()
    def queues_are_bounded(self) -> None:
        assert all(connection.pending <= len(IDS) for connection in self.streams.values())

    def teardown(self) -> None:
        self.follow(self.streams)
        for peer in self.streams:
            told = {other: self.nodes[other] for other in self.others(peer) if other in self.nodes}
            # Of a peer that connected anew and has told nothing yet, the old node is still believed.
            silent = {other for other in self.others(peer) if other in self.streams and other not in self.nodes}
            believed = {other: number for other, number in self.beliefs[peer].items() if other not in silent}
            assert believed == told


Model.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestModel = Model.TestCase
