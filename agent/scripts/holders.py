"""Who still holds the pipes of a script that has ended."""

from __future__ import annotations

import os
import time
from collections.abc import Collection

_MAX_PROCESSES = 4096
_MAX_SECONDS = 0.5


def find_holders(pipes: Collection[int], *, most: int = 5) -> list[str]:
    """Processes, at most `most`, that could write into one of the pipes (inodes), as `pid (name)`.

    Only those of users whose processes this one may look at are found, and a very busy machine is not searched to the
    end: it is a hint for people. Reads /proc: call it in a thread.
    """
    wanted = {f"pipe:[{inode}]" for inode in pipes}
    until = time.monotonic() + _MAX_SECONDS
    found: list[str] = []
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:  # no descriptor is free
        return []
    for pid in sorted(pids, reverse=True)[:_MAX_PROCESSES]:  # the newest numbers first
        if len(found) >= most or time.monotonic() > until:
            break
        if pid != os.getpid() and _writes_to(pid, wanted):
            found.append(f"{pid} ({_name(pid)})")
    return found[::-1]


def _writes_to(pid: int, wanted: Collection[str]) -> bool:
    directory = f"/proc/{pid}/fd"
    try:
        for number in os.listdir(directory):
            path = f"{directory}/{number}"
            # The link's own mode tells how the descriptor was opened; a keeper holds the reading ends.
            if os.readlink(path) in wanted and os.lstat(path).st_mode & 0o200:
                return True
    except OSError:  # it ended, or belongs to somebody else
        return False
    return False


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "ended meanwhile"
