"""A STUN responder: tells clients how their UDP packets look from here (tailnet.md §6.6)."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import cast

from agent.clock import Clock
from agent.protocol import stun
from agent.protocol.ip import mapped

MAX_ANSWERS = 2000
"""Answers per second, to all clients together: an answer is about as long as its request, so that nobody gains by
forged source addresses, but a flood must not take the loop's time either."""


@dataclass(slots=True)
class StunCounters:
    answered: int = 0
    ignored: int = 0
    """Datagrams that are no request of a client of ours."""
    dropped: int = 0
    """Requests above the rate, or while the socket took nothing."""


class StunResponder(asyncio.DatagramProtocol):
    """Answers requests whose SOFTWARE is `tailnode` and whose fingerprint is right, and nothing else."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._second = -1
        self._answers = 0
        self._paused = False
        self.counters = StunCounters()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # asyncio's own is no subclass of it

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False

    def datagram_received(self, data: bytes, addr: tuple[str, int] | tuple[str, int, int, int]) -> None:
        txid = stun.parse_request(data)
        if txid is None:
            self.counters.ignored += 1
        elif self._paused or not self._within_rate():
            self.counters.dropped += 1
        else:
            host, port = addr[0].partition("%")[0], addr[1]
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._transport.sendto(stun.response(txid, (mapped(socket.inet_pton(family, host)), port)), addr)
            self.counters.answered += 1

    def error_received(self, exc: Exception) -> None:
        """An ICMP error for an answer: its client is gone, which concerns nobody."""

    def _within_rate(self) -> bool:
        second = int(self._clock.now())
        if second != self._second:
            self._second, self._answers = second, 0
        self._answers += 1
        return self._answers <= MAX_ANSWERS


async def open_stun_responder(address: str, port: int, clock: Clock) -> asyncio.DatagramTransport:
    """A responder that answers until it is closed. Raises OSError."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: StunResponder(clock), local_addr=(address, port))
    return transport
