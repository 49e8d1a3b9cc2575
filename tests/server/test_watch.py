"""What the page watches."""

from __future__ import annotations

import asyncio
from typing import cast
from uuid import UUID, uuid4

from agent.server.api.watch import MEASURE, MEASURE_FIRST, measure
from agent.server.network import AgentNetwork, AgentUnreachableError
from agent.testing import ManualClock, settle


class Network:
    """Counts how often it is asked for an agent."""

    def __init__(self) -> None:
        self.asked: list[UUID] = []
        self.answers = False

    async def ping(self, agent: UUID, timeout: float) -> None:
        self.asked.append(agent)
        if not self.answers:
            raise AgentUnreachableError("it does not answer")


async def test_the_path_is_measured_while_the_agent_is_connected_and_somebody_watches(clock: ManualClock) -> None:
    network, agent, connected, found = Network(), uuid4(), False, list[None]()
    measuring = asyncio.create_task(
        measure(cast(AgentNetwork, network), agent, lambda: connected, lambda: found.append(None), clock)
    )
    await settle()
    await clock.advance(2 * MEASURE)
    assert network.asked == []
    connected = True
    await clock.advance(MEASURE_FIRST)
    assert network.asked == [agent]
    await clock.advance(MEASURE - 2 * MEASURE_FIRST)
    assert len(network.asked) == 1
    network.answers = True
    await clock.advance(2 * MEASURE)
    assert len(network.asked) == 3
    # The first answer is told at once; what changes later is seen in passing.
    assert len(found) == 1
    measuring.cancel()
    await asyncio.gather(measuring, return_exceptions=True)
    await clock.advance(2 * MEASURE)
    assert len(network.asked) == 3
