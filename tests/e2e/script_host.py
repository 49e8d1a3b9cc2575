"""A program that runs a start script until it is killed; arguments: directory, text, timeout, id, log source id."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from uuid import UUID

from agent.api.manifest import Script
from agent.clock import SystemClock
from agent.scripts import ScriptRunner
from tests.scripts.support import Context, PipeCaptures


def host_script(text: str, timeout: str, script_id: str, source_id: str) -> Script:
    return Script(
        id=UUID(script_id), log_source_id=UUID(source_id), text=text, run_on_start=True, timeout=float(timeout)
    )


async def main(root: Path, script: Script) -> None:
    runner = ScriptRunner(
        [script],
        runs_dir=root / "runs",
        data_dir=root / "data",
        log_dir=root / "log",
        captures=PipeCaptures(),
        context=Context(root),
        completed=lambda timing: None,
        clock=SystemClock(),
        life="life",
    )
    os.write(1, b"ready\n")
    await runner.run_start()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), host_script(*sys.argv[2:])))
