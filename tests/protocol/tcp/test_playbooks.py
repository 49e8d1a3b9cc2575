"""Two stacks joined by a bad link: every byte once and in order, and always an end (tailnet.md §13, 56 to 58)."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.protocol.tcp import (
    Closed,
    ConnectionTimeoutTcpError,
    Limits,
    TcpStack,
)
from agent.protocol.tcp.segment import ack_options, build, ones_sum
from tests.protocol.tcp.link import B, Network, Rough, steady

DATA = random.Random(3).randbytes(1 << 20)
PATIENT = Limits(retries=40, syn_retries=40, receive_buffer=300_000, send_buffer=200_000)

fates = st.lists(
    st.sampled_from(["pass", "pass", "pass", "drop", "double", "late", "later", "corrupt"]), min_size=0, max_size=120
)


class Script:
    """Fates one after another, then a link without faults."""

    def __init__(self, fates: list[str], delay: float) -> None:
        self._fates = iter(fates)
        self._delay = delay

    def __call__(self, packet: bytes) -> list[tuple[float, bytes]]:
        fate = next(self._fates, "pass")
        delay = self._delay
        if fate == "drop":
            return []
        if fate == "double":
            return [(delay, packet), (delay * 3 + 0.001, packet)]
        if fate == "late":
            return [(delay * 1.5 + 0.003, packet)]
        if fate == "later":
            return [(delay * 4 + 0.3, packet)]
        if fate == "corrupt":
            return [(delay, packet[:-1] + bytes([packet[-1] ^ 0x10]))]
        return [(delay, packet)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fates, fates, st.sampled_from([0.0, 0.0005, 0.05]), st.integers(0, 60_000), st.integers(0, 20_000))
def test_scripted_faults(forth: list[str], back: list[str], delay: float, size: int, reply: int) -> None:
    net = Network(Script(forth, delay), Script(back, delay), PATIENT)
    net.connect(DATA[:size], DATA[:reply])
    net.run(3000)
    assert bytes(net.b.received) == DATA[:size]
    assert bytes(net.a.received) == DATA[:reply]
    assert net.over
    assert net.complete
    for end in (net.a, net.b):
        assert end.closed is not None
        assert end.closed.error is None
        assert end.stack.connections == []
        assert end.stack.pending == 0
        assert end.largest <= 1280


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 1 << 30),
    st.sampled_from([0.0, 0.01, 0.1]),
    st.sampled_from([0.0, 0.05]),
    st.sampled_from([0.0, 0.02]),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from([None, 200_000.0, 5e6]),
)
@example(708244, 0.1, 0.0, 0.0, 0.2, 5e6)  # a first segment and a FIN are missing, all between them has arrived
def test_a_rough_link(seed: int, loss: float, double: float, corrupt: float, late: float, rate: float | None) -> None:
    def rough(seed: int) -> Rough:
        return Rough(0.01, loss, double, corrupt, late, rate=rate, queue=40, seed=seed)

    net = Network(rough(seed), rough(seed + 1), PATIENT)
    net.connect(DATA[:100_000], DATA[:30_000])
    net.run(3000)
    assert bytes(net.b.received) == DATA[:100_000]
    assert bytes(net.a.received) == DATA[:30_000]
    assert net.over


@pytest.mark.spec("tailnet", 57)
@pytest.mark.parametrize(("loss", "size"), [(0.01, 1 << 20), (0.05, 1 << 19)])
def test_bulk_over_loss_and_a_long_way(loss: float, size: int) -> None:
    net = Network(Rough(0.05, loss=loss, seed=11), Rough(0.05, loss=loss, seed=12))
    connection = net.connect(DATA[:size])
    began = net.now
    net.run(120)
    assert bytes(net.b.received) == DATA[:size]
    counters = connection.counters
    assert counters.retransmissions > 0
    assert counters.most_retransmissions < 5
    assert counters.retransmissions < 3 * loss * counters.segments_sent
    assert net.over
    assert net.now - began < 30


def test_a_narrow_link_is_filled() -> None:
    net = Network(Rough(0.02, rate=2.5e6, queue=100), Rough(0.02))
    connection = net.connect(DATA * 4)
    began = net.now
    net.run(60)
    assert bytes(net.b.received) == DATA * 4
    assert len(DATA) * 4 / (net.now - began) > 0.6 * 2.5e6
    assert connection.counters.timeouts == 0


def test_a_long_fat_link_is_filled() -> None:
    net = Network(Rough(0.05, rate=40e6, queue=4000), Rough(0.05))
    connection = net.connect(DATA * 12, shut=True)
    began = net.now
    net.run(60)
    assert bytes(net.b.received) == DATA * 12
    assert net.now - began < 3.0
    assert connection.counters.retransmissions == 0


def test_reordering_costs_no_rate() -> None:
    net = Network(Rough(0.02, late=0.3, lateness=0.004, seed=4), Rough(0.02))
    connection = net.connect(DATA * 2)
    net.run(60)
    assert bytes(net.b.received) == DATA * 2
    assert connection.counters.timeouts == 0
    assert connection.counters.retransmissions < 30


@pytest.mark.spec("tailnet", 56)
@pytest.mark.parametrize("missing", ["everything", "sack", "stamps", "scale", "mss"])
def test_a_peer_without_options(missing: str) -> None:
    """The link takes options out of the SYN, as a simple peer would leave them out."""

    def strip(packet: bytes) -> bytes:
        if not packet[53] & 2:
            return packet
        text = packet[60:]
        spans = {"mss": (0, 4), "sack": (4, 6), "stamps": (6, 16), "scale": (16, 20)}
        for name, (start, end) in spans.items():
            if missing in (name, "everything"):
                text = text[:start] + b"\x01" * (end - start) + text[end:]
        packet = packet[:56] + bytes(2) + packet[58:60] + text
        total = -(ones_sum(packet[8:]) + len(packet) - 40 + 6) % 65535
        return packet[:56] + total.to_bytes(2, "big") + packet[58:]

    rough = Rough(0.01, loss=0.02, seed=9)
    net = Network(lambda packet: rough(strip(packet)), steady(0.01))
    rough.clock = lambda: net.now
    net.a.keep = net.b.keep = True
    net.connect(DATA[:300_000], DATA[:50_000])
    net.run(120)
    assert bytes(net.b.received) == DATA[:300_000]
    assert bytes(net.a.received) == DATA[:50_000]
    assert net.over
    assert net.a.largest == 1280
    payloads = {len(packet) - 40 - (packet[52] >> 4) * 4 for packet in net.a.sent}
    assert max(payloads) == (1220 if missing in ("stamps", "everything") else 1208)
    if missing in ("scale", "everything"):
        assert net.b.stack.limits.receive_buffer > 65535
        assert all(packet[54:56] != b"\0\0" for packet in net.b.sent if packet[53] == 0x12)


@pytest.mark.spec("tailnet", 56)
def test_the_mss_of_the_peer_is_kept() -> None:
    net = Network(steady(0.001), steady(0.001), mtu_b=600)
    net.connect(DATA[:50_000], DATA[:50_000])
    net.run(60)
    assert bytes(net.b.received) == bytes(net.a.received) == DATA[:50_000]
    assert net.a.largest == net.b.largest == 600


@pytest.mark.spec("tailnet", 58)
def test_a_reader_that_stops_for_half_a_minute() -> None:
    net = Network(steady(0.01), steady(0.01), limits_b=Limits(receive_buffer=100_000))
    net.b.reading = False
    net.connect(DATA)
    net.run(30)
    assert net.b.connection is not None
    assert 99_000 < net.b.connection.readable <= 100_000
    assert net.a.closed is None
    net.b.reading = True
    net.b.act([])
    net.run(60)
    assert bytes(net.b.received) == DATA
    assert net.over


def test_the_window_update_that_gets_lost() -> None:
    """The probe of the zero window finds out that it has opened."""
    drop = False
    net = Network(steady(0.01), lambda packet: [] if drop else [(0.01, packet)], limits_b=Limits(receive_buffer=50_000))
    net.b.reading = False
    net.connect(DATA[:200_000], shut=True)
    net.run(5)
    drop = True
    net.b.reading = True
    net.b.act([])
    net.flush()
    drop = False
    net.run(120)
    assert bytes(net.b.received) == DATA[:200_000]
    assert net.over


@pytest.mark.parametrize("size", [1, 100, 1207, 3000])
def test_tiny_windows(size: int) -> None:
    net = Network(steady(0.001), steady(0.001), limits_b=Limits(receive_buffer=size))
    data = DATA[: 300 if size == 1 else 20_000]
    net.connect(data)
    net.run(3000)
    assert bytes(net.b.received) == data
    assert net.over


def test_a_window_that_shrinks() -> None:
    """The peer takes back what it had offered; what was sent beyond counts as late, and nothing is lost."""
    shrink = False

    def back(packet: bytes) -> list[tuple[float, bytes]]:
        if shrink and not packet[53] & 2:
            packet = packet[:54] + b"\0\1" + b"\0\0" + packet[58:]
            total = -(ones_sum(packet[8:]) + len(packet) - 40 + 6) % 65535
            packet = packet[:56] + total.to_bytes(2, "big") + packet[58:]
        return [(0.01, packet)]

    net = Network(lambda packet: [] if shrink and len(packet) > 300 else [(0.01, packet)], back)
    net.connect(DATA)
    net.run(0.1)
    shrink = True
    net.run(20)
    assert net.a.closed is None
    shrink = False
    net.run(300)
    assert bytes(net.b.received) == DATA
    assert net.over


def test_a_link_that_dies() -> None:
    alive = True
    net = Network(lambda packet: [(0.01, packet)] if alive else [], steady(0.01))
    net.connect(DATA)
    net.run(0.05)
    alive = False
    net.run(25)
    assert net.a.closed is None
    net.run(75)
    assert net.a.closed is not None
    assert isinstance(net.a.closed.error, ConnectionTimeoutTcpError)
    assert net.a.stack.connections == []


def test_five_retransmissions_and_no_more() -> None:
    sent: list[bytes] = []
    alive = True

    def forth(packet: bytes) -> list[tuple[float, bytes]]:
        if alive:
            return [(0.01, packet)]
        sent.append(packet)
        return []

    net = Network(forth, steady(0.01), limits=Limits(patience=0.0))
    connection, _ = net.establish()
    alive = False
    connection.write(b"hello")
    net.run(100)
    assert [packet[72:] for packet in sent[:-1]] == [b"hello"] * 7, "first, tail-loss probe, five retransmissions"
    assert sent[-1][53] & 4
    assert isinstance(net.a.events[-1], Closed)
    assert isinstance(net.a.events[-1].error, ConnectionTimeoutTcpError)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=5), st.data())
def test_arbitrary_bytes(noise: list[bytes], data: st.DataObject) -> None:
    """Packets that are nothing, and packets of a connection with anything in their headers, never raise."""
    net = Network()
    net.a.keep = True
    connection, _ = net.establish()
    connection.write(b"hello")
    net.flush()
    packets: list[bytes | memoryview] = list(noise)
    for packet in net.a.sent:
        at = data.draw(st.integers(44, len(packet)))
        changed = packet[:at] + data.draw(st.binary(max_size=40)) + packet[at:]
        changed = changed[:4] + (len(changed) - 40).to_bytes(2, "big") + changed[6:]
        if len(changed) >= 60:
            changed = changed[:56] + bytes(2) + changed[58:]
            total = -(ones_sum(changed[8:]) + len(changed) - 40 + 6) % 65535
            changed = changed[:56] + total.to_bytes(2, "big") + changed[58:]
        packets.append(memoryview(changed))
    for stack in (net.b.stack, TcpStack([B])):
        stack.receive(packets, net.now)
        stack.packets_to_send(net.now)
        stack.handle_timeout(net.now + 1000)
        stack.packets_to_send(net.now + 1000)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-3000, 3000),
            st.integers(-3000, 3000),
            st.integers(0, 255),
            st.integers(0, 65535),
            st.binary(max_size=30),
        ),
        max_size=30,
    )
)
def test_any_segments_of_a_connection(segments: list[tuple[int, int, int, int, bytes]]) -> None:
    """Whatever the peer's segments say, nothing raises, memory is bounded and there is an end."""
    net = Network(limits=Limits(patience=0.0))
    connection, other = net.establish()
    connection.write(DATA[:5000])
    net.a.stack.packets_to_send(net.now)
    flow = other._flow
    seq = other._iss + 1
    ack = connection._iss + 1
    for seq_off, ack_off, flags, window, payload in segments:
        options = ack_options(
            (int(net.now * 1000) + other._stamp_offset) & 0xFFFFFFFF,
            0,
            [(ack & 0xFFFFFFFF, (ack + ack_off) & 0xFFFFFFFF)],
        )
        packet = build(
            flow, (seq + seq_off) & 0xFFFFFFFF, (ack + ack_off) & 0xFFFFFFFF, flags, window, options, payload
        )
        net.a.stack.receive([packet], net.now)
        net.a.stack.packets_to_send(net.now)
        net.now += 0.01
    for _ in range(300):
        due = net.a.stack.next_timeout()
        if due is None:
            break
        net.now = max(net.now, due)
        net.a.stack.handle_timeout(net.now)
        while net.a.stack.packets_to_send(net.now):
            pass
    sender = connection._sender
    assert 0 <= sender._pipe <= max(sender.nxt - sender.una, 0)
    assert connection.unsent <= 5001
