"""Two devices on a bad link, and one that hears nonsense: nothing raises, nothing comes twice, nothing is made up."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.protocol.wireguard import MAX_QUEUED
from tests.protocol.wireguard.kit import Pair

_FATE = st.sampled_from(["deliver"] * 6 + ["lose", "double", "delay", "corrupt", "cut", "extend"])
_STEP = st.tuples(
    st.sampled_from(["up", "down", "both", "forget client", "forget agent", "nothing"]),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.001, 0.5, 4.0, 11.0, 20.0, 70.0, 130.0, 200.0, 600.0]),
    st.lists(_FATE, min_size=1, max_size=8),
)


class _BadLink:
    """Decides about each datagram by a script that repeats."""

    def __init__(self) -> None:
        self.late: list[bytes] = []

    def carry(self, datagrams: list[bytes], fates: list[str]) -> list[bytes]:
        arriving, self.late = [], self.late
        for number, datagram in enumerate(datagrams):
            fate = fates[number % len(fates)]
            if fate == "delay":
                self.late.append(datagram)
            elif fate == "corrupt":
                position = (number * 7919 + len(self.late)) % len(datagram)
                arriving.append(datagram[:position] + bytes([datagram[position] ^ 0x10]) + datagram[position + 1 :])
            elif fate == "cut":
                arriving.append(datagram[: number * 31 % len(datagram)])
            elif fate == "extend":
                arriving.append(datagram + b"\0")
            elif fate != "lose":
                arriving += [datagram] * (2 if fate == "double" else 1)
        return arriving

    def overdue(self) -> list[bytes]:
        late, self.late = self.late, []
        return late[::-1]


def _run_link(pair: Pair, up: _BadLink, down: _BadLink, fates: list[str]) -> None:
    for _ in range(6):
        outbox, pair.to_agent = pair.to_agent, []
        pair.agent_receives(up.carry(outbox, fates))
        outbox, pair.to_client = pair.to_client, []
        pair.client_receives(down.carry(outbox, fates))
    pair.agent_receives(up.overdue())
    pair.client_receives(down.overdue())


def _pass(pair: Pair, seconds: float, up: _BadLink, down: _BadLink, fates: list[str]) -> None:
    until = pair.now + seconds
    for _ in range(2000):
        deadlines = [side.device.next_timeout() for side in (pair.client, pair.agent)]
        due = min(inf if deadline is None else deadline for deadline in deadlines)
        if due > until:
            break
        pair.now = max(pair.now, due)
        pair.fire()
        _run_link(pair, up, down, fates)
    else:
        raise AssertionError("deadlines pass without end")
    pair.now = until


@settings(max_examples=150, deadline=None)
@given(st.lists(_STEP, max_size=25), st.sampled_from([0.0, 25.0]))
def test_a_bad_link(steps: list[tuple[str, int, float, list[str]]], keepalive: float) -> None:
    pair = Pair(keepalive)
    up, down = _BadLink(), _BadLink()
    sent_up, sent_down = [], []
    number = 0
    for what, count, seconds, fates in steps:
        texts = [b"%d" % (number + offset) for offset in range(count)]
        number += count
        if what in ("up", "both"):
            sent_up += texts
            pair.client_sends(*texts)
        if what in ("down", "both"):
            sent_down += texts
            pair.agent_sends(*texts)
        if what == "forget client":
            pair.client.device.forget_keys(pair.agent.device.public_key)
        if what == "forget agent":
            pair.agent.device.forget_keys(pair.client.device.public_key)
        _run_link(pair, up, down, fates)
        _pass(pair, seconds, up, down, fates)
    for got, sent in ((pair.agent.got, sent_up), (pair.client.got, sent_down)):
        assert len(set(got)) == len(got)
        assert set(got) <= set(sent)
    for device in (pair.agent.device, pair.client.device):
        assert len(device._keypairs) <= 3
        assert len(device._initiations) <= 1
        assert len(device._deadlines) <= 68
    # Whatever happened, a good link heals it: at the latest when a handshake may be tried again.
    pair.exchange()
    pair.advance(200)
    pair.client.got.clear()
    pair.agent.got.clear()
    pair.client_sends(b"healed")
    pair.agent_sends(b"healed")
    pair.exchange()
    pair.advance(20)
    assert pair.agent.got[-1:] == [b"healed"]
    assert pair.client.got[-1:] == [b"healed"]


@pytest.mark.spec("tailnet", 42)
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.sampled_from([0.01, 1.0, 9.0, 30.0, 59.0]), st.booleans()), max_size=60)
)
def test_new_keys_lose_nothing_that_the_link_does_not_lose(steps: list[tuple[int, float, bool]]) -> None:
    pair = Pair()
    pair.connect()
    sent_up: list[bytes] = []
    sent_down: list[bytes] = []
    number = 0
    for count, seconds, cross in steps:
        texts = [b"%d" % (number + offset) for offset in range(count)]
        number += count
        assert count <= MAX_QUEUED
        sent_up += texts
        pair.client_sends(*texts)
        if cross:  # the other side sends before it hears: datagrams are on their way when keys change
            sent_down += texts
            pair.agent_sends(*texts)
        pair.exchange()
        pair.advance(seconds)
    pair.advance(20)
    assert (pair.agent.got, pair.client.got) == (sent_up, sent_down)


_HEADER = st.sampled_from([b"\1\0\0\0", b"\2\0\0\0", b"\3\0\0\0", b"\4\0\0\0", b"\5\0\0\0", b"\1\0\0\1", b""])
_SIZE = st.sampled_from([0, 28, 31, 32, 33, 60, 63, 64, 92, 96, 148, 149, 1312, 65535])


@given(st.lists(st.tuples(_HEADER, st.binary(max_size=200), _SIZE), max_size=20), st.booleans())
def test_arbitrary_bytes(parts: list[tuple[bytes, bytes, int]], indexed: bool) -> None:
    pair = Pair()
    pair.connect()
    keypair = pair.agent.peer._keypairs.current
    assert keypair is not None
    index = keypair.index.to_bytes(4, "little") if indexed else b""
    datagrams = [
        header + index + (body + bytes(size))[: max(0, size - len(header + index))] for header, body, size in parts
    ]
    received = pair.agent_receives(datagrams)
    assert (received.packets, received.output, received.replies, received.established) == ([], [], [], [])
    pair.client_sends(b"still there")
    pair.exchange()
    assert pair.agent.got == [b"still there"]


@given(st.binary(max_size=2000))
def test_arbitrary_plaintext(plaintext: bytes) -> None:
    """A peer with valid keys may send what it wants."""
    pair = Pair()
    pair.connect()
    keypair = pair.client.peer._keypairs.current
    assert keypair is not None
    pair.agent_receives(keypair.seal([plaintext]))


@given(st.lists(st.binary(max_size=100), max_size=10))
def test_arbitrary_packets_to_send(packets: list[bytes]) -> None:
    pair = Pair()
    pair.connect()
    assert pair.client.device.send(packets, pair.now, pair.wall_ns) == []
    assert pair.client.device.counters.no_route == len(packets)
