"""Half logins and frames without end at `/derp`, by both ways to carry it (tailnet.md §5.6)."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from agent.protocol import derp
from agent.server.relay import LOGIN_TIMEOUT
from agent.testing import ManualClock, settle
from tests.server.deployment import Deployment, deployment
from tests.server.test_derp import UPGRADE, Peer, over_websocket, stream, upgraded


@pytest.fixture
async def timed(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Deployment]:
    async with deployment(f"sqlite:///{tmp_path}/test.db", tmp_path, clock) as running:
        yield running


async def ended(reader: asyncio.StreamReader) -> None:
    """Wait until the server has closed."""
    async with asyncio.timeout(5):
        try:
            while await reader.read(4096):
                pass
        except ConnectionError:
            pass


@pytest.mark.parametrize("sent", [b"", b"\2\0", derp.frame(derp.Kind.CLIENT_INFO, bytes(200))[:100]])
async def test_half_a_login_has_a_deadline(timed: Deployment, clock: ManualClock, sent: bytes) -> None:
    async with stream(timed) as (reader, writer):
        writer.write(UPGRADE + b"\r\n")
        assert b"101" in await reader.readline()
        writer.write(sent)
        await settle()
        await clock.advance(LOGIN_TIMEOUT + 2)
        await ended(reader)


async def test_half_a_login_over_a_websocket_has_a_deadline(timed: Deployment, clock: ManualClock) -> None:
    async with timed.http.ws_connect(timed.url + "/derp", protocols=("derp",)) as socket:
        await socket.receive_bytes()
        await socket.send_bytes(b"\2\0")
        await settle()
        await clock.advance(LOGIN_TIMEOUT + 2)
        async with asyncio.timeout(5):
            assert not isinstance((await socket.receive()).data, bytes)


async def test_many_half_logins_keep_nobody_out(timed: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.server.relay.MAX_LOGINS", 8)
    async with AsyncExitStack() as stack:
        for _ in range(40):
            _, writer = await stack.enter_async_context(stream(timed))
            writer.write(UPGRADE + b"\r\n")
        async with upgraded(timed) as one, over_websocket(timed) as other:
            await one.send(other, b"hello")
            assert await other.until(1) == [b"hello"]


OVERSIZED = {
    "login": struct.pack(">BI", derp.Kind.CLIENT_INFO, derp.MAX_CLIENT_INFO + 1),
    "login of 4 GiB": struct.pack(">BI", derp.Kind.CLIENT_INFO, 0xFFFFFFFF),
    "another frame first": struct.pack(">BI", derp.Kind.SEND_PACKET, 32),
}


@pytest.mark.parametrize("sent", OVERSIZED.values(), ids=OVERSIZED)
async def test_a_login_that_is_none_ends_at_its_header(timed: Deployment, sent: bytes) -> None:
    async with stream(timed) as (reader, writer):
        writer.write(UPGRADE + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await ended(reader)


@pytest.mark.parametrize("connect", [upgraded, over_websocket])
async def test_a_datagram_that_is_too_large_ends_its_connection_alone(timed: Deployment, connect: Any) -> None:
    async with upgraded(timed) as one, upgraded(timed) as other:
        bad: Peer
        async with connect(timed) as bad:
            size = 32 + derp.MAX_DATAGRAM + 1
            await bad.write(struct.pack(">BI", derp.Kind.SEND_PACKET, size) + bytes(1000))
            with pytest.raises((EOFError, ConnectionError)):
                await bad.until(1)
        await one.send(other, b"hello")
        assert await other.until(1) == [b"hello"]
