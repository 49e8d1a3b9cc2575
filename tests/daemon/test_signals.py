"""Dumps say what every thread and task does, and end nothing that they should not."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from agent.daemon.signals import handle_signals, write_dump
from agent.testing import settle


async def test_stop_signals_are_told_by_name() -> None:
    told: list[str] = []
    with handle_signals(told.append, {}):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
            await asyncio.sleep(0.01)
    assert told == ["SIGTERM", "SIGHUP", "SIGTERM"]


async def test_handlers_are_taken_back_and_a_wanted_core_dump_is_left_alone() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGQUIT, signal.SIGTRAP)}
    with handle_signals(lambda name: None, {"GOTRACEBACK": "crash"}):
        assert signal.getsignal(signal.SIGQUIT) is before[signal.SIGQUIT]
        assert signal.getsignal(signal.SIGTRAP) is not before[signal.SIGTRAP]
    assert {number: signal.getsignal(number) for number in before} == before


async def test_a_dump_names_threads_and_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def waiting_for_godot() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(waiting_for_godot(), name="the waiting one")
    await settle()
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(write_dump, loop, {"HOME": str(tmp_path)})
    (dump,) = tmp_path.iterdir()
    text = dump.read_text()
    assert "thread MainThread" in text
    assert "the waiting one" in text
    assert "waiting_for_godot" in text
    assert os.stat(dump).st_mode & 0o777 == 0o600
    assert capsys.readouterr().err == text
    task.cancel()


async def test_a_dump_without_a_place_still_goes_to_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await asyncio.to_thread(write_dump, asyncio.get_running_loop(), {"HOME": str(tmp_path / "missing")})
    text = capsys.readouterr().err
    assert "thread MainThread" in text
    assert "the dump could not be written" in text
