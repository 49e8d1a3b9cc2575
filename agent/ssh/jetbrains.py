"""Whether a local port is that of a JetBrains IDE (terminal-ssh-http.md §3.10)."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent.clock import Clock

_MARKS: Final = (b"idea.vendor.name=jetbrains", b"com.jetbrains.toolbox", b"remote-dev-server")
_MAX_COMMAND_LINE: Final = 1 << 20
FRESH: Final = 5.0


class PortLooks:
    """Looks at ports, each once in a while for all who ask: a look takes as long as there are processes."""

    def __init__(self, clock: Clock, look: Callable[[int], bool] | None = None) -> None:
        self._clock = clock
        self._look = look or serves_jetbrains
        self._looks: dict[int, tuple[float, asyncio.Task[bool]]] = {}

    def look(self, port: int) -> asyncio.Task[bool]:
        """Whether the port is that of a JetBrains IDE, now or `FRESH` seconds ago at most."""
        now = self._clock.now()
        for known, (began, _) in list(self._looks.items()):  # in the order of their beginning
            if now - began <= FRESH:
                break
            del self._looks[known]
        if port not in self._looks:
            task = asyncio.create_task(asyncio.to_thread(self._look, port), name=f"look at port {port}")
            self._looks[port] = now, task
        return self._looks[port][1]


def serves_jetbrains(port: int, proc: Path = Path("/proc")) -> bool:
    """Whether the process with a socket at this local port is one. False where that cannot be found out.

    Reads a lot of files: call it in a thread.
    """
    inode = _inode(port, proc)
    command_line = _command_line(inode, proc) if inode else b""
    return any(mark in command_line.lower() for mark in _MARKS)


def _inode(port: int, proc: Path) -> str:
    """The first socket with this local port, in any state; IPv4 comes first."""
    for table in ("net/tcp", "net/tcp6"):
        with contextlib.suppress(OSError):  # no IPv6, or no /proc
            for line in (proc / table).read_text("ascii", "replace").splitlines()[1:]:
                fields = line.split()
                if len(fields) > 9 and fields[1].rpartition(":")[2] == f"{port:04X}":
                    return fields[9]
    return ""


def _command_line(inode: str, proc: Path) -> bytes:
    """Of the process that has this socket open."""
    wanted = f"socket:[{inode}]"
    for process in _listed(proc):
        if not process.isdigit():
            continue
        for descriptor in _listed(proc / process / "fd"):
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.readlink(proc / process / "fd" / descriptor) == wanted:
                    with open(proc / process / "cmdline", "rb") as file:
                        return file.read(_MAX_COMMAND_LINE)
    return b""


def _listed(directory: Path) -> list[str]:
    """Empty for a process that has ended, or that is somebody else's."""
    try:
        return os.listdir(directory)
    except OSError:
        return []
