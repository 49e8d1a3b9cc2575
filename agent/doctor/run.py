"""All checks in their order. One that breaks is a finding of its own and keeps no other from running."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from agent.control import HeaderError, run_header_command
from agent.doctor import machine, reach, relays, server
from agent.doctor.finding import Finding, Outcome, Subject, failed, skipped


async def examine(subject: Subject) -> AsyncIterator[Finding]:
    """Each finding when there is it. What builds on something that failed is skipped, with a word."""
    for name, check in (
        ("disk", lambda: machine.disk(subject)),
        ("temporary directory", lambda: machine.temporary_directory(subject)),
        ("control group", machine.memory),
        ("time zones", machine.time_zones),
    ):
        yield await _guarded(name, lambda check=check: asyncio.to_thread(check))  # type: ignore[misc]
    async for finding in _server(subject):
        yield finding


async def _server(subject: Subject) -> AsyncIterator[Finding]:
    finding, target = reach.proxy(subject)
    yield finding
    if target is None:
        yield skipped("server", "there is no way to it")
        return
    for name, check in (("DNS", reach.name), ("TCP", reach.tcp), ("TLS", reach.tls)):
        finding = await _guarded(name, lambda check=check: check(subject, target))  # type: ignore[misc]
        yield finding
        if finding.outcome is Outcome.FAILED:
            yield skipped("server", f"{name} failed")
            return
    headers = subject.config.header
    if subject.config.header_command:
        try:
            command = subject.config.header_command
            headers += await run_header_command(command, subject.config.url, subject.environment, subject.clock)
        except HeaderError as error:
            yield failed("header command", str(error), "correct CODER_AGENT_HEADER_COMMAND")
            return
    findings = await _all_guarded("HTTP", server.request(subject, headers))
    for finding in findings:
        yield finding
    if findings[0].outcome is Outcome.FAILED:
        yield skipped("token", "HTTP failed")
        return
    derp_map = None

    async def connect() -> list[Finding]:
        nonlocal derp_map
        found, derp_map = await server.connection(subject, headers)
        return found

    for finding in await _all_guarded("connection", connect()):
        yield finding
    if derp_map is None:
        yield skipped("DERP", "only connected agents are told of relays")
        return
    for finding in await _all_guarded("DERP", relays.relays(subject, derp_map, headers)):
        yield finding


async def _guarded(name: str, check: Callable[[], Awaitable[Finding]]) -> Finding:
    async def one() -> list[Finding]:
        return [await check()]

    return (await _all_guarded(name, one()))[0]


async def _all_guarded(name: str, check: Awaitable[list[Finding]]) -> list[Finding]:
    try:
        return await check
    except Exception as error:
        # Whatever a strange machine does to a check: the others are the more worth knowing.
        return [failed(name, f"the check itself failed: {type(error).__name__}: {error}", "please report this")]
