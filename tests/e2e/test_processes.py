"""The test kit's child processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from agent.testing.processes import Component, ComponentError

PARENT = """
import asyncio, sys
from pathlib import Path
from agent.testing.processes import Component

class Sleeper(Component):
    program = ("/bin/sh", "-c", "echo $$; exec sleep 60")

async def main():
    child = Sleeper("child", [], directory=Path(sys.argv[1]))
    await child.start()
    await child.wait_for_output("[0-9]+", 10)
    print(child.pid, flush=True)
    await child.wait()

asyncio.run(main())
"""


class Shell(Component):
    program = ("/bin/sh", "-c")


async def test_output_is_waited_for_and_the_child_stops_when_asked(tmp_path: Path) -> None:
    child = Shell("child", ["trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.01; done"], directory=tmp_path)
    await child.start()
    await child.wait_for_output("^up$", 10)
    assert await child.stop(10) == 3
    assert child.printed() == "up\nbye\n"


async def test_a_child_that_ends_too_early_is_told_with_its_last_words(tmp_path: Path) -> None:
    child = Shell("child", ["echo cannot; exit 7"], directory=tmp_path)
    await child.start()
    with pytest.raises(ComponentError, match=r"child ended \(exit status 7\) without printing 'up'[\s\S]*  cannot"):
        await child.wait_for_output("up", 10)


async def test_only_what_it_printed_since_its_last_start_counts(tmp_path: Path) -> None:
    child = Shell("child", ["echo first"], directory=tmp_path)
    await child.start()
    await child.wait()
    child.arguments = ["echo second"]
    await child.start()
    await child.wait_for_output("second", 10)
    await child.wait()
    assert child.printed() == "second\n"


async def test_waiting_for_output_has_an_end(tmp_path: Path) -> None:
    child = Shell("child", ["exec sleep 60"], directory=tmp_path)
    await child.start()
    with pytest.raises(ComponentError, match=r"did not print 'up' within 0\.05 s"):
        await child.wait_for_output("up", 0.05)
    await child.kill()


async def test_a_child_that_ignores_the_request_to_stop_is_killed_and_told(tmp_path: Path) -> None:
    child = Shell("child", ["trap '' TERM; echo up; exec sleep 60"], directory=tmp_path)
    await child.start()
    await child.wait_for_output("up", 10)
    with pytest.raises(ComponentError, match=r"did not end within 0\.05 s of SIGTERM"):
        await child.stop(0.05)
    assert not child.running


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does this")
async def test_a_child_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, tmp_path, stdout=-1)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    async with asyncio.timeout(10):
        while await asyncio.to_thread(_runs, pid):
            await asyncio.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
