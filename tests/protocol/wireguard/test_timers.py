"""What a peer does by itself as time passes (tailnet.md §7.5, §7.6)."""

from __future__ import annotations

from itertools import pairwise

import pytest

from agent.protocol.wireguard import Device
from tests.protocol.wireguard.kit import (
    CLIENT_PRIVATE,
    WALL_NS,
    Pair,
    counting,
    outgoing,
    to_agent,
)


def _kinds(datagrams: list[bytes]) -> list[tuple[int, int]]:
    return [(datagram[0], len(datagram)) for datagram in datagrams]


KEEPALIVE = (4, 32)
INITIATION = (1, 148)


@pytest.mark.spec("tailnet", 44)
def test_a_keepalive_answers_data_after_ten_seconds() -> None:
    pair = Pair()
    pair.connect()
    pair.client_sends(b"a")
    pair.exchange()
    pair.advance(9.9, exchange=False)
    assert pair.to_client == []
    pair.advance(0.2, exchange=False)
    assert _kinds(pair.to_client) == [KEEPALIVE]
    pair.exchange()
    assert pair.agent.device.handle_timeout(pair.now + 14, WALL_NS) == [], "a keepalive is not answered"

    pair.client_sends(b"b")
    pair.exchange()
    pair.advance(5)
    pair.agent_sends(b"c")
    pair.exchange()
    pair.advance(9, exchange=False)
    assert pair.to_client == [], "data was an answer, too"


@pytest.mark.spec("tailnet", 44)
def test_silence_after_data_makes_a_new_handshake_after_fifteen_seconds() -> None:
    pair = Pair()
    pair.connect()
    pair.advance(20)
    pair.client_sends(b"a")
    pair.to_agent.clear()
    pair.advance(14.9, exchange=False)
    assert pair.to_agent == []
    pair.advance(0.5, exchange=False)
    assert _kinds(pair.to_agent) == [INITIATION]
    pair.exchange()
    pair.client_sends(b"b")
    pair.exchange()
    assert pair.agent.got == [b"b"]


@pytest.mark.spec("tailnet", 44)
def test_keys_are_erased_after_540_seconds() -> None:
    pair = Pair()
    pair.connect()
    pair.advance(539)
    assert pair.client.device._keypairs
    assert pair.agent.device._keypairs
    pair.advance(2)
    assert not pair.client.device._keypairs
    assert not pair.agent.device._keypairs
    assert pair.client.device.next_timeout() is None, "an idle peer without keys needs nothing"


@pytest.mark.spec("tailnet", 42)
def test_the_initiator_makes_new_keys_after_120_seconds_of_bulk() -> None:
    pair = Pair()
    pair.connect()
    sent = 0
    for _ in range(4000):
        pair.client_sends(b"up %d" % sent)
        pair.agent_sends(b"down %d" % sent)
        sent += 1
        pair.advance(0.1)
    assert pair.agent.got == [b"up %d" % number for number in range(sent)]
    assert pair.client.got == [b"down %d" % number for number in range(sent)]
    # 400 s: one at 120 s and one each 120 s later, each by the client.
    assert (pair.client.established, pair.agent.established) == (4, 4)


@pytest.mark.spec("tailnet", 42)
def test_packets_on_their_way_survive_new_keys_until_180_seconds() -> None:
    pair = Pair()
    pair.connect()
    pair.client_sends(b"late", b"too late")
    late, too_late = pair.to_agent
    pair.to_agent.clear()
    pair.advance(121)
    pair.client_sends(b"rekey")
    pair.exchange()
    assert pair.agent.established == 2
    pair.advance(58)
    pair.agent_receives([late])
    assert pair.agent.got == [b"rekey", b"late"]
    pair.advance(2)
    pair.agent_receives([too_late])
    assert pair.agent.got == [b"rekey", b"late"]
    assert pair.agent.device.counters.expired == 1


def test_keys_of_180_seconds_are_not_sent_with() -> None:
    pair = Pair()
    pair.connect()
    pair.advance(181)
    pair.agent_sends(b"new keys first")
    assert _kinds(pair.to_client) == [INITIATION]
    pair.exchange()
    assert pair.client.got == [b"new keys first"]


def test_the_initiator_makes_new_keys_once_when_it_only_receives() -> None:
    pair = Pair()
    pair.connect()
    pair.advance(115)
    pair.client_sends(b"the last that the client has to say")
    pair.exchange()
    pair.advance(51)
    pair.agent_sends(b"data")
    datagrams, pair.to_client = pair.to_client, []
    pair.client_receives(datagrams)
    assert _kinds(pair.to_agent) == [INITIATION]
    pair.to_agent.clear()
    pair.agent_sends(b"more data")
    pair.advance(4.9)
    assert pair.client.established == 1
    pair.advance(1)
    assert pair.client.established == 2


@pytest.mark.spec("tailnet", 43)
def test_a_datagram_is_taken_once() -> None:
    pair = Pair()
    pair.connect()
    pair.client_sends(*(b"%d" % number for number in range(5)))
    batch, pair.to_agent = pair.to_agent, []
    pair.agent_receives([*reversed(batch), *batch])
    pair.agent_receives(batch)
    assert sorted(pair.agent.got) == [b"0", b"1", b"2", b"3", b"4"]
    assert pair.agent.device.counters.replayed == 10


def test_initiations_are_repeated_for_90_seconds_and_given_up() -> None:
    client = Device(CLIENT_PRIVATE, counting())
    agent = Device(bytes(range(32)), counting())
    client.add_peer(agent.public_key, [b"\xfd" * 16])
    packet = to_agent(b"x")[:24] + b"\xfd" * 16
    sent = [(0.0, datagram) for datagram in outgoing(client.send([packet], 0.0, WALL_NS))]
    while (deadline := client.next_timeout()) is not None:
        assert deadline < 200
        sent += [(deadline, datagram) for datagram in outgoing(client.handle_timeout(deadline, WALL_NS))]
    assert _kinds([datagram for _, datagram in sent]) == [INITIATION] * 19
    times = [when for when, _ in sent]
    assert all(5.0 <= later - earlier <= 5.333 for earlier, later in pairwise(times))
    assert len({datagram[8:40] for _, datagram in sent}) == 19, "each with an ephemeral key of its own"
    assert client.counters.given_up == 1
    assert client._initiations == {}
    assert _kinds(outgoing(client.send([packet], 300.0, WALL_NS))) == [INITIATION], "the next packet begins again"


def test_a_persistent_keepalive_begins_and_goes_on() -> None:
    pair = Pair(keepalive=25)
    assert pair.client.device.next_timeout() == float("-inf")
    pair.fire()
    pair.exchange()
    assert (pair.client.established, pair.agent.established) == (1, 1)
    for _ in range(3):
        pair.advance(24.5, exchange=False)
        assert pair.to_agent == []
        pair.advance(0.5, exchange=False)
        assert _kinds(pair.to_agent) == [KEEPALIVE]
        pair.exchange()
    pair.advance(600)
    assert pair.client.established >= 4, "keys stay fresh for a peer that is only kept alive"
    pair.client.device.add_peer(pair.agent.device.public_key, [], keepalive=0)
    established = pair.client.established
    pair.advance(600)
    assert pair.client.established == established


def test_a_peer_that_restarted_is_found_again_by_the_keepalive() -> None:
    pair = Pair(keepalive=25)
    pair.fire()
    pair.exchange()
    pair.advance(50)
    pair.client.device.forget_keys(pair.agent.device.public_key)
    pair.fire()
    pair.exchange()
    assert pair.client.established == 2


def test_idle_peers_are_not_looked_at() -> None:
    """Deadlines live in one heap: its size is bounded by the peers, whatever they do."""
    pair = Pair()
    pair.connect()
    for _ in range(3000):
        pair.client_sends(b"x")
        pair.exchange()
        pair.advance(0.37)
        assert len(pair.client.device._deadlines) <= 4 + 65
        assert len(pair.agent.device._deadlines) <= 4 + 65


def test_bytes_are_counted_as_they_are_on_the_wire() -> None:
    pair = Pair()
    pair.connect()
    sent, received = pair.client.peer.sent_bytes, pair.agent.peer.received_bytes
    assert sent == received > 0
    pair.client_sends(b"123")
    size = len(pair.to_agent[0])
    pair.exchange()
    assert (pair.client.peer.sent_bytes - sent, pair.agent.peer.received_bytes - received) == (size, size)
