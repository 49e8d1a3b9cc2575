"""The relay without a network: who gets what, and what becomes of those who do not read (tailnet.md §5.6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol import derp, disco, keys
from agent.protocol.derp import ClientSession, DerpError, PeerGone
from agent.server.relay import MAX_LOGINS, QUEUE_BYTES, QUEUE_PACKETS, Connection, Relay
from agent.testing import ManualClock

DISCO = disco.MAGIC + bytes(100)


class Peer:
    """A client whose link is a list."""

    def __init__(self, relay: Relay, private: bytes = b"") -> None:
        self.private = private or keys.generate()
        self.key = keys.public_key(self.private)
        self.session = ClientSession(self.private, home=False)
        self.aborted = False
        self.woken = 0
        self.packets: list[tuple[bytes, bytes]] = []
        self.events: list[object] = []
        self.frames = 0
        self.connection: Connection = relay.connect(self)

    def wake(self) -> None:
        self.woken += 1

    def abort(self) -> None:
        self.aborted = True
        self.connection.close()

    def read(self) -> None:
        while frames := self.connection.take(10_000):
            self.frames += len(frames)
            packets, events = self.session.receive(b"".join(frames))
            self.packets += packets
            self.events += events
            self.connection.receive(b"".join(self.session.data_to_send()))

    def log_in(self) -> Peer:
        self.read()
        assert self.session.logged_in
        self.events.clear()
        return self

    def send(self, destination: Peer | bytes, *datagrams: bytes) -> None:
        key = destination if isinstance(destination, bytes) else destination.key
        self.connection.receive(b"".join(self.session.packet(key, datagram, 0.0) for datagram in datagrams))


@pytest.fixture
def relay(clock: ManualClock) -> Relay:
    return Relay(clock, uniform=lambda low, high: high)


@pytest.fixture
async def running(relay: Relay) -> AsyncIterator[Relay]:
    task = asyncio.create_task(relay.run())
    yield relay
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.spec("tailnet", 34)
def test_two_clients_exchange_packets(relay: Relay) -> None:
    one, two = Peer(relay).log_in(), Peer(relay).log_in()
    one.send(two, b"a", b"b")
    two.read()
    two.send(one, b"c")
    one.read()
    assert two.packets == [(one.key, b"a"), (one.key, b"b")]
    assert one.packets == [(two.key, b"c")]
    assert relay.counters.forwarded == 3
    assert relay.clients == 2


def test_a_link_is_woken_once_for_a_batch(relay: Relay) -> None:
    one, two = Peer(relay).log_in(), Peer(relay).log_in()
    two.woken = 0
    one.send(two, *(b"x" for _ in range(100)))
    assert two.woken == 1
    two.read()
    one.send(two, b"y")
    assert two.woken == 2


@pytest.mark.spec("tailnet", 35)
async def test_a_destination_that_is_not_here(relay: Relay, clock: ManualClock) -> None:
    one = Peer(relay).log_in()
    stranger = keys.public_key(keys.generate())
    one.send(stranger, b"no disco packet", disco.MAGIC + bytes(55))
    one.read()
    assert one.events == []
    one.send(stranger, *[DISCO] * 10)
    one.read()
    assert one.events == [PeerGone(stranger, derp.GoneReason.NOT_HERE)] * 3
    await clock.advance(1)
    one.send(stranger, *[DISCO] * 10)
    one.read()
    assert len(one.events) == 4
    assert relay.counters.dropped_unknown == 22


@pytest.mark.spec("tailnet", 35)
def test_a_peer_that_leaves_is_missed_by_those_it_had_sent_to(relay: Relay) -> None:
    one, two, three = (Peer(relay).log_in() for _ in range(3))
    one.send(two, b"x")
    three.send(one, b"x")
    one.connection.close()
    one.connection.close()
    for peer in (two, three):
        peer.read()
    assert two.events == [PeerGone(one.key, derp.GoneReason.DISCONNECTED)]
    assert three.events == []
    three.send(one, DISCO)
    three.read()
    assert three.events == [PeerGone(one.key, derp.GoneReason.NOT_HERE)]
    two.connection.close()
    assert (two.connection.heard_from, relay.clients) == (set(), 1)


@pytest.mark.spec("tailnet", 36)
def test_of_two_connections_with_one_key_the_one_that_was_active_last_receives(relay: Relay) -> None:
    sender, old = Peer(relay).log_in(), Peer(relay).log_in()
    new = Peer(relay, old.private).log_in()
    sender.send(old.key, b"to the newest")
    old.send(sender, b"I am here")
    sender.send(old.key, b"to the one that sent")
    for peer in (old, new):
        peer.read()
    assert [data for _, data in new.packets] == [b"to the newest"]
    assert [data for _, data in old.packets] == [b"to the one that sent"]
    old.connection.close()
    sender.read()
    assert sender.events == []
    sender.send(old.key, b"to the one that is left")
    new.read()
    assert [data for _, data in new.packets][1:] == [b"to the one that is left"]
    new.connection.close()
    sender.read()
    assert sender.events == [PeerGone(old.key, derp.GoneReason.DISCONNECTED)]


def test_a_client_that_does_not_read_loses_its_oldest_datagrams(relay: Relay) -> None:
    one, two = Peer(relay).log_in(), Peer(relay).log_in()
    one.send(two, *(n.to_bytes(4, "big") for n in range(QUEUE_PACKETS + 100)))
    one.send(two, DISCO)
    assert relay.counters.dropped_full == 100
    two.read()
    assert two.packets[0] == (one.key, DISCO)
    assert [int.from_bytes(data, "big") for _, data in two.packets[1:]] == list(range(100, QUEUE_PACKETS + 100))


def test_who_floods_displaces_nobody_else(relay: Relay) -> None:
    flooder, honest, slow = Peer(relay).log_in(), Peer(relay).log_in(), Peer(relay).log_in()
    for n in range(3 * QUEUE_PACKETS):
        flooder.send(slow, b"flood")
        if n % 50 == 0:
            honest.send(slow, b"%d" % n)
    slow.read()
    said = [datagram for key, datagram in slow.packets if key == honest.key]
    assert said == [b"%d" % n for n in range(0, 3 * QUEUE_PACKETS, 50)]
    assert len(slow.packets) <= QUEUE_PACKETS
    assert relay.counters.dropped_full == 3 * QUEUE_PACKETS + len(said) - len(slow.packets)


def test_a_queue_is_bounded_in_bytes_too(relay: Relay) -> None:
    one, two = Peer(relay).log_in(), Peer(relay).log_in()
    for _ in range(100):
        one.send(two, bytes(65536))
    assert sum(map(len, two.connection.take(1 << 30))) <= QUEUE_BYTES
    assert relay.counters.dropped_full == 100 - QUEUE_BYTES // (65536 + 37)


@pytest.mark.spec("tailnet", 34)
async def test_a_client_that_is_silent_at_login_is_cut_off(running: Relay, clock: ManualClock) -> None:
    silent, peer = Peer(running), Peer(running).log_in()
    await clock.advance(9.5)
    assert not silent.aborted
    await clock.advance(1.5)
    assert silent.aborted
    assert not peer.aborted
    assert running.counters.logins_failed == 1


@pytest.mark.spec("tailnet", 34)
async def test_a_login_in_single_bytes_ends_at_the_same_time(running: Relay, clock: ManualClock) -> None:
    slow = Peer(running)
    slow.session.receive(b"".join(slow.connection.take(1000)))
    login = b"".join(slow.session.data_to_send())
    for byte in login[:12]:
        slow.connection.receive(bytes([byte]))
        await clock.advance(1)
    assert slow.aborted
    slow.connection.receive(login[12:])
    assert running.clients == 0


@pytest.mark.spec("tailnet", 37)
async def test_keep_alives(running: Relay, clock: ManualClock) -> None:
    peer = Peer(running).log_in()
    peer.frames = 0
    for count in (1, 2, 3):
        await clock.advance(66)
        peer.read()
        assert peer.frames == count


async def test_the_clock_rests_when_nobody_is_here(running: Relay, clock: ManualClock) -> None:
    peer = Peer(running).log_in()
    await clock.advance(1)
    peer.connection.close()
    await clock.advance(2)
    assert clock.sleepers == 0
    silent = Peer(running)
    await clock.advance(12)
    assert silent.aborted


def test_a_box_that_does_not_open_and_a_rule_that_is_broken(relay: Relay) -> None:
    bad, worse = Peer(relay), Peer(relay).log_in()
    with pytest.raises(DerpError):
        bad.connection.receive(derp.frame(derp.Kind.CLIENT_INFO, bad.key + bytes(100)))
    with pytest.raises(DerpError):
        worse.connection.receive(derp.frame(derp.Kind.WATCH_CONNS))
    assert (relay.counters.logins_failed, relay.counters.broken) == (1, 1)


def test_half_logins_make_way_and_keep_nobody_out(relay: Relay) -> None:
    here = Peer(relay).log_in()
    waiting = [Peer(relay) for _ in range(3 * MAX_LOGINS)]
    late = Peer(relay).log_in()
    here.send(late, b"hello")
    late.read()
    assert late.packets == [(here.key, b"hello")]
    assert [peer.aborted for peer in waiting].count(False) == MAX_LOGINS - 1
    assert not waiting[-1].aborted, "the oldest make way"
    assert relay.counters.logins_displaced == 2 * MAX_LOGINS + 1
    for peer in [*waiting, here, late]:
        peer.connection.close()
    assert (relay.clients, len(relay._logging_in), len(relay._connections)) == (0, 0, 0)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from("slcr")), max_size=60))
def test_the_books_are_balanced(steps: list[tuple[int, int, str]]) -> None:
    """Whatever clients do, the relay forgets those who are gone, and tells nothing to them."""
    relay = Relay(ManualClock())
    private = [keys.generate(lambda size, seed=n: bytes([seed + 1]) * size) for n in range(3)]  # type: ignore[misc]
    peers: dict[int, Peer] = {}
    for one, other, action in steps:
        if action == "l" and one not in peers:
            peers[one] = Peer(relay, private[one % 3]).log_in()
        elif action == "s" and one in peers:
            peers[one].send(keys.public_key(private[other % 3]), b"x")
        elif action == "r" and one in peers:
            peers[one].read()
        elif action == "c" and one in peers:
            peers.pop(one).connection.close()
    assert {peer.connection for peer in peers.values()} == relay._connections
    assert set(relay._clients) == {peer.key for peer in peers.values()}
    for client in relay._clients.values():
        assert client.sent_to <= relay._connections
        assert all(client in receiver.heard_from for receiver in client.sent_to)
    for peer in tuple(peers.values()):
        assert peer.connection.heard_from <= set(relay._clients.values())
        peer.connection.close()
        assert peer.connection.take(100) == []
    assert (relay._clients, relay._connections) == ({}, set())
