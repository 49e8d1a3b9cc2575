from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import MappingProxyType

from agent.protocol import keys
from agent.tailnet.derp_dial import DialOptions
from agent.tailnet.derp_map import DerpMap, Node, Region
from agent.tailnet.relays import MAX_HEARD, Relays
from agent.testing import ManualClock

RELAY = DerpMap(MappingProxyType({1: Region(1, nodes=(Node("1a", 1, "relay.example"),))}))


class Owner:
    def receive_relay(self, region: int, packets: object) -> None:
        raise AssertionError("nothing is received here")


async def test_no_connection_is_opened_after_the_end() -> None:
    relays = Relays(keys.generate(), Owner(), ManualClock(), options=DialOptions(environment={}))
    relays.set_map(RELAY)
    await relays.aclose()
    before = asyncio.all_tasks()
    # The last words of a stream, and a map that comes late.
    relays.send(1, bytes(32), [b"FIN"])
    relays.set_map(RELAY)
    relays.set_home(1)
    assert asyncio.all_tasks() == before
    assert relays.dropped == 1


class Listener:
    def __init__(self) -> None:
        self.received = 0

    def receive_relay(self, region: int, packets: Iterable[tuple[bytes, bytes]]) -> None:
        self.received += len(list(packets))


async def test_senders_without_end_are_not_all_remembered() -> None:
    owner = Listener()
    relays = Relays(keys.generate(), owner, ManualClock(), options=DialOptions(environment={}))
    for number in range(MAX_HEARD + 100):
        relays.derp_packets(1, [(number.to_bytes(32, "big"), b"x")])
    assert owner.received == MAX_HEARD + 100
    assert len(relays._heard) == MAX_HEARD
    await relays.aclose()
