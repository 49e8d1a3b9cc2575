"""Windows that are as large as the way needs: what is larger waits in sockets, with everything else on the same way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.tcp import Limits
from agent.protocol.tcp.cubic import Cubic
from agent.protocol.tcp.receiver import Receiver
from tests.protocol.tcp.link import A, B, Network, steady

MIB = 1024 * 1024


def stream(
    receiver: Receiver, rate: float, seconds: float, way: float, step: float = 0.002, began: float = 0.0
) -> float:
    """A peer that sends `rate` bytes a second, and an owner that reads at once; returns the time at the end."""
    now = began
    while now < began + seconds:
        now += step
        receiver.extend(bytes(int(rate * step)))
        receiver.read(1 << 30)
        receiver.adapt(way, now)
    return now


def test_on_a_near_way_the_window_is_small() -> None:
    receiver = Receiver(4 * MIB)
    stream(receiver, 50e6, 1.0, way=0.0005)
    assert 0.5 * MIB <= receiver.limit <= 1 * MIB


def test_on_a_long_way_it_grows_to_all_there_is() -> None:
    receiver = Receiver(4 * MIB)
    stream(receiver, 20e6, 1.0, way=0.1)
    assert receiver.limit == 4 * MIB


def test_a_peer_that_doubles_with_each_round_trip_is_never_held_back() -> None:
    receiver, way, flight, now = Receiver(4 * MIB), 0.1, 14_000, 0.0
    while flight < 2 * MIB:
        assert receiver.limit >= min(2 * flight, 4 * MIB), f"{receiver.limit} for {flight} in flight"
        now = stream(receiver, flight / way, way, way, began=now)
        flight *= 2


def test_silence_says_nothing() -> None:
    receiver = Receiver(4 * MIB)
    now = stream(receiver, 20e6, 1.0, way=0.1)
    receiver.extend(b"x")
    receiver.adapt(0.1, now + 60)
    assert receiver.limit == 4 * MIB


def test_without_a_measured_way_nothing_changes() -> None:
    receiver = Receiver(4 * MIB)
    before = receiver.limit
    stream(receiver, 1e3, 2.0, way=float("inf"))
    assert receiver.limit == before


@given(st.lists(st.tuples(st.integers(0, 300_000), st.integers(0, 400_000), st.floats(0.0001, 0.5)), max_size=60))
def test_what_was_announced_is_taken(steps: list[tuple[int, int, float]]) -> None:
    receiver, now, edge = Receiver(4 * MIB), 0.0, 0
    for size, read, way in steps:
        now += way
        before = receiver.window(1200)
        assert receiver.nxt + before >= edge, "the edge went back"
        edge = receiver.nxt + before
        assert receiver.extend(bytes(min(size, before))) or not min(size, before)
        receiver.read(read)
        receiver.adapt(way, now)
        assert receiver.buffered <= 4 * MIB


def test_another_way_is_measured_anew() -> None:
    net = Network(steady(0.0002), steady(0.0002), limits=Limits(receive_buffer=4 * MIB))
    a, b = net.establish()
    a.write(bytes(3 * MIB))
    net.run(2)
    assert b._receiver.limit < 4 * MIB
    near = a._sender.trip.minimum
    for connection, remote in ((a, B), (b, A)):
        stack = net.a.stack if connection is a else net.b.stack
        stack.way_changed({remote})
    assert (a._sender.trip.minimum, b._receiver.limit) == (float("inf"), 4 * MIB)
    net.a.stack.way_changed({A})  # of somebody else
    a.write(b"x")
    net.run(1)
    assert near <= a._sender.trip.minimum < 1
    net.a.stack.way_changed({A})
    assert a._sender.trip.minimum < 1


def acknowledge(cubic: Cubic, rtt: float, least: float, rounds: int, una: int = 0) -> int:
    now = 0.0
    for _ in range(rounds):
        flight = int(cubic.cwnd)
        for _ in range(10):
            una += flight // 10
            now += rtt / 10
            cubic.on_rtt(rtt)
            cubic.on_ack(flight // 10, una, una + flight, rtt, least, now)
    return una


def test_on_a_near_way_what_waits_makes_the_window_smaller() -> None:
    cubic = Cubic(1200, 8 * MIB)
    una = acknowledge(cubic, 0.0005, 0.0005, 20)
    large = cubic.cwnd
    una = acknowledge(cubic, 0.040, 0.0005, 10, una)
    assert cubic.cwnd < large / 4
    acknowledge(cubic, 0.040, 0.0005, 100, una)
    assert 256 * 1024 <= cubic.cwnd < 257 * 1024, "a little is always in flight"


def test_on_a_long_way_only_loss_does() -> None:
    cubic = Cubic(1200, 8 * MIB)
    una = acknowledge(cubic, 0.020, 0.020, 12)
    before = cubic.cwnd
    acknowledge(cubic, 0.060, 0.020, 10, una)
    assert cubic.cwnd >= before
