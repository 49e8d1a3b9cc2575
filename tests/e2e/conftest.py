"""Programs that end-to-end tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import tailnet_peer


@pytest.fixture(scope="session")
def peer_program() -> Path:
    """The foreign peer of the tailnet."""
    return tailnet_peer.build()
