"""Which process a number means: a process id together with its start time survives the reuse of process ids."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process of this machine. `start_time` is in clock ticks since boot, from `/proc/<pid>/stat`."""

    pid: int
    start_time: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has this number now, a zombie included; None when there is none."""
        stat = _read_stat(pid)
        return cls(pid, stat.start_time) if stat else None

    def exists(self) -> bool:
        """True while the process has not been reaped, so that its number, also as that of its group, means it alone."""
        stat = _read_stat(self.pid)
        return stat is not None and stat.start_time == self.start_time

    def alive(self) -> bool:
        """True while the process can still do something: a zombie is not alive."""
        stat = _read_stat(self.pid)
        return stat is not None and stat.start_time == self.start_time and stat.state not in "ZXx"

    def signal(self, number: int) -> bool:
        """Send a signal to this process alone; False when it is gone. Raises `PermissionError`."""
        if not self.exists():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def signal_group(self, number: int) -> bool:
        """Send a signal to the group that this process leads; False when nobody is left in it.

        The leader may be a zombie, but must not have been reaped: then its number may be another group's.
        Raises `PermissionError` when no member may be signalled.
        """
        if not self.exists():
            return False
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        return True


class _Stat(NamedTuple):
    state: str
    start_time: int


def _read_stat(pid: int) -> _Stat | None:
    """Fields 3 and 22 of proc_pid_stat(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read(4096) or b""
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, field 2, is in parentheses and may contain anything, these included.
    fields = text[text.rfind(b")") + 2 :].split()
    return _Stat(fields[0].decode(), int(fields[19])) if len(fields) > 19 else None
