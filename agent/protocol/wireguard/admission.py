"""Which handshake messages are worth their price (tailnet.md §7.8).

A handshake costs some hundred times what a transport packet costs. A source gets `SOURCE_RATE` a second, so that one
that floods is at nobody's expense. All sources together get `RATE`: whoever makes up sources gets no further. Beyond
that we are under load for a second at least. Who is refused gets a cookie, which proves its address, and with that the
same rate again, whatever others do.
"""

from __future__ import annotations

import enum
from math import inf

from agent.protocol.wireguard.cookies import Checker

BURST = 128
RATE = 128.0
LOADED_FOR = 1.0
SOURCE_BURST = 5
SOURCE_RATE = 20.0
MAX_SOURCES = 1024
"""Sources remembered; beyond that the one that came first is forgotten."""


class Verdict(enum.Enum):
    """What to do with a handshake message."""

    TAKE = 1
    ASK_FOR_COOKIE = 2
    DROP = 3


class _Bucket:
    __slots__ = ("_burst", "_rate", "_since", "_tokens")

    def __init__(self, burst: float, rate: float, now: float) -> None:
        self._burst = burst
        self._rate = rate
        self._tokens = burst
        self._since = now

    def take(self, now: float) -> bool:
        self._tokens = min(self._burst, self._tokens + (now - self._since) * self._rate)
        self._since = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class _Sources:
    """A bucket for each source."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: dict[bytes, _Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, source: bytes, now: float) -> bool:
        bucket = self._buckets.get(source)
        if bucket is None:
            if len(self._buckets) >= MAX_SOURCES:
                del self._buckets[next(iter(self._buckets))]
            bucket = self._buckets[source] = _Bucket(SOURCE_BURST, SOURCE_RATE, now)
        return bucket.take(now)


class Admission:
    """Decides by what arrived before; a message is judged after its mac1 was found valid."""

    __slots__ = ("_anyone", "_asked", "_checker", "_loaded_until", "_plain", "_proven")

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._anyone = _Bucket(BURST, RATE, -inf)
        self._loaded_until = -inf
        self._plain, self._asked, self._proven = _Sources(), _Sources(), _Sources()

    def judge(self, message: bytes, source: bytes, now: float) -> Verdict:
        """The price of judging is one or two short MACs; that of a cookie some more, so that these have a rate, too."""
        if now >= self._loaded_until and self._plain.take(source, now):
            if self._anyone.take(now):
                return Verdict.TAKE
            self._loaded_until = now + LOADED_FOR
        if self._checker.mac2_is_valid(message, source, now):
            return Verdict.TAKE if self._proven.take(source, now) else Verdict.DROP
        return Verdict.ASK_FOR_COOKIE if self._asked.take(source, now) else Verdict.DROP
