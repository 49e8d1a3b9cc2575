"""Wake-ups: within a server, and between replicas on PostgreSQL."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from agent.clock import SystemClock
from agent.server import events
from agent.server.events import EVERYTHING, Events, PostgresRelay, logs_topic
from agent.server.store import open_database
from agent.testing import ManualClock, settle
from tests.server.postgres import Postgres

A, B = logs_topic(UUID(int=1)), logs_topic(UUID(int=2))


async def test_a_subscriber_wakes_for_its_topics_only() -> None:
    bus = Events()
    with bus.subscribe(A) as one, bus.subscribe(A, B) as both:
        bus.publish(B)
        await both.wait()
        waiting = asyncio.create_task(one.wait())
        await settle()
        assert not waiting.done()
        bus.publish(A)
        await waiting


async def test_wake_ups_are_joined_and_kept_until_the_wait() -> None:
    bus = Events()
    with bus.subscribe(A) as subscription:
        bus.publish(A)
        bus.publish(A)
        await subscription.wait()
        waiting = asyncio.create_task(subscription.wait())
        await settle()
        assert not waiting.done()
        waiting.cancel()


async def test_nothing_is_left_of_a_subscription() -> None:
    bus = Events()
    with bus.subscribe(A, B), bus.subscribe(A):
        pass
    assert not bus._subscribers
    bus.publish(A)
    assert not bus._subscribers


async def test_everything_wakes_everybody() -> None:
    bus = Events()
    with bus.subscribe(A) as one, bus.subscribe(B) as two:
        bus.deliver(EVERYTHING)
        await one.wait()
        await two.wait()


async def test_what_waits_for_the_database_is_bounded(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_PENDING", 3)
    relay = PostgresRelay(Events(), {}, clock)
    for number in range(10):
        relay.send(str(number))
        assert len(relay._pending) <= 3
    assert EVERYTHING in relay._pending


async def test_replicas_wake_each_other(postgres: Postgres) -> None:
    database = await open_database(postgres.new_database())
    replicas = [Events(), Events()]
    relays = [PostgresRelay(bus, database.connect_arguments(), SystemClock()) for bus in replicas]
    for bus, relay in zip(replicas, relays, strict=True):
        bus.relay = relay
    tasks = [asyncio.create_task(relay.run()) for relay in relays]
    try:
        with replicas[1].subscribe(A) as subscription:
            await asyncio.wait_for(subscription.wait(), 10)  # it listens
            replicas[0].publish(A)
            await asyncio.wait_for(subscription.wait(), 10)
            # A connection that is cut is made again, and then everybody looks once.
            async with database.engine.connect() as connection:
                await connection.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
                )
            replicas[0].publish(A)
            await asyncio.wait_for(subscription.wait(), 10)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await database.aclose()
