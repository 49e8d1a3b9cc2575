"""A flood of handshakes has a bounded cost, and those who prove their address get through (tailnet.md §7.8)."""

from __future__ import annotations

from unittest.mock import patch

from agent.protocol.wireguard import Device, noise
from agent.protocol.wireguard.admission import (
    BURST,
    MAX_SOURCES,
    RATE,
    SOURCE_BURST,
    SOURCE_RATE,
    Admission,
    Verdict,
    _Sources,
)
from agent.protocol.wireguard.cookies import Checker, Stamper
from agent.protocol.wireguard.device import MAX_RESPONSES
from tests.protocol.wireguard.kit import (
    AGENT_ADDRESS,
    AGENT_PRIVATE,
    CLIENT_ADDRESS,
    WALL_NS,
    Pair,
    counting,
    to_agent,
    to_client,
)


def _flood(pair: Pair, count: int, seconds: float = 0.0, sources: int = 1) -> list[bytes]:
    """Initiations by strangers who know the agent's key, from so many sources; returns the answers."""
    stranger = Device(bytes(range(32)), counting())
    stranger.add_peer(pair.agent.device.public_key, [AGENT_ADDRESS])
    ((_, (initiation,)),) = stranger.send([to_agent(b"")], 0.0, WALL_NS)
    replies = []
    for number in range(count):
        now, source = pair.now + seconds * number / count, b"stranger %d" % (number % sources)
        received = pair.agent.device.receive([initiation], now, WALL_NS, source)
        assert not received.output
        replies += received.replies
    pair.now += seconds
    return replies


def test_a_flood_costs_a_bounded_number_of_handshakes() -> None:
    pair = Pair()
    opened = 0
    original = noise.open_initiation

    def counted(identity: noise.Identity, message: bytes) -> noise.OpenedInitiation:
        nonlocal opened
        opened += 1
        return original(identity, message)

    counters = pair.agent.device.counters
    with patch.object(noise, "open_initiation", counted):
        replies = _flood(pair, 5000, seconds=10.0)
        assert opened <= SOURCE_BURST + 10 * SOURCE_RATE + 1
        assert len(replies) == counters.cookies_issued <= SOURCE_BURST + 10 * SOURCE_RATE + 1
        assert opened + counters.cookies_issued + counters.over_rate == 5000
        assert {len(reply) for reply in replies} == {64}
        opened = 0
        _flood(pair, 5000, seconds=10.0, sources=5000)
        assert opened <= BURST + 10 * RATE


def test_one_source_floods_at_nobodys_expense() -> None:
    pair = Pair()
    _flood(pair, 5000)
    pair.client_sends(b"let me in")
    pair.exchange()
    assert pair.agent.got == [b"let me in"]


def test_a_peer_connects_under_load_with_a_cookie() -> None:
    pair = Pair()
    _flood(pair, BURST + 1, sources=BURST + 1)
    pair.client_sends(b"let me in")
    pair.exchange()
    assert pair.agent.got == []
    for _ in range(6):
        pair.advance(1.0)
        _flood(pair, BURST + 1, sources=BURST + 1)
    assert pair.agent.got == [b"let me in"]
    assert pair.agent.device.counters.cookies_issued > 1


def _make_client_loaded(pair: Pair) -> None:
    stranger = Device(bytes(range(32)), counting())
    stranger.add_peer(pair.client.device.public_key, [CLIENT_ADDRESS])
    ((_, (stray,)),) = stranger.send([to_client(b"")], 0.0, WALL_NS)
    for number in range(BURST):
        pair.client.device.receive([stray], pair.now, WALL_NS, b"stranger %d" % number)


def test_an_initiator_under_load_takes_the_response_that_it_waits_for() -> None:
    pair = Pair()
    pair.client_sends(b"x")
    _make_client_loaded(pair)
    pair.exchange()
    assert pair.agent.got == [b"x"]


def test_a_flood_of_responses_is_asked_for_cookies() -> None:
    """By somebody who read our initiation. The peer finds the cookie by the index of its new keypair."""
    pair = Pair()
    pair.client_sends(b"x")
    _make_client_loaded(pair)
    pair.agent_receives(pair.to_agent)
    pair.to_agent.clear()
    (response,), pair.to_client = pair.to_client, []
    forged = Stamper(pair.client.device.public_key).stamp(response[:44] + bytes(16), 0.0)
    pair.client_receives([forged] * MAX_RESPONSES)
    assert pair.client.device.counters.bad_handshake == MAX_RESPONSES
    assert pair.to_agent == []
    pair.client_receives([response])
    (cookie,) = pair.to_agent
    assert len(cookie) == 64
    pair.exchange()
    assert pair.agent.device.counters.bad_cookie == 0
    pair.agent_receives([cookie])
    assert pair.agent.device.counters.bad_cookie == 1, "taken once"
    pair.advance(6)
    assert pair.agent.got == [b"x"]


def test_cookies_that_answer_nothing_are_dropped() -> None:
    pair = Pair()
    pair.client_sends(b"x")
    index = pair.to_agent[0][4:8]
    client = pair.client.device
    pair.client_receives([b"\x03\0\0\0" + index + bytes(56), b"\x03\0\0\0\xff\xff\xff\xff" + bytes(56)])
    assert (client.counters.bad_cookie, client.counters.unknown_index) == (1, 1)
    pair.exchange()
    assert pair.agent.got == [b"x"]


def test_a_source_with_a_cookie_has_a_rate_of_its_own() -> None:
    key = Device(AGENT_PRIVATE).public_key
    checker = Checker(key, counting())
    admission = Admission(checker)

    def stamped(source: bytes) -> bytes:
        stamper = Stamper(key)
        stamper.stamp(bytes(116), 0.0)
        message = stamper.stamp(bytes(116), 0.0)
        assert stamper.take_cookie(checker.reply(message, source, 0.0), 0.0)
        return stamper.stamp(bytes(116), 0.0)

    plain = Stamper(key).stamp(bytes(116), 0.0)
    anybody = [b"%d" % number for number in range(int(BURST))]
    assert [admission.judge(plain, source, 0.0) for source in anybody] == [Verdict.TAKE] * BURST
    assert admission.judge(plain, b"one more", 0.0) is Verdict.ASK_FOR_COOKIE
    assert admission.judge(plain, b"one more", 0.99) is Verdict.ASK_FOR_COOKIE
    message = stamped(b"here")
    verdicts = [admission.judge(message, b"here", 0.5) for _ in range(SOURCE_BURST + 2)]
    assert verdicts == [Verdict.TAKE] * SOURCE_BURST + [Verdict.DROP] * 2
    assert admission.judge(message, b"there", 0.5) is Verdict.ASK_FOR_COOKIE
    assert admission.judge(message, b"here", 0.56) is Verdict.TAKE
    assert admission.judge(plain, b"one more", 1.1) is Verdict.TAKE


def test_no_more_than_so_many_sources_are_remembered() -> None:
    sources = _Sources()
    for number in range(MAX_SOURCES + 10):
        assert sources.take(b"%d" % number, 0.0)
    assert len(sources) == MAX_SOURCES


def test_cookies_have_a_rate_too() -> None:
    admission = Admission(Checker(Device(AGENT_PRIVATE).public_key, counting()))
    plain = Stamper(Device(AGENT_PRIVATE).public_key).stamp(bytes(116), 0.0)
    verdicts = [admission.judge(plain, b"one", -5.0) for _ in range(1000)]
    assert verdicts.count(Verdict.TAKE) == verdicts.count(Verdict.ASK_FOR_COOKIE) == SOURCE_BURST
    assert verdicts[-1] is Verdict.DROP
