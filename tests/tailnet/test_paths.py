"""Path choice: two nodes joined by a relay that always works and a UDP network that the test cuts and mends."""

from __future__ import annotations

import ipaddress
import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol import disco, keys
from agent.protocol.disco import CallMeMaybe, Ping, Pong
from agent.protocol.ip import Endpoint, mapped
from agent.tailnet.paths import (
    CALL_BURST,
    CALL_RATE,
    HEARTBEAT,
    LEARNED_LIFETIME,
    TICK,
    Answered,
    Paths,
    Route,
    Send,
    better,
)

REGION = 999


def end(text: str, port: int = 41641) -> Endpoint:
    return mapped(ipaddress.ip_address(text).packed), port


class Node:
    def __init__(self, name: str, address: str) -> None:
        self.key = name.encode().ljust(32, b"-")
        self.endpoint = end(address)
        self.paths = Paths(keys.generate(), self.key)
        self.paths.set_own_endpoints([self.endpoint])
        self.answers: list[Answered] = []


class World:
    """A clock, two nodes, and the network between them."""

    def __init__(self, *, publish: bool = True) -> None:
        self.now = 1000.0
        self.udp = True
        self.a, self.b = Node("a", "192.0.2.1"), Node("b", "192.0.2.2")
        self.log: list[tuple[str, Send]] = []
        for one, other in ((self.a, self.b), (self.b, self.a)):
            endpoints = [other.endpoint] if publish else []
            one.paths.set_peer(other.key, other.paths.public, REGION, endpoints)

    def carry(self, sender: Node, sends: list[Send], latency: float = 0.001) -> None:
        other = self.b if sender is self.a else self.a
        for send in sends:
            self.log.append((sender.key.decode().strip("-"), send))
            if send.endpoint is not None and (not self.udp or send.endpoint != other.endpoint):
                continue
            self.now += latency
            via = sender.endpoint if send.endpoint is not None else None
            outcome = other.paths.receive(send.datagram, self.now, via, send.region, sender.key)
            if outcome.answered:
                other.answers.append(outcome.answered)
            self.carry(other, outcome.send, latency)

    def send(self, sender: Node) -> Route:
        other = self.b if sender is self.a else self.a
        route, sends = sender.paths.route(other.key, self.now)
        self.carry(sender, sends)
        return route

    def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            due = [(t, n) for n in (self.a, self.b) if (t := n.paths.next_timeout()) is not None and t <= until]
            if not due:
                break
            when, node = min(due, key=lambda pair: pair[0])
            self.now = max(self.now, when)
            self.carry(node, node.paths.handle_timeout(self.now))
        self.now = max(self.now, until)


def test_the_first_datagram_goes_through_the_relay_and_finds_the_path() -> None:
    world = World()
    assert world.send(world.a) == Route(None, REGION)
    assert world.send(world.a) == Route(world.b.endpoint, 0)
    assert world.b.paths.sender_of(world.a.endpoint) == world.a.key


def test_a_path_is_found_by_call_me_maybe_alone() -> None:
    world = World(publish=False)
    world.send(world.a)
    world.sleep(6)
    world.send(world.a)
    world.send(world.b)
    assert world.send(world.a) == Route(world.b.endpoint, 0)


@pytest.mark.spec("tailnet", 49)
def test_udp_dies_and_comes_back() -> None:
    world = World()
    world.send(world.a)
    assert world.send(world.a) == Route(world.b.endpoint, 0)
    world.udp = False
    cut = world.now
    while world.send(world.a).region == 0:
        world.sleep(0.25)
    assert world.now - cut <= 6.5 + 0.25
    world.sleep(10)
    world.udp = True
    back = world.now
    while world.send(world.a).region != 0:
        world.sleep(0.25)
    assert world.now - back <= 5.5


@pytest.mark.spec("tailnet", 50)
def test_direct_is_switched_off_and_on_at_run_time() -> None:
    world = World()
    world.send(world.a)
    assert world.send(world.a).endpoint == world.b.endpoint
    world.a.paths.set_direct(False)
    assert world.send(world.a) == Route(None, REGION)
    assert world.a.paths.sender_of(world.b.endpoint) is None
    before = len(world.log)
    world.sleep(20)
    assert not [send for who, send in world.log[before:] if who == "a" and send.endpoint is not None]
    world.a.paths.set_direct(True)
    world.sleep(6)
    world.send(world.a)
    assert world.send(world.a).endpoint == world.b.endpoint


@pytest.mark.spec("tailnet", 47)
def test_a_ping_through_the_relay_is_answered_there_and_names_the_region() -> None:
    world = World(publish=False)
    sent = world.a.paths.ping(world.b.key, world.now)
    relayed = [send for send in sent if send.endpoint is None and _kind(world, send) is Ping]
    assert len(relayed) == 1
    outcome = world.b.paths.receive(relayed[0].datagram, world.now, None, REGION, world.a.key)
    (reply,) = outcome.send
    assert (reply.endpoint, reply.region, reply.peer) == (None, REGION, world.a.key)
    pong = disco.open_box(reply.datagram, world.a.paths._peers[world.b.key].key)
    assert isinstance(pong, Pong)
    assert pong.source == end("127.3.3.40", REGION)


@pytest.mark.spec("tailnet", 47)
def test_a_ping_that_comes_twice_from_one_source_is_answered_once() -> None:
    world = World()
    _, sends = world.a.paths.route(world.b.key, world.now)
    ping = next(send for send in sends if send.endpoint is not None)
    answers = [world.b.paths.receive(ping.datagram, world.now, world.a.endpoint, 0, world.a.key).send for _ in range(2)]
    assert [len(answer) for answer in answers] == [1, 0]


@pytest.mark.spec("tailnet", 51)
def test_nothing_is_bound_by_an_unproven_packet() -> None:
    world = World()
    stranger = Paths(keys.generate(), b"s" * 32)
    stranger.set_peer(world.b.key, world.b.paths.public, REGION, [world.b.endpoint])
    for send in stranger.ping(world.b.key, world.now):
        assert world.b.paths.receive(send.datagram, world.now, end("203.0.113.5"), 0, b"s" * 32).send == []
    assert world.b.paths.sender_of(end("203.0.113.5")) is None
    _, sends = world.a.paths.route(world.b.key, world.now)
    ping = next(send for send in sends if send.endpoint is not None)
    forged = ping.datagram[:-1] + bytes((ping.datagram[-1] ^ 1,))
    assert world.b.paths.receive(forged, world.now, world.a.endpoint, 0, world.a.key).send == []
    assert world.b.paths.sender_of(world.a.endpoint) is None
    assert world.b.paths.counters.bad_box == 1


def test_one_disco_key_of_two_nodes_is_told_apart_by_the_node_key() -> None:
    world = World()
    twin = b"t" * 32
    world.b.paths.set_peer(twin, world.a.paths.public, REGION, [])
    _, sends = world.a.paths.route(world.b.key, world.now)
    ping = next(send for send in sends if send.endpoint is not None)
    world.b.paths.receive(ping.datagram, world.now, world.a.endpoint, 0, b"")
    assert world.b.paths.sender_of(world.a.endpoint) == world.a.key


def test_a_new_disco_key_forgets_the_paths() -> None:
    world = World()
    world.send(world.a)
    world.a.paths.set_peer(world.b.key, keys.public_key(keys.generate()), REGION, [world.b.endpoint])
    assert world.a.paths.current(world.b.key, world.now) == Route(None, REGION)
    assert world.a.paths.sender_of(world.b.endpoint) is None


def test_a_learned_endpoint_is_forgotten() -> None:
    world = World(publish=False)
    world.a.paths.set_own_endpoints([])  # so that only the ping tells where a is
    ping = world.a.paths._ping(world.a.paths._peers[world.b.key], world.b.endpoint, 0, world.now)
    assert world.b.paths.receive(ping.datagram, world.now, world.a.endpoint, 0, b"").send
    peer = world.b.paths._peers[world.a.key]
    assert world.a.endpoint in peer.candidates
    world.udp = False
    for _ in range(round(LEARNED_LIFETIME / 3) + 1):
        world.send(world.b)
        world.sleep(3)
    assert peer.candidates == {}
    assert world.send(world.b) == Route(None, REGION)


def test_idle_peers_cost_nothing() -> None:
    world = World()
    world.send(world.a)
    world.sleep(120)
    before = len(world.log)
    world.sleep(3600)
    assert len(world.log) == before
    assert world.a.paths.next_timeout() is None


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_arbitrary_bytes_from_a_known_sender_do_nothing(bodies: list[bytes]) -> None:
    world = World()
    for body in bodies:
        for endpoint in (None, world.a.endpoint):
            datagram = disco.MAGIC + world.a.paths.public + body
            assert world.b.paths.receive(datagram, world.now, endpoint, REGION, world.a.key).send == []


def test_a_peer_that_calls_without_end_makes_nobody_send_without_end() -> None:
    """Each call-me-maybe may name 64 addresses of a third party."""
    world = World(publish=False)
    peer = world.a.paths._peers[world.b.key]

    def call(number: int) -> int:
        message = CallMeMaybe(tuple(end("198.51.100.2", number * 64 + port + 1) for port in range(64)))
        sealed = disco.seal(message, world.a.paths.public, peer.key, os.urandom(24))
        return len(world.b.paths.receive(sealed, world.now, None, REGION, world.a.key).send)

    sent = 0
    for number in range(900):
        world.now += 0.01
        sent += call(number)
    assert sent <= (CALL_BURST + 9 * CALL_RATE + 1) * 64
    assert world.b.paths.counters.hasty_call >= 900 - CALL_BURST - 9 * CALL_RATE - 1
    world.now += 1
    assert call(901) == 64


def test_many_active_peers_are_looked_at_in_time() -> None:
    paths = Paths(keys.generate(), bytes(32))
    peers = [number.to_bytes(32, "big") for number in range(100)]
    disco_keys = [keys.public_key(keys.generate()) for _ in range(3)]
    for number, peer in enumerate(peers):
        paths.set_peer(peer, disco_keys[number % 3], REGION, [])
    assert paths.next_timeout() is None
    for number, peer in enumerate(peers):
        paths.route(peer, number / 10)
        assert paths.next_timeout() == HEARTBEAT
    for now in (3.0, 5.0, 9.9, 20.0):
        paths.handle_timeout(now)
        due = paths.next_timeout()
        assert due is not None
        assert now < due < min(peer.heartbeat_at for peer in paths._active.values()) + TICK
    paths.handle_timeout(60.0)
    assert paths.next_timeout() is None


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 30)), max_size=40))
def test_what_is_kept_is_bounded_and_nothing_raises(steps: list[tuple[int, float]]) -> None:
    world = World()
    ports = itertools.count(1)
    for step, seconds in steps:
        if step == 0:
            world.udp = not world.udp
        elif step == 1:
            world.send(world.a)
        elif step == 2:
            ping = world.a.paths._ping(world.a.paths._peers[world.b.key], world.b.endpoint, 0, world.now)
            for _ in range(200):
                world.b.paths.receive(ping.datagram, world.now, end("198.51.100.1", next(ports)), 0, world.a.key)
        else:
            call = CallMeMaybe(tuple(end("198.51.100.2", next(ports)) for _ in range(200)))
            peer = world.a.paths._peers[world.b.key]
            sealed = disco.seal(call, world.a.paths.public, peer.key, os.urandom(24))
            assert len(world.b.paths.receive(sealed, world.now, None, REGION, world.a.key).send) <= 128
        world.sleep(seconds)
    assert len(world.b.paths._bound) <= 64
    assert len(world.b.paths._peers[world.a.key].candidates) <= 128


@pytest.mark.parametrize(
    ("new", "new_ms", "old", "old_ms", "expected"),
    [
        ("192.0.2.1", 1, "192.0.2.2", 10, True),
        ("192.0.2.1", 10, "192.0.2.2", 1, False),
        ("10.0.0.1", 10, "192.0.2.2", 9, True),
        ("2001:db8::1", 10, "192.0.2.2", 10, True),
        ("127.0.0.1", 10, "10.0.0.1", 9, True),
        ("192.0.2.1", 99, "192.0.2.2", 100, False),  # one point is not worth a change
    ],
)
def test_which_path_is_better(new: str, new_ms: int, old: str, old_ms: int, expected: bool) -> None:
    assert better(end(new), new_ms / 1e3, end(old), old_ms / 1e3) is expected


def _kind(world: World, send: Send) -> type:
    return type(disco.open_box(send.datagram, world.a.paths._peers[world.b.key].key))
