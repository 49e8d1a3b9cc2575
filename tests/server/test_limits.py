"""The rate limiter, on times that are given."""

from __future__ import annotations

from agent.server import limits
from agent.server.limits import RateLimiter


def test_a_caller_gets_so_many_and_no_more() -> None:
    limiter = RateLimiter()
    verdicts = [limiter.check("a", 3, 120.0) for _ in range(4)]
    assert [verdict.allowed for verdict in verdicts] == [True, True, True, False]
    assert [verdict.remaining for verdict in verdicts] == [2, 1, 0, 0]
    assert limiter.check("b", 3, 120.0).allowed
    assert verdicts[3].headers(1000) == {
        "X-RateLimit-Limit": "3",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": "1060",
        "Retry-After": "60",
    }


def test_the_window_slides() -> None:
    limiter = RateLimiter()
    for _ in range(10):
        assert limiter.check("a", 10, 59.0).allowed
    assert not limiter.check("a", 10, 60.0).allowed
    assert limiter.check("a", 10, 67.0).allowed  # a tenth of the last minute is out of view
    assert not limiter.check("a", 10, 67.0).allowed
    assert limiter.check("a", 10, 500.0).remaining == 9


def test_memory_is_bounded() -> None:
    limiter = RateLimiter()
    for number in range(limits.MAX_KEYS + 10):
        assert limiter.check(number, 5, 0.0).allowed is (number < limits.MAX_KEYS + 5)
