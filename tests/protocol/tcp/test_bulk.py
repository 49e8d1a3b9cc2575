"""What is quick about bulk transfers is nothing but quick: it comes to the same as the long way."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.protocol.tcp import Connection, Limits
from agent.protocol.tcp.sender import Sender
from tests.protocol.tcp.link import Network, Rough, steady

DATA = random.Random(8).randbytes(400_000)


def _exchange(seed: int, loss: float, late: float, limits: Limits) -> list[bytes]:
    """Every packet of an exchange over a bad link that is too short for pacing."""
    forth, back = (
        Rough(delay=0.0005, loss=loss, late=late, double=late, lateness=0.001, seed=each) for each in (seed, seed + 1)
    )
    net = Network(forth, back, limits)
    net.a.keep = net.b.keep = True
    net.connect(DATA, DATA[:50_000])
    net.run(600)
    assert bytes(net.b.received) == DATA
    assert bytes(net.a.received) == DATA[:50_000]
    return net.a.sent + net.b.sent


@pytest.mark.parametrize(
    ("owner", "quick", "never"),
    [(Connection, "_take_expected", lambda *_: False), (Sender, "_full_segments", lambda *_: 0)],
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 1000),
    loss=st.sampled_from([0.0, 0.01, 0.1]),
    late=st.sampled_from([0.0, 0.05]),
    buffer=st.sampled_from([3000, 50_000, 4 << 20]),
)
def test_the_short_way_leads_where_the_long_way_does(
    owner: type, quick: str, never: Callable[..., object], seed: int, loss: float, late: float, buffer: int
) -> None:
    limits = Limits(retries=40, receive_buffer=buffer)
    packets = _exchange(seed, loss, late, limits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, quick, never)
        assert _exchange(seed, loss, late, limits) == packets


def test_paced_segments_go_out_in_batches() -> None:
    moments = set()

    def forth(packet: bytes) -> list[tuple[float, bytes]]:
        moments.add(net.now)
        return [(0.02, packet)]

    net = Network(forth, steady(0.02))
    net.connect(DATA * 8)
    began = net.now
    net.run(60)
    assert bytes(net.b.received) == DATA * 8
    assert len(moments) < 1500 * (net.now - began), "not much more often than each millisecond"
    assert net.now - began < 1.0, "and none the later for it"
