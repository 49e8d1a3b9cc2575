"""What happened, told to whoever waits for it: wake-ups by topic, without content.

A subscriber that wakes reads the database from where it stopped, so wake-ups may be joined, doubled, or come from
another replica, and still nothing is missed. With PostgreSQL, replicas wake each other through LISTEN and NOTIFY.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from types import TracebackType
from typing import Any, Protocol, Self
from uuid import UUID, uuid4

import structlog

from agent.backoff import Backoff
from agent.clock import Clock, wait_for

CHANNEL = "workspace_agent"
EVERYTHING = "*"
MAX_PENDING = 10_000
QUERY_TIMEOUT = 10.0
PROBE_PERIOD = 30.0

log = structlog.get_logger("agent.server.events")


def logs_topic(agent: UUID) -> str:
    """Lines of this agent were stored."""
    return f"logs:{agent}"


def metadata_topic(agent: UUID) -> str:
    """Metadata results of this agent were stored."""
    return f"metadata:{agent}"


def agent_topic(agent: UUID) -> str:
    """Connection, lifecycle, startup or app health of this agent changed."""
    return f"agent:{agent}"


def workspace_topic(workspace: UUID) -> str:
    """A build of this workspace began or ended, or it was deleted."""
    return f"workspace:{workspace}"


def owner_topic(owner: UUID) -> str:
    """A workspace of this user was made."""
    return f"owner:{owner}"


class Subscription:
    """A flag that is raised whenever one of the topics is published; a context manager."""

    def __init__(self, events: Events, topics: tuple[str, ...]) -> None:
        self._events, self._topics = events, topics
        self._flag = asyncio.Event()

    def wake(self) -> None:
        self._flag.set()

    async def wait(self) -> None:
        """Until something was published since the last wait, or since the subscription."""
        await self._flag.wait()
        self._flag.clear()

    def __enter__(self) -> Self:
        self._events._add(self, self._topics)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._events._remove(self, self._topics)


class Relay(Protocol):
    """Carries topics to other replicas."""

    def send(self, topic: str) -> None: ...


class Events:
    """Publish and subscribe within one server; `relay` carries topics to the others."""

    def __init__(self) -> None:
        self._subscribers: defaultdict[str, set[Subscription]] = defaultdict(set)
        self.relay: Relay | None = None

    def subscribe(self, *topics: str) -> Subscription:
        """Subscribe before reading what is there already, so that nothing falls between."""
        return Subscription(self, topics)

    def publish(self, topic: str) -> None:
        """Wake everybody who waits for the topic. Call it after the commit."""
        self.deliver(topic)
        if self.relay is not None:
            self.relay.send(topic)

    def deliver(self, topic: str) -> None:
        """Wake the subscribers of this server only."""
        if topic == EVERYTHING:
            for subscribers in list(self._subscribers.values()):
                for subscription in subscribers:
                    subscription.wake()
        else:
            for subscription in self._subscribers.get(topic, ()):
                subscription.wake()

    def _add(self, subscription: Subscription, topics: tuple[str, ...]) -> None:
        for topic in topics:
            self._subscribers[topic].add(subscription)

    def _remove(self, subscription: Subscription, topics: tuple[str, ...]) -> None:
        for topic in topics:
            self._subscribers[topic].discard(subscription)
            if not self._subscribers[topic]:
                del self._subscribers[topic]


class PostgresRelay:
    """Topics over PostgreSQL. Everything is joined while the database is away, and everybody woken when it is back."""

    def __init__(self, events: Events, arguments: dict[str, Any], clock: Clock) -> None:
        """`arguments` are those of `asyncpg.connect`."""
        self._events, self._arguments, self._clock = events, arguments, clock
        self._origin = uuid4().hex
        self._pending: set[str] = set()
        self._wake = asyncio.Event()

    def send(self, topic: str) -> None:
        if len(self._pending) >= MAX_PENDING:
            self._pending = {EVERYTHING}
        self._pending.add(topic)
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        import asyncpg

        backoff = Backoff(first=0.1, cap=5)
        while True:
            try:
                connection = await asyncpg.connect(**self._arguments, timeout=QUERY_TIMEOUT)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("cannot listen for other replicas", error=str(error))
            else:
                try:
                    connection.add_termination_listener(lambda _: self._wake.set())
                    await connection.add_listener(CHANNEL, self._received)
                    backoff.reset()
                    self._events.deliver(EVERYTHING)  # whatever was said while nobody listened
                    await self._send_pending(connection)
                except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                    log.warning("lost the connection to other replicas", error=str(error))
                finally:
                    connection.terminate()
            await self._clock.sleep(backoff.next())

    async def _send_pending(self, connection: Any) -> None:
        while True:
            try:
                await wait_for(self._clock, self._wake.wait(), PROBE_PERIOD)
            except TimeoutError:
                await connection.execute("SELECT 1", timeout=QUERY_TIMEOUT)  # is it still there?
                continue
            self._wake.clear()
            if connection.is_closed():
                raise ConnectionResetError("the database closed the connection")
            topics, self._pending = self._pending, set()
            try:
                rows = [(CHANNEL, f"{self._origin} {topic}") for topic in topics]
                await connection.executemany("SELECT pg_notify($1, $2)", rows, timeout=QUERY_TIMEOUT)
            except BaseException:
                self._pending |= topics
                self._wake.set()
                raise

    def _received(self, _connection: object, _process: int, _channel: str, payload: object) -> None:
        origin, _, topic = str(payload).partition(" ")
        if origin != self._origin:
            self._events.deliver(topic)
