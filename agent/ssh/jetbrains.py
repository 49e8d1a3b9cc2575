"""Whether a local port is that of a JetBrains IDE (terminal-ssh-http.md §3.10)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

_MARKS: Final = (b"idea.vendor.name=jetbrains", b"com.jetbrains.toolbox", b"remote-dev-server")
_MAX_COMMAND_LINE: Final = 1 << 20


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
