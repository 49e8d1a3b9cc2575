"""A road for UDP datagrams between two ends on this machine: as long, as narrow and as bad as a test wants it.

The kernel's own (`tc netem`) is not in every kernel, and cannot be told what to do with the next datagram.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

LOOPBACK: Final = "127.0.0.1"
_DRAIN: Final = 64
_BUFFER: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Kind:
    """What happens to the datagrams of one direction. Chances are of one datagram; times are seconds."""

    delay: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0
    """Chance of arriving later than the following ones …"""
    late_by: float = 0.01
    """… by so much."""
    rate: float | None = None
    """Bytes per second of the narrowest place."""
    queue: int = 128 * 1024
    """Bytes that wait in front of it; what finds no room is lost."""


class Lane:
    """One direction, without input or output."""

    def __init__(self, kind: Kind, seed: int) -> None:
        self.kind = kind
        self.open = True
        """Whether anything passes at all."""
        self.drop_next = 0
        """So many datagrams are lost for certain."""
        self.passed = 0
        """Bytes that arrived at the other end."""
        self._random = random.Random(seed).random
        self._way: list[tuple[float, int, bytes]] = []
        self._serial = 0
        self._free_at = 0.0

    def enter(self, datagram: bytes, now: float) -> None:
        """A datagram begins its way, or is lost."""
        kind, chance = self.kind, self._random
        if not self.open:
            return
        if self.drop_next:
            self.drop_next -= 1
            return
        if kind.loss and chance() < kind.loss:
            return
        arrives = now + kind.delay
        if kind.rate is not None:
            if (self._free_at - now) * kind.rate > kind.queue:
                return
            self._free_at = max(self._free_at, now) + len(datagram) / kind.rate
            arrives = self._free_at + kind.delay
        if kind.late and chance() < kind.late:
            arrives += kind.late_by
        self._push(arrives, datagram)
        if kind.duplicate and chance() < kind.duplicate:
            self._push(arrives, datagram)

    def _push(self, arrives: float, datagram: bytes) -> None:
        self._serial += 1
        heapq.heappush(self._way, (arrives, self._serial, datagram))

    def leave(self, now: float) -> list[bytes]:
        """What arrives by now."""
        arrived = []
        while self._way and self._way[0][0] <= now:
            arrived.append(heapq.heappop(self._way)[2])
        self.passed += sum(map(len, arrived))
        return arrived

    @property
    def next_arrival(self) -> float | None:
        """When something arrives."""
        return self._way[0][0] if self._way else None


class _Mouth:
    """The socket that faces one end. It sends to where that end was heard last."""

    def __init__(self, receive: Callable[[list[bytes]], None]) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self.socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        self.socket.bind((LOOPBACK, 0))
        self.other: tuple[str, int] | None = None
        self._receive = receive
        asyncio.get_running_loop().add_reader(self.socket, self._readable)

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def _readable(self) -> None:
        batch = []
        for _ in range(_DRAIN):
            try:
                datagram, self.other = self.socket.recvfrom(65535)
            except BlockingIOError:
                break
            except ConnectionRefusedError:
                continue  # that end is being started again
            batch.append(datagram)
        self._receive(batch)

    def send(self, datagrams: list[bytes]) -> None:
        if self.other is None:
            return
        for datagram in datagrams:
            try:
                self.socket.sendto(datagram, self.other)
            except (BlockingIOError, ConnectionRefusedError):
                return  # as lost as on any road

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.socket)
        self.socket.close()


class Road:
    """Two mouths and the lanes between them. `left` and `right` are the ports that the ends send to."""

    def __init__(self, out: Kind, back: Kind, *, seed: int = 1) -> None:
        """`out` leads from left to right."""
        self._loop = asyncio.get_running_loop()
        self.out, self.back = Lane(out, seed), Lane(back, seed + 1)
        self._left = _Mouth(lambda batch: self._enter(self.out, batch))
        self._right = _Mouth(lambda batch: self._enter(self.back, batch))
        self._timer: asyncio.TimerHandle | None = None

    @property
    def left(self) -> int:
        return self._left.port

    @property
    def right(self) -> int:
        return self._right.port

    def lead_to(self, left: int, right: int) -> None:
        """The ports of the ends, until they are heard from others."""
        self._left.other, self._right.other = (LOOPBACK, left), (LOOPBACK, right)

    def set_open(self, is_open: bool) -> None:
        """Close the road in both directions, or open it again."""
        self.out.open = self.back.open = is_open

    def move_left(self) -> None:
        """To the right end, the left one has another address from now on."""
        other = self._right.other
        self._right.close()
        self._right = _Mouth(lambda batch: self._enter(self.back, batch))
        self._right.other = other

    def _enter(self, lane: Lane, batch: list[bytes]) -> None:
        now = self._loop.time()
        for datagram in batch:
            lane.enter(datagram, now)
        self._carry()

    def _carry(self) -> None:
        now = self._loop.time()
        self._right.send(self.out.leave(now))
        self._left.send(self.back.leave(now))
        due = [lane.next_arrival for lane in (self.out, self.back) if lane.next_arrival is not None]
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(min(due), self._carry) if due else None

    def close(self) -> None:
        """What is on its way is lost."""
        if self._timer is not None:
            self._timer.cancel()
        self._left.close()
        self._right.close()
