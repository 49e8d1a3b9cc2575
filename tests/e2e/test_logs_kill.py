"""An agent that is killed while a script prints: nothing is lost or doubled, at the server or in the log file."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.logs.killable import SOURCE
from tests.logs.kit import FakeServer

LINES = 200_000
KILLS = 6

# Prints lines, and parts of lines, in pieces of any size, on both streams.
_SCRIPT = f"""
import random, sys
generator = random.Random(5)
lines = "".join(f"line {{number}}\\n" for number in range({LINES}))
place = 0
while place < len(lines):
    size = generator.randrange(1, 20_000)
    sys.stdout.write(lines[place:place + size])
    sys.stdout.flush()
    place += size
    sys.stderr.write("error\\n" if generator.random() < .5 else "half ")
    sys.stderr.flush()
"""


@pytest.mark.timeout(120)
async def test_nothing_is_lost_or_doubled_when_the_agent_is_killed(tmp_path: Path) -> None:
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()  # held here, as the keeper of a run holds them
    sent, log, run = tmp_path / "sent", tmp_path / "log", str(uuid4())
    arguments = [
        sys.executable,
        "-m",
        "tests.logs.killable",
        str(tmp_path / "state"),
        str(log),
        run,
        str(out),
        str(err),
    ]

    async def start_agent() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(*arguments, str(sent), pass_fds=(out, err))

    agent = await start_agent()
    script = await asyncio.create_subprocess_exec(sys.executable, "-c", _SCRIPT, stdout=out_end, stderr=err_end)
    os.close(out_end)
    os.close(err_end)
    generator = random.Random(7)
    for kill in range(1, KILLS + 1):
        goal = kill * 200_000 + generator.randrange(100_000)
        while not log.exists() or log.stat().st_size < goal:
            await asyncio.sleep(generator.random() / 500)
        agent.kill()
        await agent.wait()
        agent = await start_agent()
    os.close(out)
    os.close(err)
    assert await asyncio.wait_for(script.wait(), 60) == 0
    assert await asyncio.wait_for(agent.wait(), 60) == 0

    server = FakeServer()
    data = sent.read_bytes()
    while len(data) >= 4 + (size := int.from_bytes(data[:4], "little")):
        server.take(data[4 : 4 + size])
        data = data[4 + size :]
    printed = [line for line in server.lines[SOURCE] if line.startswith("line")]
    errors = [line for line in server.lines[SOURCE] if not line.startswith("line")]
    assert printed == [f"line {number}" for number in range(LINES)]
    expected = len(_stderr())
    assert len("".join(line + "\n" for line in errors)) in (expected, expected + 1)  # the last may have no newline
    assert "".join(line + "\n" for line in errors).startswith(_stderr())
    stdout = "".join(line + "\n" for line in printed)
    assert log.stat().st_size == len(stdout) + expected
    assert not list((tmp_path / "state").glob("*/*"))


def _stderr() -> str:
    generator, place, text = random.Random(5), 0, ""
    length = sum(len(f"line {number}\n") for number in range(LINES))
    while place < length:
        place += generator.randrange(1, 20_000)
        text += "error\n" if generator.random() < 0.5 else "half "
    return text
