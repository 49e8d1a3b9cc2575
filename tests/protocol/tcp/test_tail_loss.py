"""The end of what was sent gets lost, and nothing that follows gives it away."""

from __future__ import annotations

import random

from tests.protocol.tcp.link import Network, steady

DATA = random.Random(7).randbytes(400_000)
DELAY = 0.01


class Fragile:
    """A link that can break; `first` loses no more than the first transmission of each segment."""

    def __init__(self) -> None:
        self.broken = False
        self.first = False
        self._seen: set[bytes] = set()

    def __call__(self, packet: bytes) -> list[tuple[float, bytes]]:
        sequence = packet[44:48]
        repeated = sequence in self._seen
        self._seen.add(sequence)
        return [] if self.broken and not (self.first and repeated) else [(DELAY, packet)]


def test_a_tail_that_ends_with_fin_is_found_by_a_probe() -> None:
    """Not every peer reports a FIN that came early, so it is data that is sent again."""
    link = Fragile()
    link.first = True
    net = Network(link, steady(DELAY))
    a, _ = net.establish()
    a.write(DATA[:200_000])
    a.shutdown_write()
    while len(net.b.received) < 120_000:
        assert net.step(net.now + 1)
    link.broken = True
    broken = net.now
    while len(net.b.received) < 200_000:
        assert net.step(net.now + 1)
    assert bytes(net.b.received) == DATA[:200_000]
    assert (a.counters.probes, a.counters.timeouts) == (1, 0)
    assert net.now - broken < 10 * DELAY


def test_the_window_grows_again_after_a_timeout() -> None:
    """One segment for each acknowledgement, which the peer holds back, would take a second for some dozens."""
    link = Fragile()
    net = Network(link, steady(DELAY))
    a, _ = net.establish()
    a.write(DATA)
    while len(net.b.received) < 100_000:
        assert net.step(net.now + 1)
    link.broken = True
    while not a.counters.timeouts:
        assert net.step(net.now + 1)
    link.broken = False
    again = net.now
    while len(net.b.received) < len(DATA):
        assert net.step(net.now + 1)
    assert bytes(net.b.received) == DATA
    assert a.counters.timeouts == 1
    assert net.now - again < 0.5
