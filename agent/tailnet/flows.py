"""Who talked with whom: inner packets by protocol, addresses and ports, between two reports (tailnet.md §8.7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from agent.protocol import ip

MAX_TUPLES: Final = 2048
"""Tuples that are remembered. With more of them those so far are counted, and what goes on counts once more: as if a
report had been made, which is what other agents do then."""
_NAMES: Final = {1: "ICMPv4", ip.TCP: "TCP", ip.UDP: "UDP", ip.ICMPV6: "ICMPv6", ip.TSMP: "TSMP"}
_WITH_PORTS: Final = frozenset((ip.TCP, ip.UDP))


class Flows:
    """A flow is the same in both directions. Packets are IPv6 with a complete header."""

    def __init__(self) -> None:
        # As they stand in packets, from the protocol to the ports: cheap to take, and made sense of once.
        self._sent: set[bytes] = set()
        self._received: set[bytes] = set()
        self._counted: Counter[str] = Counter()

    def sent(self, packets: Iterable[bytes]) -> None:
        """This node sent these."""
        self._sent.update({packet[6:44] for packet in packets})
        self._bound()

    def received(self, packets: Iterable[bytes]) -> None:
        """Peers sent these."""
        self._received.update({packet[6:44] for packet in packets})
        self._bound()

    def take(self) -> dict[str, int]:
        """The number of flows by the name of their protocol since the last call."""
        self._count()
        counted, self._counted = dict(self._counted), Counter()
        return counted

    def _bound(self) -> None:
        if len(self._sent) + len(self._received) > MAX_TUPLES:
            self._count()

    def _count(self) -> None:
        flows = {_flow(head[0], head[2:18], head[18:34], head[34:36], head[36:]) for head in self._sent}
        flows |= {_flow(head[0], head[18:34], head[2:18], head[36:], head[34:36]) for head in self._received}
        self._counted.update(_NAMES.get(protocol, f"IPProto-{protocol}") for protocol, *_ in flows)
        self._sent.clear()
        self._received.clear()


def _flow(protocol: int, own: bytes, peer: bytes, own_port: bytes, peer_port: bytes) -> tuple[int, *tuple[bytes, ...]]:
    return (protocol, own, peer, own_port, peer_port) if protocol in _WITH_PORTS else (protocol, own, peer)
