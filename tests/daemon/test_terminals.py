from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

from agent.daemon.environment import CommandEnvironment
from agent.daemon.terminals import Terminals
from agent.tailnet.streams import TailnetStream
from agent.testing import ManualClock, settle
from tests.terminal.support import MemoryStream


def make(clock: ManualClock, directory: Path) -> Terminals:
    context = CommandEnvironment(process={}, executable="", bin_dir=directory, token=lambda: "")
    return Terminals(context, clock, idle=300, history=65536)


async def test_connections_wait_for_the_state_directory(clock: ManualClock, tmp_path: Path) -> None:
    terminals, stream = make(clock, tmp_path), MemoryStream()
    stream.leave()
    serving = asyncio.create_task(terminals.serve(cast(TailnetStream, stream)))
    await settle()
    assert (serving.done(), terminals.viewers) == (False, 0)
    terminals.open(tmp_path)
    await serving
    assert stream.closed
    await terminals.aclose()
    await terminals.aclose()


async def test_terminals_that_were_never_opened_are_closed(clock: ManualClock, tmp_path: Path) -> None:
    await make(clock, tmp_path).aclose()
