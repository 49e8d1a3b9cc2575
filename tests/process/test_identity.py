"""Process identity. These processes end by themselves or are ended at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from agent.process import ProcessId


def test_this_process() -> None:
    me = ProcessId.of(os.getpid())
    assert me is not None
    assert me.alive()
    assert not ProcessId(me.pid, me.start_time + 1).exists()
    assert not ProcessId(me.pid, me.start_time + 1).signal(signal.SIGKILL)
    assert not ProcessId(me.pid, me.start_time + 1).signal_group(signal.SIGKILL)


def test_zombie_exists_but_does_not_live() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    it = ProcessId.of(child.pid)
    assert it is not None
    assert it.alive()
    assert it.signal_group(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert it.exists()
    assert not it.alive()
    assert child.stdin is not None
    child.stdin.close()
    child.wait()
    assert not it.exists()
    assert not it.signal_group(signal.SIGKILL)


def test_name_with_parentheses(tmp_path: os.PathLike[str]) -> None:
    program = os.path.join(tmp_path, ") R 1 (")
    os.symlink("/bin/cat", program)
    child = subprocess.Popen([program], stdin=subprocess.PIPE)
    try:
        it = ProcessId.of(child.pid)
        assert it is not None
        assert it.start_time > 1000
    finally:
        child.communicate()


@pytest.mark.parametrize("pid", [0, 2**22 + 1])
def test_no_such_process(pid: int) -> None:
    assert ProcessId.of(pid) is None
