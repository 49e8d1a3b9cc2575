"""Our TCP against the kernel's, through wireguard-go, over roads that lose, delay, reorder, repeat and die.

Each scenario has a network namespace of its own; namespace.py says what that needs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.namespace import command_in_namespace
from tests.e2e.road_host import SCENARIOS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def namespace() -> list[str]:
    """The command that runs another one in new namespaces."""
    return command_in_namespace()


@pytest.mark.timeout(110)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_against_the_kernel(namespace: list[str], scenario: str) -> None:
    run = subprocess.run(
        [*namespace, sys.executable, "-m", "tests.e2e.road_host", scenario],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
