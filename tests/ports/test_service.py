"""One scan for all who ask, and a watcher that costs nothing when nobody looks."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing

import pytest

from agent.ports import ListeningPort, PortService, ScanError
from agent.testing import ManualClock, settle


class Ports:
    def __init__(self) -> None:
        self.scans = 0
        self.now: tuple[int, ...] = (3000,)
        self.hold = threading.Event()
        self.hold.set()
        self.error: Exception | None = None

    def __call__(self) -> tuple[ListeningPort, ...]:
        self.scans += 1
        assert self.hold.wait(10)
        if self.error is not None:
            raise self.error
        return tuple(ListeningPort(port, "p") for port in self.now)


@pytest.fixture
def ports() -> Ports:
    return Ports()


async def numbers(service: PortService) -> list[int]:
    return [item.port for item in await service.ports()]


async def test_an_answer_is_repeated_for_a_second(ports: Ports, clock: ManualClock) -> None:
    service = PortService(ports, clock)
    assert await numbers(service) == [3000]
    ports.now = (3000, 3001)
    await clock.advance(0.99)
    assert await numbers(service) == [3000]
    await clock.advance(0.01)
    assert await numbers(service) == [3000, 3001]
    assert ports.scans == 2


async def test_requests_during_a_scan_wait_for_it(ports: Ports, clock: ManualClock) -> None:
    service = PortService(ports, clock)
    ports.hold.clear()
    waiting = [asyncio.create_task(numbers(service)) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.wait({waiting[0]})
    ports.hold.set()
    assert await asyncio.gather(*waiting[1:]) == [[3000], [3000]]
    assert ports.scans == 1


async def test_low_and_own_ports_are_left_out(ports: Ports, clock: ManualClock) -> None:
    ports.now = (0, 8, 9, 2112, 6060, 8080)
    assert await numbers(PortService(ports, clock, hidden={6060, 2112})) == [9, 8080]


async def test_a_failure_is_told_and_forgotten(ports: Ports, clock: ManualClock) -> None:
    service = PortService(ports, clock)
    ports.error = ScanError("/proc/net/tcp: Permission denied")
    with pytest.raises(ScanError, match="Permission denied"):
        await service.ports()
    ports.error = None
    assert await numbers(service) == [3000]


async def step(service: PortService, clock: ManualClock) -> None:
    """A tenth of a second, in which a scan takes no time at all."""
    await clock.advance(0.1)
    while service._running is not None:
        await asyncio.sleep(0)
    await settle()


async def test_a_watcher_tells_changes_within_a_second(ports: Ports, clock: ManualClock) -> None:
    service = PortService(ports, clock)
    async with aclosing(service.watch()) as watcher:
        assert [item.port for item in await anext(watcher)] == [3000]
        for now in ((3000, 3001), (), (5000,)):
            changes = asyncio.create_task(anext(watcher))
            for _ in range(20):
                await step(service, clock)
            assert not changes.done()
            ports.now = now
            for _ in range(10):
                await step(service, clock)
            assert tuple(item.port for item in changes.result()) == now
    scans = ports.scans
    await clock.advance(100)
    assert ports.scans == scans
    assert clock.sleepers == 0


async def test_watchers_share_scans(ports: Ports, clock: ManualClock) -> None:
    service = PortService(ports, clock)

    async def look() -> None:
        async with aclosing(service.watch()) as watcher:
            async for _ in watcher:
                pass

    watchers = [asyncio.create_task(look()) for _ in range(10)]
    for _ in range(40):
        await step(service, clock)
    assert 4 <= ports.scans <= 6
    for watcher in watchers:
        watcher.cancel()
    await asyncio.wait(watchers)
