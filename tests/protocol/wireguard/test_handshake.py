"""Who is answered, who is not, and which keys are used when (tailnet.md §7.3, §7.4)."""

from __future__ import annotations

import pytest

from agent.protocol.wireguard import MAX_QUEUED, Device
from tests.protocol.wireguard.kit import (
    AGENT_ADDRESS,
    AGENT_PRIVATE,
    CLIENT_ADDRESS,
    CLIENT_PRIVATE,
    WALL_NS,
    Pair,
    contents,
    counting,
    outgoing,
    to_agent,
    to_client,
)


def _initiation(device: Device, now: float = 0.0, wall_ns: int = WALL_NS) -> bytes:
    (datagram,) = outgoing(device.send([to_agent(b"x")], now, wall_ns))
    assert datagram[0] == 1
    return datagram


def _client_of(agent: Device, private: bytes = CLIENT_PRIVATE) -> Device:
    client = Device(private, counting())
    client.add_peer(agent.public_key, [AGENT_ADDRESS])
    return client


@pytest.mark.spec("tailnet", 40)
def test_initiations_that_are_not_answered() -> None:
    agent = Device(AGENT_PRIVATE, counting())
    client = _client_of(agent)
    agent.add_peer(client.public_key, [CLIENT_ADDRESS])
    first = _initiation(client)
    assert outgoing(agent.receive([first], 100.0, WALL_NS).output)[0][0] == 2

    def silent(datagram: bytes, now: float) -> bool:
        received = agent.receive([datagram], now, WALL_NS)
        return not (received.output or received.packets or received.replies or received.established)

    assert silent(first, 200.0)
    assert agent.counters.replayed_initiation == 1

    client.forget_keys(agent.public_key)
    older = _initiation(_client_of(agent), wall_ns=WALL_NS - 10**9)
    assert silent(older, 200.0)
    assert agent.counters.replayed_initiation == 2

    second, third = (_initiation(_client_of(agent), wall_ns=WALL_NS + seconds * 10**9) for seconds in (1, 2))
    assert not silent(second, 200.0)
    assert silent(third, 200.019)
    assert agent.counters.hasty_initiation == 1
    assert not silent(third, 200.021)

    fourth = _initiation(_client_of(agent), wall_ns=WALL_NS + 3 * 10**9)
    assert silent(fourth[:116] + bytes(16) + fourth[132:], 300.0)
    assert agent.counters.bad_mac1 == 1

    stranger = _client_of(agent, bytes(range(32)))
    assert silent(_initiation(stranger), 300.0)
    assert agent.counters.unknown_peer == 1
    assert not silent(fourth, 300.0)


def test_an_initiation_with_a_forged_static_key_does_not_open() -> None:
    """Somebody who knows the agent's and the client's public key, but neither private one."""
    pair = Pair()
    agent = pair.agent.device
    wrong = Device(bytes(range(32)), counting())
    wrong.add_peer(agent.public_key, [AGENT_ADDRESS])
    wrong._identity._public = pair.client.device.public_key
    assert not agent.receive([_initiation(wrong)], 0.0, WALL_NS).output
    assert agent.counters.bad_handshake == 1


@pytest.mark.spec("tailnet", 41)
def test_the_responder_waits_for_the_first_packet_under_new_keys() -> None:
    pair = Pair()
    pair.agent.device.add_peer(pair.client.device.public_key, [CLIENT_ADDRESS])
    pair.client_sends(b"from the client")
    initiation, pair.to_agent = pair.to_agent, []
    pair.agent_receives(initiation)
    assert len(pair.to_client) == 1
    pair.agent_sends(b"early 1", b"early 2")
    assert len(pair.to_client) == 1, "nothing is sent under the new keypair yet"
    assert pair.agent.established == 0
    pair.exchange()
    assert pair.client.got == [b"early 1", b"early 2"]
    assert pair.agent.got == [b"from the client"]
    assert (pair.agent.established, pair.client.established) == (1, 1)
    assert pair.agent.peer.last_handshake == pair.client.peer.last_handshake == pair.now


def test_the_agent_can_be_the_initiator() -> None:
    pair = Pair()
    pair.agent_sends(b"to the client")
    pair.exchange()
    pair.client_sends(b"and back")
    pair.exchange()
    assert (pair.client.got, pair.agent.got) == ([b"to the client"], [b"and back"])


def test_initiations_that_cross_converge() -> None:
    pair = Pair()
    pair.client_sends(b"a")
    pair.agent_sends(b"b")
    pair.exchange()
    assert (pair.agent.got, pair.client.got) == ([b"a"], [b"b"])
    for number in range(3):
        pair.client_sends(b"c%d" % number)
        pair.agent_sends(b"d%d" % number)
        pair.exchange()
    assert pair.agent.got == [b"a", b"c0", b"c1", b"c2"]
    assert pair.client.got == [b"b", b"d0", b"d1", b"d2"]


def test_a_lost_response_costs_one_retry_and_no_data() -> None:
    pair = Pair()
    pair.client_sends(b"one")
    pair.agent_receives(pair.to_agent)
    pair.to_agent.clear()
    pair.to_client.clear()
    pair.advance(4.9)
    assert pair.agent.got == []
    pair.advance(0.5)
    assert pair.agent.got == [b"one"]


def test_packets_wait_for_the_handshake_and_the_oldest_make_room() -> None:
    pair = Pair()
    pair.client_sends(*(b"%d" % number for number in range(MAX_QUEUED + 10)))
    assert len(pair.to_agent) == 1
    pair.exchange()
    assert pair.agent.got == [b"%d" % number for number in range(10, MAX_QUEUED + 10)]
    assert pair.client.device.counters.queue_overflow == 10


def test_a_clock_that_is_set_back_is_not_taken_for_a_replay() -> None:
    agent = Device(AGENT_PRIVATE, counting())
    client = _client_of(agent)
    agent.add_peer(client.public_key, [CLIENT_ADDRESS])
    assert agent.receive([_initiation(client, 0.0)], 0.0, WALL_NS).output
    client.forget_keys(agent.public_key)
    assert agent.receive([_initiation(client, 10.0, WALL_NS - 10**12)], 10.0, WALL_NS).output


def test_a_response_is_taken_once_and_only_the_right_one() -> None:
    pair = Pair()
    pair.client_sends(b"x")
    pair.agent_receives(pair.to_agent)
    (response,) = pair.to_client
    client = pair.client.device
    for wrong in (response[:-33] + b"\x00" + response[-32:], response[:8] + b"\xff\xff\xff\xff" + response[12:]):
        assert not pair.client_receives([wrong]).output
    assert (client.counters.bad_mac1, client.counters.unknown_index) == (1, 1)
    assert pair.client_receives([response]).established
    assert not pair.client_receives([response]).output
    assert client.counters.unknown_index == 2


def test_keys_of_no_use_are_refused() -> None:
    device = Device(AGENT_PRIVATE, counting())
    with pytest.raises(ValueError, match="low order"):
        device.add_peer(bytes(32), [])
    with pytest.raises(ValueError, match="no key"):
        device.add_peer(bytes(31), [])
    with pytest.raises(ValueError, match="16 bytes"):
        device.add_peer(bytes(range(32)), [b"short"])
    with pytest.raises(ValueError, match="negative"):
        device.add_peer(bytes(range(32)), [], keepalive=-1)
    assert device.peer(bytes(range(32))) is None


def test_a_removed_peer_is_forgotten_with_all_it_had() -> None:
    pair = Pair(keepalive=25)
    pair.connect()
    pair.client_sends(b"last words")
    pair.agent.device.remove_peer(pair.client.device.public_key)
    pair.agent.device.remove_peer(pair.client.device.public_key)
    pair.exchange()
    assert pair.agent.got == []
    assert pair.agent.device.counters.unknown_index == 1
    assert pair.agent.device.next_timeout() is None
    pair.agent_sends(b"nobody there")
    assert pair.agent.device.counters.no_route == 1
    client = pair.client.device
    client.forget_keys(pair.agent.device.public_key)
    assert client.next_timeout() == float("-inf")
    client.remove_peer(pair.agent.device.public_key)
    client.forget_keys(pair.agent.device.public_key)
    assert client.next_timeout() is None
    assert (client._keypairs, client._initiations, client._routes) == ({}, {}, {})


@pytest.mark.spec("tailnet", 12)
def test_forgotten_keys_are_replaced_at_once() -> None:
    pair = Pair()
    pair.connect()
    pair.client_sends(b"under old keys")
    old, pair.to_agent = pair.to_agent, []
    pair.agent.device.forget_keys(pair.client.device.public_key)
    pair.agent_receives(old)
    assert pair.agent.got == []
    pair.agent_sends(b"under new keys")
    pair.exchange()
    assert pair.client.got == [b"under new keys"]


def test_what_waits_when_keys_are_forgotten_is_delivered() -> None:
    pair = Pair()
    pair.client_sends(b"waiting")
    pair.to_agent.clear()
    pair.client.device.forget_keys(pair.agent.device.public_key)
    pair.fire()
    pair.exchange()
    assert pair.agent.got == [b"waiting"]


@pytest.mark.spec("tailnet", 45)
def test_packets_that_are_not_the_peers_to_send() -> None:
    pair = Pair()
    pair.connect()
    agent, counters = pair.agent.device, pair.agent.device.counters
    good = to_agent(b"good")
    keypair = pair.client.peer._keypairs.current
    assert keypair is not None
    bad = [
        to_client(b"foreign source"),
        good[:4] + b"\xff\xff" + good[6:],
        b"\x45" + good[1:],
        good[:20],
    ]
    pair.agent_receives(keypair.seal([*bad, good]))
    assert pair.agent.got == [b"good"]
    assert (counters.foreign_source, counters.bad_length, counters.not_ipv6) == (1, 1, 2)
    agent.add_peer(pair.client.device.public_key, [])
    pair.agent_receives(keypair.seal([good]))
    assert pair.agent.got == [b"good"]
    assert counters.foreign_source == 2


def test_an_address_belongs_to_the_peer_that_was_given_it_last() -> None:
    device = Device(AGENT_PRIVATE, counting())
    one, two = (Device(bytes([number]) * 32, counting()).public_key for number in (1, 2))
    first = device.add_peer(one, [CLIENT_ADDRESS, AGENT_ADDRESS])
    second = device.add_peer(two, [CLIENT_ADDRESS])
    output = device.send([to_client(b""), to_agent(b"")], 0.0, WALL_NS)
    assert [peer for peer, _ in output] == [second, first]
    device.add_peer(one, [])
    output = device.send([to_client(b""), to_agent(b"")], 10.0, WALL_NS)
    assert [peer for peer, _ in output] == [second]
    device.send([b"", b"\x60", b"\x45" + to_client(b"")[1:]], 10.0, WALL_NS)
    assert device.counters.no_route == 4


def test_datagrams_may_be_views_into_a_buffer() -> None:
    pair = Pair()
    pair.client_sends(b"x")
    pair.agent_receives([memoryview(datagram) for datagram in pair.to_agent])  # type: ignore[misc]
    pair.to_agent.clear()
    pair.exchange()
    pair.client_sends(b"y")
    received = pair.agent.device.receive([memoryview(bytearray(pair.to_agent[0]))], pair.now, pair.wall_ns)
    assert contents(received) == [b"y"]
