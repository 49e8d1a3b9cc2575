"""The agent never gives a server up, finds it again quickly, and does not flood the log meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from agent.control import RedirectError, RefusedError, UnreachableError, VersionMismatchError
from agent.daemon.connection import ReconnectError
from agent.daemon.reconnect import AWAY_CAP, LOW, REFUSED_CAP, Chronicle, Connector, Retry, Trouble, diagnose
from agent.rpc import ConnectionLostError
from agent.testing import ManualClock, settle
from agent.testing.control_plane import FakeControlPlane

AWAY = Trouble("unreachable", "nobody there", away=True)
REFUSED = Trouble("refused 401", "who are you", away=False)


def longest(low: float, high: float) -> float:
    return high


@pytest.fixture
async def server(clock: ManualClock) -> AsyncIterator[FakeControlPlane]:
    server = FakeControlPlane(clock)
    yield server
    await server.aclose()


@pytest.fixture
async def stopping() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
async def connector(clock: ManualClock, server: FakeControlPlane, stopping: asyncio.Event) -> AsyncIterator[Connector]:
    connector = Connector(server, [], stopping, clock, retry=Retry(longest))
    task = asyncio.create_task(connector.run())
    await settle()
    yield connector
    assert not task.done(), "the connector ended"
    task.cancel()
    await asyncio.wait({task})


@pytest.mark.spec("agent-api", 27)
def test_waits_grow_like_the_specification_says_up_to_a_lower_cap() -> None:
    retry = Retry(longest)
    waits = [retry.after(AWAY, 0) for _ in range(9)]
    assert waits == pytest.approx([0.1, 0.162, 0.262, 0.424, 0.685, 1.109, 1.794, 2.0, 2.0], abs=0.001)


@pytest.mark.spec("daemon", 10)
async def test_a_server_that_refuses_connections_for_minutes_is_found_again_quickly(
    clock: ManualClock, server: FakeControlPlane
) -> None:
    server.refusals.extend(UnreachableError("http://server: refused") for _ in range(1000))
    connector = Connector(server, [], asyncio.Event(), clock)
    task = asyncio.create_task(connector.run())
    with capture_logs() as logs:
        await clock.advance(300)
    assert server.connections == 0
    gaps = [later - earlier for earlier, later in zip(server.attempts, server.attempts[1:], strict=False)]
    assert max(gaps) <= AWAY_CAP
    assert min(gaps) >= LOW
    assert len(logs) <= 6
    assert logs[0]["event"].startswith("cannot connect: http://server: refused")
    server.refusals.clear()
    await clock.advance(AWAY_CAP)
    assert server.connected == 1
    task.cancel()
    await asyncio.wait({task})


@pytest.mark.spec("daemon", 11)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 426, 500, 502])
async def test_no_refusal_is_final(
    clock: ManualClock, server: FakeControlPlane, connector: Connector, status: int
) -> None:
    await server.drop()
    server.refusals.extend(RefusedError("GET rpc", status, "no") for _ in range(20))
    await clock.advance(300)
    assert server.connected == 1
    assert max(b - a for a, b in zip(server.attempts, server.attempts[1:], strict=False)) <= REFUSED_CAP


async def test_an_unforeseen_error_is_not_final_either(
    clock: ManualClock, server: FakeControlPlane, connector: Connector
) -> None:
    await server.drop()
    server.refusals.append(RuntimeError("a bug"))
    await clock.advance(10)
    assert server.connected == 1


@pytest.mark.spec("daemon", 13)
async def test_five_lost_connections_are_five_dials(
    clock: ManualClock, server: FakeControlPlane, connector: Connector
) -> None:
    for lost in range(5):
        assert server.connections == lost + 1
        await server.drop()
        await clock.advance(AWAY_CAP)
    assert server.connections == len(server.attempts) == 6


async def test_a_connection_that_lasted_makes_the_next_retry_quick(
    clock: ManualClock, server: FakeControlPlane, connector: Connector
) -> None:
    server.refusals.extend(UnreachableError("away") for _ in range(20))
    await server.drop()
    await clock.advance(60)
    assert server.connected == 1
    await clock.advance(60)
    lost = clock.now()
    await server.drop()
    await clock.advance(2)
    assert server.attempts[-1] - lost == pytest.approx(0.1)


def test_retry_after_is_obeyed_up_to_a_minute_and_spread() -> None:
    assert Retry(longest).after(Trouble("refused 503", "", True, retry_after=5), 0) == pytest.approx(5.1)
    assert Retry(longest).after(Trouble("refused 503", "", True, retry_after=3600), 0) == pytest.approx(60.1)


def test_alternating_troubles_do_not_start_over_with_each_other() -> None:
    retry = Retry(longest)
    waits = [retry.after(trouble, 0) for _ in range(12) for trouble in (AWAY, REFUSED)]
    assert waits[-2:] == [AWAY_CAP, REFUSED_CAP]


def test_a_chronicle_tells_the_first_and_then_once_a_minute() -> None:
    chronicle = Chronicle()
    assert chronicle.failures_to_tell("a", 0) == 1
    assert chronicle.failures_to_tell("a", 1) is None
    assert chronicle.failures_to_tell("b", 2) == 1
    assert chronicle.failures_to_tell("a", 59) is None
    assert chronicle.failures_to_tell("a", 61) == 3
    chronicle.steady()
    assert chronicle.failures_to_tell("a", 62) == 1


@pytest.mark.parametrize(
    ("error", "kind", "away", "advice"),
    [
        (None, "closed", True, "closed the connection"),
        (UnreachableError("http://x: refused"), "unreachable", True, "CODER_AGENT_URL"),
        (RefusedError("GET", 401, "no"), "refused 401", False, "normal for the first seconds"),
        (RefusedError("GET", 403, "no"), "refused 403", False, "newer build"),
        (RefusedError("GET", 404, "no"), "refused 404", False, "CODER_AGENT_URL"),
        (RefusedError("GET", 426, "no"), "refused 426", False, "proxy"),
        (RefusedError("GET", 502, "no"), "refused 502", True, "502"),
        (VersionMismatchError("upgrade the server"), "VersionMismatchError", False, "upgrade"),
        (RedirectError("http://y"), "RedirectError", False, "http://y"),
        (ReconnectError("manifest: agent_id is nil"), "failed manifest", False, "agent_id is nil"),
    ],
)
def test_every_trouble_says_what_to_do(error: Exception | None, kind: str, away: bool, advice: str) -> None:
    trouble = diagnose(error)
    assert (trouble.kind, trouble.away) == (kind, away)
    assert advice in trouble.text


def test_a_cause_without_a_text_does_not_hide_the_error() -> None:
    error = ConnectionLostError("no answer to /x within 30 s")
    error.__cause__ = TimeoutError()
    assert diagnose(error).text == "the connection broke: no answer to /x within 30 s"


async def test_status_follows_the_connection(clock: ManualClock, server: FakeControlPlane) -> None:
    told: list[str] = []
    server.refusals.append(RefusedError("GET rpc", 401, "Workspace agent not authorized."))
    task = asyncio.create_task(Connector(server, [], asyncio.Event(), clock, told.append).run())
    await clock.advance(1)
    assert told[0].startswith("not connected: GET rpc: 401 Workspace agent not authorized.")
    assert told[1] == "connected (API 2.10)"
    task.cancel()
    await asyncio.wait({task})
