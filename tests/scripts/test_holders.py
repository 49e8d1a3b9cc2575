"""Who holds a pipe."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest

from agent.scripts.holders import find_holders


def test_holders_are_named_by_what_they_write_to() -> None:
    reader, writer = os.pipe()
    inode = os.fstat(reader).st_ino
    with subprocess.Popen(["/bin/sleep", "1000"], stdout=writer) as child:
        os.close(writer)
        assert find_holders([inode]) == [f"{child.pid} (sleep)"]
        child.kill()
    os.close(reader)
    assert find_holders([inode]) == []


def test_without_a_descriptor_nobody_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def listdir(path: str) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "listdir", listdir)
    assert find_holders([1]) == []
