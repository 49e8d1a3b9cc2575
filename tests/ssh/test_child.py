"""Starting processes, also when nobody waits for them any more."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest

from agent.process import Command
from agent.ssh.child import Job, StartError, start
from agent.ssh.options import Options
from agent.ssh.server import SshServer
from agent.testing import ManualClock
from tests.ssh.support import Context, SocketStream, host_key, until


def job(directory: Path, *argv: str) -> Job:
    return Job(Command(argv), str(directory), dict(os.environ))


@pytest.mark.parametrize("early", [True, False])
async def test_a_start_that_is_cancelled_leaves_no_process(tmp_path: Path, early: bool) -> None:
    go, preparing = threading.Event(), threading.Event()
    pid = tmp_path / "pid"

    def prepare() -> Job:
        preparing.set()
        go.wait(5)
        return job(tmp_path, "/bin/sh", "-c", "echo $$ > pid; sleep 60")

    before = len(os.listdir("/proc/self/fd"))
    task = asyncio.create_task(start(prepare))
    await until(preparing.is_set)
    if early:
        task.cancel()
    go.set()
    # Without a turn of the loop: the process is there, and nobody has been told.
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.01)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    await until(lambda: not os.path.exists(f"/proc/{pid.read_text().strip()}"))
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


@pytest.mark.parametrize("argv", [("/none",), ("/etc/passwd",), ("/bin/sh", "x" * 200_000)])
async def test_what_cannot_be_started_says_why_and_leaves_nothing(tmp_path: Path, argv: tuple[str, ...]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StartError) as refused:
        await start(lambda: job(tmp_path, *argv))
    assert str(refused.value)
    with pytest.raises(StartError, match="none"):
        await start(lambda: job(tmp_path / "none", "/bin/sh"))
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_short_longest_time_is_that_of_a_connection(tmp_path: Path, clock: ManualClock) -> None:
    import socket

    async def key() -> bytes:
        return await asyncio.to_thread(host_key)

    server = SshServer(Context(tmp_path), clock, host_key=key, home=str(tmp_path), options=Options(max_timeout=2))
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(server.serve(SocketStream(ours)))
    with theirs:
        await until(lambda: server.connections == 1)
        await clock.advance(1.9)
        assert server.connections == 1
        await clock.advance(0.2)
        await asyncio.wait_for(serving, 5)
    assert server.connections == 0
    await server.aclose()
    await server.aclose()
