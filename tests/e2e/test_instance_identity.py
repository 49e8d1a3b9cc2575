"""Whole agents on machines of three clouds, each in a network of its own with its server and fake metadata."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.e2e.namespace import command_in_bare_namespace


@pytest.mark.timeout(180)
@pytest.mark.spec("agent-api", 12, 13, 14, 16)
@pytest.mark.spec("daemon", 14, 55)
@pytest.mark.parametrize("cloud", ["aws", "azure", "google"])
async def test_a_machine_in(cloud: str, tmp_path: Path) -> None:
    namespace = await asyncio.to_thread(command_in_bare_namespace)
    process = await asyncio.create_subprocess_exec(
        *(*namespace, sys.executable, "-m", "tests.e2e.identity_host", cloud, str(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 170)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()
