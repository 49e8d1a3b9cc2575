"""Flows between two reports: the same in both directions, and bounded."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from agent.protocol import ip
from agent.tailnet.flows import MAX_TUPLES, Flows

OWN, PEER = bytes(15) + b"\x01", bytes(15) + b"\x02"


def packet(protocol: int, source: bytes, destination: bytes, ports: tuple[int, int] = (0, 0), hops: int = 64) -> bytes:
    return (
        struct.pack(">IHBB", 6 << 28, 20, protocol, hops)
        + source
        + destination
        + struct.pack(">HH", *ports)
        + bytes(16)
    )


def test_both_directions_are_one_flow_and_a_report_starts_over() -> None:
    flows = Flows()
    flows.received([packet(ip.TCP, PEER, OWN, (51515, 22)), packet(ip.TCP, PEER, OWN, (51515, 22), hops=3)])
    flows.sent([packet(ip.TCP, OWN, PEER, (22, 51515))])
    flows.received([packet(ip.TCP, PEER, OWN, (51516, 22)), packet(ip.UDP, PEER, OWN, (51515, 22))])
    assert flows.take() == {"TCP": 2, "UDP": 1}
    assert flows.take() == {}
    flows.sent([packet(ip.TCP, OWN, PEER, (22, 51515))])
    assert flows.take() == {"TCP": 1}


def test_protocols_without_ports_are_one_flow_for_each_pair_of_addresses() -> None:
    flows = Flows()
    flows.received([packet(ip.TSMP, PEER, OWN, (number, 7)) for number in range(50)])
    flows.sent([packet(ip.ICMPV6, OWN, PEER, (1, 2)), packet(132, OWN, PEER)])
    flows.sent([packet(ip.TSMP, OWN, PEER, (number, 9)) for number in range(50)])
    assert flows.take() == {"TSMP": 1, "ICMPv6": 1, "IPProto-132": 1}


@given(st.lists(st.integers(0, 4 * MAX_TUPLES), max_size=60), st.integers(1, 400))
def test_however_many_there_are_the_memory_is_bounded_and_none_is_missed(starts: list[int], count: int) -> None:
    flows, seen = Flows(), set[int]()
    for start in starts:
        numbers = range(start, start + count)
        flows.received([packet(ip.UDP, PEER, OWN, (number, 53)) for number in numbers])
        seen.update(numbers)
        assert len(flows._received) + len(flows._sent) <= MAX_TUPLES
    counted = flows.take().get("UDP", 0)
    assert len(seen) <= counted <= len(starts) * count or not starts
