"""The STUN responder, with a transport that keeps what it is given (tailnet.md §6.6)."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from agent.protocol import stun
from agent.protocol.ip import mapped
from agent.server.stun import MAX_ANSWERS, StunResponder
from agent.testing import ManualClock

TXID = bytes(range(1, 13))


class Transport(asyncio.DatagramTransport):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[bytes, Any]] = []

    def sendto(self, data: Any, addr: Any = None) -> None:
        self.sent.append((data, addr))


@pytest.fixture
def transport() -> Transport:
    return Transport()


@pytest.fixture
def responder(clock: ManualClock, transport: Transport) -> StunResponder:
    responder = StunResponder(clock)
    responder.connection_made(transport)
    return responder


@pytest.mark.spec("tailnet", 5)
@pytest.mark.parametrize(
    ("source", "packed"),
    [
        (("203.0.113.7", 41641), socket.inet_pton(socket.AF_INET, "203.0.113.7")),
        (("2001:db8::7", 41641, 0, 0), socket.inet_pton(socket.AF_INET6, "2001:db8::7")),
        (("fe80::1%eth0", 41641, 0, 3), socket.inet_pton(socket.AF_INET6, "fe80::1")),
        (("::ffff:203.0.113.7", 41641, 0, 0), mapped(bytes((203, 0, 113, 7)))),
    ],
)
def test_an_answer(responder: StunResponder, transport: Transport, source: Any, packed: bytes) -> None:
    responder.datagram_received(stun.request(TXID), source)
    answer, to = transport.sent[0]
    assert to == source
    assert stun.parse_response(answer) == (TXID, (mapped(packed), 41641))
    assert len(answer) <= 44


def test_what_is_not_answered(responder: StunResponder, transport: Transport) -> None:
    for data in (b"", b"\0" * 40, stun.request(TXID)[:-1], stun.response(TXID, (bytes(16), 1))):
        responder.datagram_received(data, ("192.0.2.1", 1))
    assert (transport.sent, responder.counters.ignored) == ([], 4)


async def test_floods_are_bounded(responder: StunResponder, transport: Transport, clock: ManualClock) -> None:
    for _ in range(MAX_ANSWERS + 5):
        responder.datagram_received(stun.request(TXID), ("192.0.2.1", 1))
    assert (len(transport.sent), responder.counters.dropped) == (MAX_ANSWERS, 5)
    await clock.advance(1)
    responder.datagram_received(stun.request(TXID), ("192.0.2.1", 1))
    assert len(transport.sent) == MAX_ANSWERS + 1
    responder.pause_writing()
    responder.datagram_received(stun.request(TXID), ("192.0.2.1", 1))
    responder.resume_writing()
    assert responder.counters.dropped == 6
