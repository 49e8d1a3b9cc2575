"""What every test gets: a manual clock, and a detector that fails a test whose event loop is blocked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from agent.testing import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[BlockBuster]:
    """Any blocking call that `agent` makes on the event loop raises; its test kit may read small files there."""
    with blockbuster_ctx("agent", excluded_modules=["agent.testing"]) as detector:
        yield detector
