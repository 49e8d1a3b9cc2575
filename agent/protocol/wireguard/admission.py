"""Which handshake messages are worth their price (tailnet.md §7.8).

A handshake costs some hundred times what a transport packet costs. Up to `BURST` at once and `RATE` a second are taken
from anyone. Beyond that we are under load for a second at least: a sender has to prove its address with a cookie, and
gets `SOURCE_RATE` a second then.
"""

from __future__ import annotations

import enum

from agent.protocol.wireguard.cookies import Checker

BURST = 128
RATE = 128.0
LOADED_FOR = 1.0
SOURCE_BURST = 5
SOURCE_RATE = 20.0
MAX_SOURCES = 1024
"""Sources remembered under load; beyond that the one that came first is forgotten."""


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


class Admission:
    """Decides by what arrived before; a message is judged after its mac1 was found valid."""

    __slots__ = ("_anyone", "_checker", "_loaded_until", "_sources")

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._anyone: _Bucket | None = None
        self._loaded_until: float | None = None
        self._sources: dict[bytes, _Bucket] = {}

    def judge(self, message: bytes, source: bytes, now: float) -> Verdict:
        """The price of judging is one or two short MACs."""
        if self._loaded_until is not None and now >= self._loaded_until:
            self._loaded_until = None
            self._sources.clear()
        if self._loaded_until is None:
            if self._anyone is None:
                self._anyone = _Bucket(BURST, RATE, now)
            if self._anyone.take(now):
                return Verdict.TAKE
            self._loaded_until = now + LOADED_FOR
        if not self._checker.mac2_is_valid(message, source, now):
            return Verdict.ASK_FOR_COOKIE
        bucket = self._sources.get(source)
        if bucket is None:
            if len(self._sources) >= MAX_SOURCES:
                del self._sources[next(iter(self._sources))]
            bucket = self._sources[source] = _Bucket(SOURCE_BURST, SOURCE_RATE, now)
        return Verdict.TAKE if bucket.take(now) else Verdict.DROP
