"""Goodput of our TCP with the kernel's over bad roads, beside the kernel's with itself over the same roads.

Needs what tests/e2e/namespace.py names; without it there are no figures.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROADS = ("10 ms, 1 % lost", "20 ms, 20 Mbit/s, short queue", "100 ms, 50 Mbit/s")


async def measure(seconds: float = 4.0) -> dict[str, float]:
    """Mbit/s that arrive; `seconds` for each of three transfers over each road."""
    if missing := [tool for tool in ("wireguard-go", "wg", "ip", "unshare") if shutil.which(tool) is None]:
        sys.stderr.write(f"no figures of bad roads without {', '.join(missing)}\n")
        return {}
    process = await asyncio.create_subprocess_exec(
        "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--map-root-user",
        sys.executable, "-m", "tests.e2e.road_figures", str(seconds), *ROADS,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    printed, said = await process.communicate()
    if process.returncode:
        sys.stderr.write(f"no figures of bad roads: {said.decode(errors='replace')[-2000:]}\n")
        return {}
    figures: dict[str, float] = json.loads(printed)
    return figures
