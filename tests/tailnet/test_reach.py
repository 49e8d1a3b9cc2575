"""Asking a peer's network whether it is there, until it answers (tailnet.md §1.3)."""

from __future__ import annotations

import asyncio

import pytest

from agent.tailnet.derp_dial import DialOptions
from agent.tailnet.tailnet import Tailnet, TailnetError
from agent.testing import ManualClock, settle
from tests.tailnet.nodes import Node, pair


def a_tailnet(node: Node, clock: ManualClock) -> Tailnet:
    """The asking part of one, upon a node without sockets."""
    tailnet = Tailnet([node.address], clock, options=DialOptions())
    tailnet.engine = node.engine
    return tailnet


async def test_a_long_round_trip_is_waited_for_once(clock: ManualClock) -> None:
    async with pair(clock) as (a, b):
        a.net.delay = 0.3
        asked = asyncio.create_task(a_tailnet(a, clock).reach(b.address))
        # One round trip for the handshake, one for the question that waited for it.
        await clock.advance(1.25)
        assert asked.done()
        assert 0 < asked.result() <= 1.2


async def test_who_does_not_answer_is_asked_ever_more_rarely(clock: ManualClock) -> None:
    async with pair(clock) as (a, b):
        tailnet = a_tailnet(a, clock)
        assert await tailnet.reach(b.address) == 0
        a.net.relays = False
        before = a.engine.counters.tx_packets
        asked = asyncio.create_task(tailnet.reach(b.address, timeout=30))
        await clock.advance(1.0)
        soon = a.engine.counters.tx_packets - before
        await clock.advance(30.0)
        with pytest.raises(TailnetError, match="no answer within 30 s"):
            await asked
        assert 4 <= soon <= 12
        assert a.engine.counters.tx_packets - before < 30


async def test_giving_up_leaves_no_question_behind(clock: ManualClock) -> None:
    async with pair(clock) as (a, b):
        a.net.relays = False
        asked = asyncio.create_task(a_tailnet(a, clock).reach(b.address))
        await clock.advance(2.0)
        asked.cancel()
        await settle()
        assert asked.cancelled()
        assert not a.engine._tsmp


async def test_a_node_that_closes_says_so(clock: ManualClock) -> None:
    async with pair(clock) as (a, b):
        a.net.relays = False
        asked = asyncio.create_task(a_tailnet(a, clock).reach(b.address))
        await clock.advance(2.0)
        a.engine.close()
        with pytest.raises(TailnetError, match="the node is closed"):
            await asked
