"""The quickstart, as a person runs it."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "quickstart.py"

pytestmark = pytest.mark.timeout(180)


async def start(directory: Path, *options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, SCRIPT, "--directory", directory, *options, stdin=-3, stdout=-1, stderr=-2
    )


async def read_until(process: asyncio.subprocess.Process, wanted: str) -> str:
    """What it prints, to the line that is wanted."""
    assert process.stdout is not None
    text = ""
    while line := (await process.stdout.readline()).decode():
        text += line
        if line.rstrip("\n") == wanted:
            return text
    raise AssertionError(f"no {wanted!r} in:\n{text}")


def left_running(directory: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("WORKSPACE_AGENT_QUICKSTART") == str(directory):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:  # gone, or another user's
            continue
    return found


async def test_check_shows_everything_in_order_and_leaves_nothing_running(tmp_path: Path) -> None:
    for _ in range(2):  # the second run finds what the first one left
        process = await start(tmp_path, "--check")
        output = (await process.communicate())[0].decode()
        assert process.returncode == 0, output
        lines = output.splitlines()
        assert re.fullmatch(r"open http://127\.0\.0\.1:\d+/login\?code=\S+", lines[0])
        assert lines[1] == "connected"
        ready = lines.index("ready")
        assert ready > 3, "the start script's lines come first"
        assert lines[-1] == "off"
        assert len(lines) > ready + 2, "the stop script's lines come between"
        assert await asyncio.to_thread(left_running, tmp_path) == []


async def test_ctrl_c_stops_in_order(tmp_path: Path) -> None:
    process = await start(tmp_path)
    await read_until(process, "ready")
    process.send_signal(signal.SIGINT)
    await read_until(process, "off")
    assert await process.wait() == 0
    assert await asyncio.to_thread(left_running, tmp_path) == []


async def test_two_in_one_directory_are_refused(tmp_path: Path) -> None:
    first = await start(tmp_path)
    await read_until(first, "connected")
    second = await start(tmp_path, "--check")
    output = (await second.communicate())[0].decode()
    assert second.returncode == 1
    assert f"another quickstart runs in {tmp_path}" in output
    first.send_signal(signal.SIGINT)
    await first.communicate()


async def test_killed_in_the_middle_it_leaves_nothing_running(tmp_path: Path) -> None:
    process = await start(tmp_path)
    await read_until(process, "connected")
    process.kill()
    await process.communicate()
    async with asyncio.timeout(60):
        while await asyncio.to_thread(left_running, tmp_path):
            await asyncio.sleep(0.2)
