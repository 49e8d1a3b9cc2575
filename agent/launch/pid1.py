"""Becoming the parent of the agent where this process is PID 1 (daemon.md §1.6)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

LOG_NAME = "coder-agent-init.log"


def become_init(log_dir: Path) -> None:
    """Replace this process by `agent.launch.init`, which starts the same command again. Does not return.

    A process of its own: what this one has loaded so far would otherwise be kept for the life of the container.
    """
    try:
        log_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        sys.stderr.write(f"warning: no log of the agent's restarts in {log_dir}: {error.strerror or error}\n")
    init = str(Path(__file__).with_name("init.py"))
    command = [sys.executable, *sys.orig_argv[1:]]
    os.execv(sys.executable, [sys.executable, "-I", "-S", init, str(log_dir / LOG_NAME), *command])  # noqa: S606
